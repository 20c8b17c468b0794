import type { JsonObject } from "../../core/json.ts";
import type { ScopeChange } from "../target.ts";
import { authorize } from "./authorize.ts";
import {
  type Budget,
  findText,
  type Found,
  type Language,
  languageOfGlob,
  languageOfWord,
  textsOf,
} from "./languages.ts";
import {
  type CommandPattern,
  type CommandWord,
  endsInSlash,
  literalOf,
  matchesCommand,
  matchesWord,
  parsePattern,
} from "./patterns.ts";
import { compileGlobs } from "./paths.ts";
import { listsAddress, listsSocket, parseAddress } from "./scope-addresses.ts";
import { parseScope, type SshScope } from "./scope.ts";

/** Some tenths of a second. */
const MAX_STEPS = 5_000_000;

/**
 * Which way a scope went, key by key. If no change is `wider` or `other`, everything that {@link authorize} allows under the
 * new scope it allowed under the old one: what cannot be proved is `other`. Pure; never throws.
 */
export function compareScopes(before: JsonObject, after: JsonObject): readonly ScopeChange[] {
  const [old, next] = [read(before), read(after)];
  if (old === undefined || next === undefined) {
    return [{ key: "", effect: "other", what: "one of the two cannot be read" }];
  }
  const budget: Budget = { left: MAX_STEPS };
  return Object.values(KEYS).flatMap((compare) => compare(old, next, budget));
}

type Compare = (old: SshScope, next: SshScope, budget: Budget) => readonly ScopeChange[];

/** Every key there is: one that is not compared would pass for the same. */
const KEYS: Readonly<Record<keyof SshScope, Compare>> = {
  user: (old, next) => {
    const what = `another account on the host: ${old.user} → ${next.user}`;
    return old.user === next.user ? [] : [{ key: "user", effect: "other", what }];
  },
  shell: (old, next) => compareFlag("shell", old.shell, next.shell),
  commands: compareCommands,
  sftp: compareFiles,
  forward: (old, next) => compareLists("forward", old.forward, next.forward, addresses),
  remoteForward: (old, next) => compareLists("remoteForward", old.remoteForward, next.remoteForward, addresses),
  agent: (old, next) => compareFlag("agent", old.agent, next.agent),
  x11: (old, next) => compareFlag("x11", old.x11, next.x11),
  env: (old, next) => compareLists("env", old.env, next.env, variables),
  files: (old, next) => {
    if (old.files === next.files) return [];
    // As with record.mask: less is kept of what was done.
    const effect = next.files === "keep" ? "narrower" : "wider";
    return [{ key: "files", effect, what: `${old.files} → ${next.files} (what is recorded of files)` }];
  },
};

function compareFlag(key: string, was: boolean, is: boolean): readonly ScopeChange[] {
  return was === is ? [] : [{ key, effect: is ? "wider" : "narrower", what: `${was} → ${is}` }];
}

function read(scope: JsonObject): SshScope | undefined {
  const parsed = parseScope(scope);
  return parsed.ok ? (parsed.value as unknown as SshScope) : undefined;
}

/** Whether a list allows all of what one text stands for; else, where it is known, an example of what it does not. */
type Covered = { readonly is: "yes" | "unknown" } | { readonly is: "no"; readonly example?: string };
type Covers = (list: readonly string[], text: string) => Covered;

const YES: Covered = { is: "yes" };

function compareLists(
  key: string,
  before: readonly string[],
  after: readonly string[],
  covers: Covers,
): readonly ScopeChange[] {
  const [was, is] = [new Set(before), new Set(after)];
  const added = [...is].filter((text) => !was.has(text)).map((text) => ({ text, covered: covers(before, text) }));
  const taken = [...was].filter((text) => !is.has(text)).map((text) => ({ text, covered: covers(after, text) }));
  const changes: ScopeChange[] = [];
  const wider = added.filter(({ covered }) => covered.is === "no");
  if (wider.length > 0) changes.push({ key, effect: "wider", what: `also ${wider.map(withExample).join(", ")}` });
  const other = added.filter(({ covered }) => covered.is === "unknown");
  if (other.length > 0) changes.push({ key, effect: "other", what: `also ${texts(other)}` });
  const gone = taken.filter(({ covered }) => covered.is !== "yes");
  const known = added.filter(({ covered }) => covered.is === "yes");
  if (gone.length > 0) {
    const instead = known.length > 0 ? `, only ${texts(known)}` : "";
    changes.push({ key, effect: "narrower", what: `not ${texts(gone)} any more${instead}` });
  } else if (changes.length === 0 && before.join("\n") !== after.join("\n")) {
    changes.push({
      key,
      effect: "same",
      what: known.length > 0 ? `also ${texts(known)}: allowed already` : "means the same",
    });
  }
  return changes;
}

