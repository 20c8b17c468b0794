import { generateKeyPairSync, hash, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  FormatError,
  formatCosignerKey,
  isKeyName,
  openCosignatures,
  parseCheckpointText,
  parseSignerKey,
  parseVerifierKey,
  parseVerifierKeys,
  type Checkpoint,
  type NoteSigner,
  type NoteVerifier,
} from "@glasskey/verify";
import { lockFolder, nodeFiles, syncFolder, type Files, type Lock } from "./files.ts";

/**
 * A witness's folder:
 *
 *   witness.key                 its private key, in one line, mode 0600
 *   logs/<SHA-256 of origin>/   one for each log that it knows
 *     vkeys                     the log's verifier keys, one to a line
 *     cosigned                  the newest checkpoint that was cosigned; empty before the first
 *     conflict                  a checkpoint of the same size with another root, if the log ever signed one
 *   lock                        held while a witness runs on the folder
 */
export interface WitnessFolder {
  readonly signer: NoteSigner;
  /** The log of this origin, as its files are now; undefined when it is not known. @throws WitnessError when damaged. */
  log(origin: string): KnownLog | undefined;
  logs(): readonly KnownLog[];
  close(): void;
}

export interface KnownLog {
  readonly origin: string;
  readonly vkeys: readonly NoteVerifier[];
  /** What was cosigned last, with its note. */
  readonly cosigned: { readonly checkpoint: Checkpoint; readonly note: string } | undefined;
  /** Makes this note the last that was cosigned. On the disk on return. */
  record(note: string): void;
  /** Keeps a note that the log must never have signed; only the first is kept. */
  keepConflict(note: string): void;
}

/** Something that the operator must do; the message says what. */
export class WitnessError extends Error {
  override readonly name = "WitnessError";
}

const KEY_FILE = "witness.key";
const [VKEYS, COSIGNED, CONFLICT] = ["vkeys", "cosigned", "conflict"];

/** Kinds of keys that a witness can be started with. */
export const KEY_TYPES = ["ed25519", "ml-dsa-44"] as const;
export type KeyType = (typeof KEY_TYPES)[number];

export interface OpenOptions {
  readonly folder: string;
  /** The witness's key name, such as `witness.example.org/w1`. Needed once, when the key is made. */
  readonly name?: string | undefined;
  /** For the key that is made; Ed25519 when left out. */
  readonly keyType?: KeyType | undefined;
  readonly files?: Files;
  readonly now?: () => number;
}

/**
 * Takes the folder for this process, making folder and key if there are none.
 * @throws WitnessError when it is in use, damaged, or named otherwise.
 */
export function openWitnessFolder(options: OpenOptions): WitnessFolder {
  const { folder, name } = options;
  if (name !== undefined && !isKeyName(name)) {
    throw new WitnessError(`"${name}" cannot name a witness: no spaces, no plus signs. Write it like example.org/w1`);
  }
  if (name === undefined && !existsSync(join(folder, KEY_FILE))) {
    throw new WitnessError(`there is no witness in ${folder} yet: give its name with --name, such as example.org/w1`);
  }
  mkdirSync(join(folder, "logs"), { recursive: true, mode: 0o700 });
  const lock = lockFolder(join(folder, "lock"));
  if (lock === undefined) {
    throw new WitnessError(`a witness runs on ${folder} already: stop it, or give this one a folder of its own`);
  }
  try {
    return open(options, lock);
  } catch (error) {
    lock.release();
    throw error;
  }
}

function open({ folder, name, keyType, files = nodeFiles, now }: OpenOptions, lock: Lock): WitnessFolder {
  if (files.read(join(folder, KEY_FILE)) === undefined) {
    if (name === undefined) throw new WitnessError(`${KEY_FILE} is gone from ${folder}`);
    // A new key under an old name would not be believed, and old state under a new key helps nobody.
    if (logsThatCosigned(folder, files).length > 0) {
      throw new WitnessError(
        `${folder} has the state of a witness whose ${KEY_FILE} is gone: begin in an empty folder`,
      );
    }
    const { privateKey } = keyType === "ml-dsa-44" ? generateKeyPairSync("ml-dsa-44") : generateKeyPairSync("ed25519");
    files.replace(join(folder, KEY_FILE), `${formatCosignerKey(name, privateKey)}\n`, 0o600);
  }
  const signer = readKey(folder, files, now);
  if (name !== undefined && name !== signer.name) {
    throw new WitnessError(`the witness in ${folder} is called ${signer.name}, and not ${name}`);
  }
  const log = (origin: string): KnownLog | undefined => readLog(logFolder(folder, origin), origin, signer.vkey, files);
  return {
    ...{ signer, log },
    logs: () => originsOf(folder, files).flatMap((origin) => log(origin) ?? []),
    close: () => lock.release(),
  };
}

/** What `show` tells of a folder, whether a witness runs on it or not. */
export function readWitnessFolder(folder: string): { vkey: string; name: string; logs: readonly KnownLog[] } {
  const { vkey, name } = readKey(folder, nodeFiles);
  const origins = originsOf(folder, nodeFiles);
  return {
    ...{ vkey, name },
    logs: origins.flatMap((origin) => readLog(logFolder(folder, origin), origin, vkey, nodeFiles) ?? []),
  };
}

