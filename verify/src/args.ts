import { parseArgs } from "node:util";

/** What `glasskey-verify` was asked to do. */
export type Command =
  | { readonly verb: "help" }
  | { readonly verb: "pin"; readonly source: Source; readonly file: string }
  | (Given & { readonly verb: "proof"; readonly proof: string; readonly entry: string })
  | (Given & { readonly verb: "growth"; readonly source: Source; readonly since: string; readonly until: string })
  | (Given & {
      readonly verb: "log";
      readonly source: Source;
      readonly since: string | undefined;
      readonly maxUnwitnessed: number | undefined;
      readonly recordings: boolean;
    });

/** Names of files, not their contents. */
interface Given {
  /** A verifier key, or a file with it; undefined where the witness policy names the log. */
  readonly key: string | undefined;
  readonly witnesses: string | undefined;
  readonly json: boolean;
}

export interface Source {
  /** A folder, or a URL. */
  readonly where: string;
  readonly isUrl: boolean;
  readonly tokenFile: string | undefined;
  readonly ca: string | undefined;
}

/** @throws Error for what is no command; its message is for the person who typed it. */
export function parseCommand(args: readonly string[]): Command {
  const text = { type: "string" } as const;
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      ...{ key: text, since: text, until: text, pin: text, proof: text, entry: text, witnesses: text },
      ...{ "max-unwitnessed": text, "token-file": text, ca: text },
      json: { type: "boolean", default: false },
      "no-recordings": { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return { verb: "help" };
  const given = Object.keys(values).filter((name) => values[name as keyof typeof values] !== false);
  /** Options that mean nothing here are mistakes: somebody believes that they do. */
  const only = (verb: string, ...allowed: readonly string[]): void => {
    const wrong = given.find((name) => !allowed.includes(name));
    if (wrong !== undefined) throw new Error(`${verb} and --${wrong} do not go together`);
  };
  const { key, witnesses, json, since, until } = values;
  if (values.proof !== undefined || values.entry !== undefined) {
    only("--proof", "proof", "entry", "key", "witnesses", "json");
    if (positionals.length > 0) throw new Error("a proof stands for itself: give no folder or URL with --proof");
    if (values.proof === undefined || values.entry === undefined) throw new Error("--proof and --entry go together");
    return { verb: "proof", proof: values.proof, entry: values.entry, key: keyOr(key, witnesses), witnesses, json };
  }
  const source = parseSource(positionals, values["token-file"], values.ca);
  const ofSource = ["token-file", "ca"];
  if (values.pin !== undefined) {
    only("--pin", "pin", ...ofSource);
    return { verb: "pin", source, file: values.pin };
  }
  const common = { key: keyOr(key, witnesses), witnesses, json };
  if (until !== undefined) {
    only("--until", "since", "until", "key", "json", ...ofSource);
    if (since === undefined) throw new Error("--until needs --since: growth is from one checkpoint to another");
    return { verb: "growth", source, since, until, ...common };
  }
  return {
    ...{ verb: "log", source, since, ...common },
    maxUnwitnessed: parseMax(values["max-unwitnessed"], witnesses),
    recordings: !values["no-recordings"],
  };
}

function parseSource(positionals: readonly string[], tokenFile: string | undefined, ca: string | undefined): Source {
  const [where, ...rest] = positionals;
  if (where === undefined || rest.length > 0) throw new Error("give one folder or URL");
  const isUrl = /^https?:\/\//i.test(where);
  if (!isUrl && (tokenFile ?? ca) !== undefined) throw new Error("--token-file and --ca are for a URL");
  return { where, isUrl, tokenFile, ca };
}

function keyOr(key: string | undefined, witnesses: string | undefined): string | undefined {
  if (key === undefined && witnesses === undefined) {
    throw new Error("give the log's key with --key; a key that lies in the folder proves nothing (see --pin)");
  }
  return key;
}

function parseMax(text: string | undefined, witnesses: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (witnesses === undefined) throw new Error("--max-unwitnessed needs --witnesses");
  if (!/^\d{1,15}$/.test(text)) throw new Error("--max-unwitnessed is a number of entries");
  return Number(text);
}
