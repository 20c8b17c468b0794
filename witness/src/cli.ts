import { readFileSync } from "node:fs";
import { BlockList, isIP } from "node:net";
import { parseArgs } from "node:util";
import { FormatError } from "@glasskey/verify";
import { errorCode } from "./files.ts";
import { addLog, dropKey, KEY_TYPES, openWitnessFolder, readWitnessFolder, WitnessError } from "./folder.ts";
import { serveWitness } from "./server.ts";

const formsOf = (program: string): string => `Usage: ${program} DIR --listen HOST:PORT [--name NAME]
           [--cert FILE --key FILE | --behind-proxy]
       ${program} add-log DIR VKEY|FILE
       ${program} drop-key DIR VKEY|FILE
       ${program} show DIR
`;

/** How to write it, for a program of that name. */
export const usageOf = (program: string): string => `${formsOf(program)}
Cosigns the checkpoints of logs that it knows, as long as each goes on from the
one before. Run it where the log's operators cannot reach: another account,
another machine, another team.

  DIR                the witness's folder: its key and, for each log, the last
                     checkpoint. Made on first start
  --listen HOST:PORT where to serve POST /add-checkpoint. Only a loopback
                     address may be without TLS
  --name NAME        the witness's name, such as witness.example.org/w1. Needed
                     on first start
  --algorithm NAME   of the key that is made on first start: ed25519 (default)
                     or ml-dsa-44
  --cert, --key FILE PEM files of the TLS certificate and its key
  --behind-proxy     plain HTTP on any address: something in front of it speaks
                     TLS

  add-log            know a log by its verifier key, or one more key of it. A
                     running witness sees it at once
  drop-key           believe a key of a log no more, when it is retired; never
                     the log's last
  show               the witness's key, the logs it knows and what it cosigned
                     last

Exit code: 0 done, 1 failed, 2 the command is not well-formed.
`;

const PROGRAM = "glasskey-witness";

export interface CliOptions {
  /** What the person typed: `glass witness`, or `glasskey-witness` when left out. */
  readonly program?: string;
  /** Ends a witness that serves; SIGINT and SIGTERM when left out. */
  readonly signal?: AbortSignal;
}