function readKey(folder: string, files: Files, now?: () => number): NoteSigner {
  const text = files.read(join(folder, KEY_FILE));
  if (text === undefined) throw new WitnessError(`there is no witness in ${folder}: ${KEY_FILE} is missing`);
  try {
    const signer = parseSignerKey(text.trim(), now);
    if (parseVerifierKey(signer.vkey).roles.includes("witness")) return signer;
  } catch {
    // said below: the parser's message must not come near the key
  }
  throw new WitnessError(`${KEY_FILE} in ${folder} is damaged, or not the key of a witness`);
}

function readLog(dir: string, origin: string, own: string, files: Files): KnownLog | undefined {
  const keys = files.read(join(dir, VKEYS));
  if (keys === undefined) return undefined;
  const damaged = (why: string): WitnessError =>
    new WitnessError(
      `what this witness keeps of ${origin} in ${dir} is damaged: ${why}. It cosigns nothing of that log`,
    );
  const note = files.read(join(dir, COSIGNED));
  // Made empty when the log was added, so a missing one was lost: beginning again could mean signing a second history.
  if (note === undefined) throw damaged(`${COSIGNED} is missing`);
  try {
    const vkeys = parseVerifierKeys(keys);
    if (vkeys.some((key) => key.name !== origin)) throw damaged("its keys are of another log");
    return {
      ...{ origin, vkeys },
      cosigned: note === "" ? undefined : { checkpoint: openOwn(note, origin, own), note },
      record: (next) => files.replace(join(dir, COSIGNED), next, 0o600),
      keepConflict(other) {
        if (files.read(join(dir, CONFLICT)) === undefined) files.replace(join(dir, CONFLICT), other, 0o600);
      },
    };
  } catch (error) {
    if (error instanceof WitnessError) throw error;
    throw damaged(error instanceof Error ? error.message : String(error));
  }
}

/** By this witness's own cosignature: the log's key of that time may be retired. */
function openOwn(note: string, origin: string, vkey: string): Checkpoint {
  if (openCosignatures(note, [parseVerifierKey(vkey)]).length === 0) {
    throw new FormatError(`${COSIGNED} has no cosignature by this witness`);
  }
  const checkpoint = parseCheckpointText(note.slice(0, note.lastIndexOf("\n\n") + 1));
  if (checkpoint.origin !== origin) throw new FormatError(`${COSIGNED} is of another log`);
  return checkpoint;
}

/**
 * Lets a witness know a log, or one more key of a log that it knows. A running witness sees it at the next request.
 * @returns the log's origin, and whether it was known.
 * @throws FormatError for what is no log's verifier key; WitnessError when there is no witness in the folder.
 */
export function addLog(folder: string, text: string): { origin: string; known: boolean } {
  const keys = parseVerifierKeys(text);
  const origin = keys[0]?.name ?? "";
  readKey(folder, nodeFiles);
  const dir = logFolder(folder, origin);
  const before = nodeFiles.read(join(dir, VKEYS));
  if (before !== undefined) {
    const all = new Set([...parseVerifierKeys(before), ...keys].map(({ vkey }) => vkey));
    nodeFiles.replace(join(dir, VKEYS), [...all].map((vkey) => `${vkey}\n`).join(""), 0o600);
    return { origin, known: true };
  }
  // Both files appear at once, so a log without state is always one whose state was lost.
  const fresh = join(folder, `new-${randomUUID()}`);
  mkdirSync(fresh, { mode: 0o700 });
  try {
    writeFileSync(join(fresh, COSIGNED), "", { mode: 0o600 });
    nodeFiles.replace(join(fresh, VKEYS), keys.map(({ vkey }) => `${vkey}\n`).join(""), 0o600);
    renameSync(fresh, dir);
    syncFolder(join(folder, "logs"));
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
  return { origin, known: false };
}

/**
 * Believes a key of a log no more, such as a retired one: whoever has it could have another history cosigned. What was
 * cosigned is kept. A running witness sees it at once.
 * @throws FormatError for what is no log's verifier key; WitnessError where it is not known, or the log's only one.
 */
export function dropKey(folder: string, text: string): { origin: string } {
  const { name: origin, vkey } = parseVerifierKey(text.trim());
  readKey(folder, nodeFiles);
  const path = join(logFolder(folder, origin), VKEYS);
  const known = nodeFiles.read(path);
  const before = known === undefined ? [] : parseVerifierKeys(known).map((key) => key.vkey);
  if (!before.includes(vkey)) throw new WitnessError(`that key of ${origin} is not known here`);
  const staying = before.filter((key) => key !== vkey);
  if (staying.length === 0) throw new WitnessError(`that is the only key of ${origin}: add its new one first`);
  nodeFiles.replace(path, staying.map((key) => `${key}\n`).join(""), 0o600);
  return { origin };
}

/** The SHA-256 of the origin is what tlog-witness calls a log by; an origin itself may have slashes and dots. */
function logFolder(folder: string, origin: string): string {
  return join(folder, "logs", hash("sha256", origin));
}

function originsOf(folder: string, files: Files): readonly string[] {
  const names = readdirSync(join(folder, "logs")).filter((name) => /^[0-9a-f]{64}$/.test(name));
  return names
    .flatMap((name) => {
      const keys = files.read(join(folder, "logs", name, VKEYS));
      const origin = keys === undefined ? undefined : parseVerifierKeys(keys)[0]?.name;
      return origin === undefined ? [] : [origin];
    })
    .toSorted();
}

function logsThatCosigned(folder: string, files: Files): readonly string[] {
  return originsOf(folder, files).filter(
    (origin) => (files.read(join(logFolder(folder, origin), COSIGNED)) ?? "") !== "",
  );
}