function texts(items: readonly { readonly text: string }[]): string {
  return items.map(({ text }) => text).join(", ");
}

function withExample({ text, covered }: { readonly text: string; readonly covered: Covered }): string {
  const example = covered.is === "no" ? covered.example : undefined;
  return example === undefined || example === text ? text : `${text} (such as ${example})`;
}

// -------------------------------------------------------------------------------------------------------- commands

function compareCommands(old: SshScope, next: SshScope, budget: Budget): readonly ScopeChange[] {
  // A shell is any command anyway.
  const covers: Covers = (list, text) => (list === old.commands && old.shell ? YES : coversCommand(list, text, budget));
  const found = compareLists("commands", old.commands, next.commands, covers);
  if (!next.shell) return found;
  // Beside a shell nothing is taken away by a pattern less.
  return found.map((change) =>
    change.effect === "narrower" ? { ...change, effect: "same", what: `${change.what}, but by the shell` } : change,
  );
}

function coversCommand(list: readonly string[], text: string, budget: Budget): Covered {
  const pattern = parsePattern(text);
  if (typeof pattern === "string") return { is: "unknown" };
  const known = list.map(parsePattern).filter((parsed) => typeof parsed !== "string");
  if (known.some((wide) => isWithinPattern(pattern, wide, budget))) return YES;
  // Several together might still cover it: it is wider for certain where one command shows it.
  const argv = SAMPLES.map((sample) => sampleOf(pattern, sample)).find(
    (words) => matchesCommand(pattern, words) && !known.some((wide) => matchesCommand(wide, words)),
  );
  return argv === undefined ? { is: "unknown" } : { is: "no" };
}

/** What wildcards are tried as. */
const SAMPLES: readonly Readonly<Record<"star" | "deep" | "number" | "name", string>>[] = [
  { star: "", deep: "", number: "4711", name: "glasskey" },
  { star: "g l", deep: "g/l", number: "4711", name: "g.l" },
  { star: "x", deep: "x", number: "0", name: "x" },
];

function sampleOf({ words, open }: CommandPattern, sample: (typeof SAMPLES)[number]): readonly string[] {
  const argv = words.map(({ pieces }) =>
    pieces.map((piece) => (piece.is === "text" ? piece.text : sample[piece.is])).join(""),
  );
  return open ? [...argv, "--glasskey", "/"] : argv;
}

function isWithinPattern(inner: CommandPattern, outer: CommandPattern, budget: Budget): boolean {
  const [mine, theirs] = [inner.words, outer.words];
  if (inner.open && !outer.open) return false;
  if (outer.open ? mine.length < theirs.length : mine.length !== theirs.length) return false;
  return theirs.every((word, i) => {
    const other = mine[i];
    return other !== undefined && isWithinWord(other, word, budget);
  });
}

function isWithinWord(inner: CommandWord, outer: CommandWord, budget: Budget): boolean {
  if (!inner.wild) return matchesWord(outer, literalOf(inner));
  if (!outer.wild) return false;
  // What begins with - or ends in / is only for words that do; the rest that no wildcard matches is the same for both.
  if (isOption(inner) && !isOption(outer)) return false;
  if (endsInSlash(inner) && !endsInSlash(outer)) return false;
  const found = findText(
    [[languageOfWord(inner)], [languageOfWord(outer)]],
    ([a, b]) => a === true && b !== true,
    budget,
  );
  return found.is === "none";
}

function isOption({ pieces: [first] }: CommandWord): boolean {
  return first?.is === "text" && first.text.startsWith("-");
}

// ----------------------------------------------------------------------------------------------------------- files

