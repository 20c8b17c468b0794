import { FormatError, leafHash, parseBundle } from "@glasskey/verify";
import { GlassError } from "../core/errors.ts";
import type { ObjectStore } from "../objects/object-store.ts";

/** The bytes of a path that fit: what is there at first sight, else the oldest version that does. Undefined: none does. */
export async function fitting(
  source: ObjectStore,
  path: string,
  maxBytes: number,
  fits: (bytes: Buffer) => boolean,
): Promise<Buffer | undefined> {
  const plain = await bounded(source, path, maxBytes);
  if (plain !== undefined && fits(plain)) return plain;
  for await (const bytes of olderVersions(source, path, maxBytes)) if (fits(bytes)) return bytes;
  return undefined;
}

/** Every version of a path, oldest first; of one that keeps no versions, nothing. */
export async function* olderVersions(source: ObjectStore, path: string, maxBytes: number): AsyncGenerator<Buffer> {
  for (const { version, deleted } of await source.versions(path)) {
    if (deleted || version === "") continue;
    const bytes = await bounded(source, path, maxBytes, version);
    if (bytes !== undefined) yield bytes;
  }
}

/** What is longer than it can be is not what was stored, and is as good as nothing. */
export async function bounded(
  source: ObjectStore,
  path: string,
  maxBytes: number,
  version?: string,
): Promise<Buffer | undefined> {
  try {
    return await source.get(path, maxBytes, version);
  } catch (error) {
    if (error instanceof GlassError && error.code === "integrity") return undefined;
    throw error;
  }
}

/** The leaf hashes of a bundle of that width; undefined when it is none. */
export function leavesOf(bytes: Uint8Array, width: number): Buffer | undefined {
  try {
    return Buffer.concat(parseBundle(bytes, width).map((entry) => leafHash(entry)));
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}