/** Runs the command with its arguments; returns the exit code. Writes only through `print` and `complain`. */
export async function runCli(
  args: readonly string[],
  print: (text: string) => void,
  complain: (text: string) => void,
  options: CliOptions = {},
): Promise<0 | 1 | 2> {
  const { program = PROGRAM } = options;
  let command;
  try {
    command = parse(args);
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    // A file that cannot be read is not helped by how to write the command.
    const more =
      error instanceof WitnessError ? "" : `\n${formsOf(program)}\n${program} --help says what each means.\n`;
    complain(`${program}: ${what}\n${more}`);
    return 2;
  }
  try {
    switch (command.verb) {
      case "help":
        print(usageOf(program));
        return 0;
      case "add-log":
        return add(command.folder, command.log, print);
      case "drop-key":
        return drop(command.folder, command.log, print);
      case "show":
        return show(command.folder, program, print);
      default:
        return await serve(command, print, complain, options);
    }
  } catch (error) {
    const expected = error instanceof WitnessError || error instanceof FormatError || errorCode(error) !== "";
    if (!expected) throw error;
    complain(`${program}: ${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  }
}

interface Serve {
  readonly verb: "serve";
  readonly folder: string;
  readonly host: string;
  readonly port: number;
  readonly name: string | undefined;
  readonly keyType: (typeof KEY_TYPES)[number] | undefined;
  readonly tls: { readonly cert: string; readonly key: string } | undefined;
}

type Command =
  | { readonly verb: "help" }
  | { readonly verb: "add-log" | "drop-key"; readonly folder: string; readonly log: string }
  | { readonly verb: "show"; readonly folder: string }
  | Serve;

/** @throws Error for what is no command; its message is for the person who typed it. */
function parse(args: readonly string[]): Command {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      ...{ listen: { type: "string" }, name: { type: "string" }, algorithm: { type: "string" } },
      ...{ cert: { type: "string" }, key: { type: "string" } },
      "behind-proxy": { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return { verb: "help" };
  const [first = "", ...rest] = positionals;
  if (first === "add-log" || first === "drop-key" || first === "show") {
    const { "behind-proxy": proxy, help: _help, ...others } = values;
    if (proxy || Object.keys(others).length > 0) throw new Error(`${first} takes no options`);
    const [folder = "", log = "", ...more] = rest;
    if (folder === "" || more.length > 0 || (first !== "show") !== (log !== "")) {
      throw new Error(
        first === "show" ? "show takes one folder" : `${first} takes a folder, and a key or a file with it`,
      );
    }
    return first === "show" ? { verb: "show", folder } : { verb: first, folder, log };
  }
  if (first === "" || rest.length > 0) throw new Error("give one folder");
  if (values.listen === undefined) throw new Error("say where to listen, such as --listen 127.0.0.1:7480");
  const { host, port } = parseAddress(values.listen);
  if ((values.cert === undefined) !== (values.key === undefined)) throw new Error("--cert and --key go together");
  const tls =
    values.cert === undefined || values.key === undefined
      ? undefined
      : { cert: readFile(values.cert), key: readFile(values.key) };
  if (tls !== undefined && values["behind-proxy"]) throw new Error("--behind-proxy is for plain HTTP; drop one");
  if (tls === undefined && !values["behind-proxy"] && !isLoopback(host)) {
    throw new Error(
      `plain HTTP is for loopback: give --cert and --key, or --behind-proxy if something else speaks TLS`,
    );
  }
  const keyType = KEY_TYPES.find((type) => type === values.algorithm);
  if (values.algorithm !== undefined && keyType === undefined) {
    throw new Error(`--algorithm is one of ${KEY_TYPES.join(", ")}`);
  }
  return { verb: "serve", folder: first, host, port, name: values.name, keyType, tls };
}

/** `127.0.0.1:7480`, `[::1]:7480`, `witness.example.org:443`; an empty host would mean every address, so it is refused. */
function parseAddress(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^:[\]\s]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3] ?? NaN);
  if (host === undefined || !(port <= 65_535)) throw new Error(`"${text}" is not HOST:PORT`);
  return { host, port };
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

function isLoopback(host: string): boolean {
  const family = isIP(host);
  return family === 0 ? host === "localhost" : LOOPBACK.check(host, family === 4 ? "ipv4" : "ipv6");
}

function add(folder: string, log: string, print: (text: string) => void): 0 {
  const { origin, known } = addLog(folder, log.includes("+") ? log : readFile(log));
  print(known ? `${origin} was known; the key is one of its keys now.\n` : `${origin} is known now.\n`);
  return 0;
}

function drop(folder: string, log: string, print: (text: string) => void): 0 {
  const { origin } = dropKey(folder, log.includes("+") ? log : readFile(log));
  print(`A checkpoint of ${origin} with that key's signature alone is not cosigned any more.\n`);
  return 0;
}

function show(folder: string, program: string, print: (text: string) => void): 0 {
  const { vkey, logs } = readWitnessFolder(folder);
  print(`${vkey}\n`);
  for (const { origin, cosigned } of logs) {
    print(
      `${origin}: ${cosigned === undefined ? "nothing cosigned yet" : `${cosigned.checkpoint.size} entries cosigned`}\n`,
    );
  }
  if (logs.length === 0) print(noLogs(folder, program));
  return 0;
}

function noLogs(folder: string, program: string): string {
  return (
    "It knows no log yet, so it cosigns nothing. Next, with the verifier key that\n" +
    "Glasskey prints when it starts (glass log keys, too), from its operator:\n" +
    `  ${program} add-log ${folder} VKEY\n`
  );
}

async function serve(
  { folder, host, port, name, keyType, tls }: Serve,
  print: (text: string) => void,
  complain: (text: string) => void,
  { signal, program = PROGRAM }: CliOptions,
): Promise<0> {
  const witness = openWitnessFolder({ folder, name, keyType });
  try {
    const logs = witness.logs(); // a damaged one is said now, and not at the first request
    const server = await serveWitness({
      ...{ witness, host, port, tls },
      onProblem: (error) => complain(`${program}: ${error instanceof Error ? error.message : String(error)}\n`),
    });
    const url = `${tls === undefined ? "http" : "https"}://${host.includes(":") ? `[${host}]` : host}:${server.port}`;
    const { vkey } = witness.signer;
    print(
      `This witness's key: ${vkey}\n\nIn glasskey.yaml of the log, with the address that the log reaches it by:\n\n`,
    );
    print(`log:\n  witnesses:\n    need: 1\n    of:\n      - key: ${vkey}\n        url: ${url}\n\n`);
    print(logs.length === 0 ? noLogs(folder, program) : `It knows ${logs.map(({ origin }) => origin).join(", ")}.\n`);
    print(`Listening on ${url}\n`);
    await untilStopped(signal);
    await server.stop();
    return 0;
  } finally {
    witness.close();
  }
}

async function untilStopped(signal: AbortSignal | undefined): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const stop = (): void => resolve();
  if (signal === undefined) for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(name, stop);
  else if (signal.aborted) return;
  else signal.addEventListener("abort", stop, { once: true });
  await promise;
}

function readFile(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    const code = errorCode(error);
    const why = code === "ENOENT" ? "there is no such file" : code === "EACCES" ? "you may not" : String(error);
    throw new WitnessError(`cannot read ${file}: ${why}`);
  }
}