function compareFiles(old: SshScope, next: SshScope, budget: Budget): readonly ScopeChange[] {
  const languages = new Map<string, Language>();
  const languageOf = (glob: string): Language => {
    const known = languages.get(glob) ?? languageOfGlob(glob);
    languages.set(glob, known);
    return known;
  };
  const find = (sets: readonly (readonly string[])[], wanted: (isIn: readonly boolean[]) => boolean): Found =>
    findText(
      sets.map((globs) => globs.map(languageOf)),
      wanted,
      budget,
    );
  const covers: Covers = (list, glob) => {
    const found = find([[glob], list], ([a, b]) => a === true && b !== true);
    if (found.is === "text") return { is: "no", example: found.text };
    return found.is === "none" ? YES : { is: "unknown" };
  };
  const [was, is] = [old.sftp ?? NO_FILES, next.sftp ?? NO_FILES];
  const changes = [
    ...compareLists("sftp.read", was.read, is.read, covers),
    ...compareLists("sftp.write", was.write, is.write, covers),
  ];
  if (changes.some(({ effect }) => effect === "wider" || effect === "other")) return changes;
  const way = newWay([...was.read, ...was.write], [...is.read, ...is.write]);
  if (way !== undefined) {
    changes.push({ key: "sftp", effect: "wider", what: `attributes of the folder ${way} can be looked at` });
  }
  const renamed = changes.length === 0 ? "none" : newRename(old, next, languageOf, budget);
  if (renamed !== "none") {
    const example = renamed === "unknown" ? "" : `, such as ${renamed.join(" to ")}`;
    const what = `more may be renamed: less is to be read or written where it comes to${example}`;
    changes.push({ key: "sftp", effect: "other", what });
  }
  if (changes.length === 0 && (old.sftp === undefined) !== (next.sftp === undefined))
    changes.push({ key: "sftp", effect: "same", what: "names no file, or is left out" });
  return changes;
}

/** More are compared pair by pair in more than a moment. */
const MAX_KINDS = 150;

/**
 * A renaming that is allowed only now, although nothing else is: what is renamed must not become readable or writable by
 * that, and where less is, less is refused for it. Paths of one kind are judged alike, whatever is below them.
 */
function newRename(
  old: SshScope,
  next: SshScope,
  languageOf: (glob: string) => Language,
  budget: Budget,
): "none" | "unknown" | readonly [string, string] {
  const globs = [next.sftp?.write, next.sftp?.read, old.sftp?.write, old.sftp?.read];
  const paths = textsOf(
    globs.map((list = []) => list.map(languageOf)),
    MAX_KINDS,
    budget,
  );
  if (paths === "unknown") return "unknown";
  for (const path of paths) {
    for (const path2 of paths) {
      for (const folder of [false, true]) {
        const asked = { ask: "file", op: "rename", path, path2, folder } as const;
        if (authorize(asked, next).ok && !authorize(asked, old).ok) return [path, path2];
      }
    }
  }
  return "none";
}

const NO_FILES = { read: [], write: [] };

/** A folder on the way to what a glob means (`leadsTo` of paths.ts), of which the old globs show nothing. */
function newWay(before: readonly string[], after: readonly string[]): string | undefined {
  const old = compileGlobs(before);
  for (const glob of after) {
    const names = glob.slice(1).split("/");
    const wild = names.findIndex((name) => /[*?]/.test(name));
    const fixed = wild < 0 ? names.length - 1 : wild;
    for (let many = 0; many <= fixed; many++) {
      const path = `/${names.slice(0, many).join("/")}`;
      if (!old.matches(path) && !old.leadsTo(path)) return path;
    }
  }
  return undefined;
}

// ------------------------------------------------------------------------------------------ addresses and variables

const addresses: Covers = (list, text) => {
  if (text.startsWith("/")) return listsSocket(list, text) ? YES : { is: "no" };
  const address = parseAddress(text);
  if (address === undefined) return { is: "unknown" };
  return listsAddress(list, address.host, address.port) ? YES : { is: "no" };
};

const variables: Covers = (list, text) => {
  const [name, open] = text.endsWith("*") ? [text.slice(0, -1), true] : [text, false];
  if (!open && (name === "LANG" || /^LC_[A-Z]{1,20}$/.test(name))) return YES; // these pass always
  const known = list.some((other) =>
    other.endsWith("*") ? name.startsWith(other.slice(0, -1)) : !open && other === name,
  );
  return known ? YES : { is: "no" };
};
