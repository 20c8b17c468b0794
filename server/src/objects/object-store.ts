import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";

/** Bytes as a store holds them: one version of one path. */
export interface StoredObject {
  /** What the store calls this version; empty where it keeps only one (a folder, a bucket without versions). */
  readonly version: string;
  readonly bytes: number;
  /** Until when nobody can delete or change it; undefined where nothing holds it. */
  readonly lock: Lock | undefined;
}

export interface Lock {
  /** As the store words it: only `COMPLIANCE` holds against everybody. */
  readonly mode: string;
  readonly until: Date;
}

/** One version of a path, or the mark that it was deleted. */
export interface ObjectVersion {
  readonly version: string;
  readonly deleted: boolean;
  /** Whether it is what a reader gets who names no version. */
  readonly latest: boolean;
}

/**
 * Where files lie that are written once: a folder, or a bucket of S3. Paths are relative, with slashes, in the spelling of
 * {@link checkedPath}. What is read back is input: whoever can write there may have.
 */
export interface ObjectStore {
  /** What people call it, such as `s3://bucket/prefix` or `/srv/archive`. Has no secret in it. */
  readonly place: string;
  /**
   * Looks whether it can hold objects as it must; with `locked`, so that nobody can delete them before their time.
   * @throws GlassError `config_invalid` that says what to do.
   */
  preflight(locked: boolean): Promise<void>;
  /**
   * Writes an object once, durable when it returns, and reads back what the store made of it. Again with the same bytes:
   * the same. Where `retainMs` is given, the store must say that it holds this version that long, by its own clock.
   * @throws GlassError `integrity` when other bytes are there already and cannot be passed over, or when what is read back
   *   is not what was asked for.
   */
  put(path: string, bytes: Uint8Array, options?: { retainMs?: number | undefined }): Promise<StoredObject>;
  /** Writes an object whatever is there, as a whole or not at all. For what is not an archive. */
  replace(path: string, bytes: Uint8Array): Promise<void>;
  /** Undefined where there is none. @throws GlassError `integrity` for one of more than `maxBytes`, before it is read. */
  get(path: string, maxBytes: number, version?: string): Promise<Buffer | undefined>;
  /** What holds a version; undefined where there is none. */
  head(path: string, version?: string): Promise<StoredObject | undefined>;
  /** The versions of a path and the marks that delete it, oldest first; at most {@link MAX_VERSIONS}, the oldest ones. */
  versions(path: string): Promise<ObjectVersion[]>;
  /** Paths below a folder at any depth, also those that a mark hides; in no order, each once. */
  list(folder: string): AsyncIterable<string>;
  /** Lets go of connections. */
  close(): void;
}

/** More than this on one path is somebody's attempt to be a nuisance. */
export const MAX_VERSIONS = 1_000;
const MAX_PATH_BYTES = 512;

/**
 * A path with no way out: segments of letters, digits, dots, dashes and underscores that do not begin with a dot.
 * @throws GlassError `internal`: paths are made by Glasskey, not by people.
 */
export function checkedPath(path: string): string {
  if (isObjectPath(path)) return path;
  throw new GlassError("internal", `not the path of an object: ${JSON.stringify(path.slice(0, 100))}`);
}

export function isObjectPath(path: string): boolean {
  return path.length <= MAX_PATH_BYTES && /^[A-Za-z0-9_][A-Za-z0-9._-]*(?:\/[A-Za-z0-9_][A-Za-z0-9._-]*)*$/.test(path);
}

export function sha256Hex(bytes: Uint8Array): string {
  return sha256(bytes).toString("hex");
}

/** Other bytes lie where something was to be written once. */
export function otherBytes(place: string, path: string): GlassError {
  return new GlassError("integrity", `${place} has other bytes at ${path} than the log has`, {
    next: "Somebody else wrote there, or two installations share the place. Give this one a place of its own, and find out who wrote.",
  });
}

export function tooLong(place: string, path: string, bytes: number, maxBytes: number): GlassError {
  return new GlassError("integrity", `${path} in ${place} has ${bytes} bytes, and at most ${maxBytes} belong there`);
}
