import canonicalize from "canonicalize";
import { gunzipSync, gzipSync } from "node:zlib";
import { describe, GlassError } from "../core/errors.ts";
import { bundleHash } from "../playbooks/files.ts";

/** The files that make up a policy: path in the policy folder, with `/`, to text. */
export type BundleFiles = ReadonlyMap<string, string>;

export const MAX_BUNDLE_FILES = 4_000;
export const MAX_BUNDLE_BYTES = 32 * 1024 * 1024;
const MAX_JSON_BYTES = 2 * MAX_BUNDLE_BYTES; // base64 adds a third, names a little

/** Canonical JSON of path to base64, compressed: what the store keeps. */
export function packBundle(files: BundleFiles): Buffer {
  let size = 0;
  const entries = [...files].map(([path, text]) => {
    const bytes = Buffer.from(text, "utf8");
    size += bytes.length;
    return [path, bytes.toString("base64")] as const;
  });
  if (entries.length > MAX_BUNDLE_FILES || size > MAX_BUNDLE_BYTES) throw tooLarge();
  return gzipSync(canonicalize(Object.fromEntries(entries)) ?? "{}");
}

/** The inverse. @throws GlassError `integrity` when it is not what {@link packBundle} made under that hash. */
export function unpackBundle(hash: string, packed: Uint8Array): BundleFiles {
  let files: BundleFiles;
  try {
    const json = JSON.parse(gunzipSync(packed, { maxOutputLength: MAX_JSON_BYTES }).toString("utf8")) as unknown;
    if (typeof json !== "object" || json === null || Array.isArray(json)) throw new Error("it is no map of files");
    files = new Map(
      Object.entries(json).map(([path, base64]) => [path, Buffer.from(String(base64), "base64").toString("utf8")]),
    );
  } catch (cause) {
    throw damaged(hash, describe(cause), cause);
  }
  if (bundleHash(files) !== hash) throw damaged(hash, "its files have another hash");
  return files;
}

function tooLarge(): GlassError {
  return new GlassError(
    "config_invalid",
    `a policy has at most ${MAX_BUNDLE_FILES} files and ${MAX_BUNDLE_BYTES / 1024 / 1024} MiB`,
  );
}

function damaged(hash: string, why: string, cause?: unknown): GlassError {
  return new GlassError("integrity", `bundle ${hash.slice(0, 12)} in the store is damaged: ${why}`, {
    next: "Somebody or something changed table bundles. Find out who, then activate a good bundle with: glass policy reload",
    cause,
  });
}
