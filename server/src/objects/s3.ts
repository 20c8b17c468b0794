import { hash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Readable } from "node:stream";
import type * as S3 from "@aws-sdk/client-s3";
import { equalSecret } from "../core/bytes.ts";
import { formatDuration } from "../core/duration.ts";
import { GlassError } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import type { S3Config } from "./config.ts";
import {
  checkedPath,
  isObjectPath,
  MAX_VERSIONS,
  otherBytes,
  sha256Hex,
  tooLong,
  type ObjectStore,
  type ObjectVersion,
  type StoredObject,
} from "./object-store.ts";
import { absent, createFaults } from "./s3-faults.ts";

type Sdk = typeof S3;

const CONNECT_MS = 5_000;
const REQUEST_MS = 60_000; // a bundle of 16 MiB over a poor line
const OPERATION_MS = 150_000; // all attempts of one request
const ATTEMPTS = 3;
const CONFLICT_TRIES = 3; // two processes that write the same object in the same moment
/** How far the service's clock may be from ours, and how much it may round, before a retention counts as shortened. */
const CLOCK_SLACK_MS = 10 * 60_000;
const ASKED_AT_MOST = 3; // in a day: how often an object is written again whose lock is not what was asked for
const SAME_TIME_MS = 24 * 3_600_000;
const LOCKED_FOR = "is locked for"; // said of the right bytes in the right mode alone
const MAX_PAGES = 100_000; // 100 million objects

/**
 * Objects in S3 (https://docs.aws.amazon.com/AmazonS3/latest/API/) or a service that speaks its protocol. Writes carry
 * their SHA-256 and `If-None-Match: *`; with `retainMs` also Object Lock in compliance mode, and what the service then
 * says of that very version is read back. Redirects are not followed, and nothing but keys is taken from the environment.
 * @param resolveSecret reads a reference, at the first request.
 */
export function s3Store(config: S3Config, resolveSecret: (reference: string) => Secret): ObjectStore {
  const { bucket, prefix } = config;
  const place = `s3://${bucket}${prefix === "" ? "" : `/${prefix}`}`;
  const keyOf = (path: string): string => (prefix === "" ? checkedPath(path) : `${prefix}/${checkedPath(path)}`);
  const faults = createFaults(place);
  let connected: Promise<{ sdk: Sdk; client: S3.S3Client }> | undefined;

  const connect = async (): Promise<{ sdk: Sdk; client: S3.S3Client }> => {
    const sdk = await import("@aws-sdk/client-s3"); // not at the start: it takes a while, and most installations have no S3
    const { credentials } = config;
    const keys =
      credentials === "standard"
        ? {}
        : {
            credentials: {
              accessKeyId: faults.hide(resolveSecret(credentials.accessKey)).reveal(),
              secretAccessKey: faults.hide(resolveSecret(credentials.secretKey)).reveal(),
            },
          };
    const ca = config.ca === undefined ? {} : { ca: readFileSync(config.ca, "utf8") };
    const client = new sdk.S3Client({
      ...{ region: config.region, endpoint: config.endpoint, forcePathStyle: config.pathStyle, maxAttempts: ATTEMPTS },
      ...{ followRegionRedirects: false, ...keys },
      requestHandler: {
        ...{ connectionTimeout: CONNECT_MS, requestTimeout: REQUEST_MS, throwOnRequestTimeout: true },
        httpsAgent: { maxSockets: 16, keepAlive: true, rejectUnauthorized: true, ...ca },
        httpAgent: { maxSockets: 16, keepAlive: true },
      },
    });
    return { sdk, client };
  };

  /** Runs one request; what goes wrong becomes a GlassError without secrets. */
  const ask = async <T>(
    what: string,
    request: (sdk: Sdk, client: S3.S3Client, options: { abortSignal: AbortSignal }) => Promise<T>,
  ): Promise<T> => {
    connected ??= connect();
    const attempt = connected;
    try {
      const { sdk, client } = await attempt;
      return await request(sdk, client, { abortSignal: AbortSignal.timeout(OPERATION_MS) });
    } catch (error) {
      if (error instanceof GlassError && error.code === "config_invalid" && connected === attempt) {
        connected = undefined; // a secret's file may be there next time
      }
      throw faults.of(what, error);
    }
  };

  const head = async (
    path: string,
    version?: string,
  ): Promise<(StoredObject & { sha256: string | undefined; storedAt: Date | undefined }) | undefined> =>
    ask(`reading the head of ${path}`, async (sdk, client, options) => {
      try {
        const found = await client.send(
          new sdk.HeadObjectCommand({
            ...{ Bucket: bucket, Key: keyOf(path), ChecksumMode: "ENABLED" as const },
            ...(version === undefined || version === "" ? {} : { VersionId: version }),
          }),
          options,
        );
        const { ObjectLockMode: mode, ObjectLockRetainUntilDate: until, ChecksumSHA256: checksum } = found;
        return {
          version: found.VersionId ?? "",
          bytes: found.ContentLength ?? 0,
          lock: mode === undefined || until === undefined ? undefined : { mode, until },
          sha256: checksum === undefined ? undefined : Buffer.from(checksum, "base64").toString("hex"),
          storedAt: found.LastModified,
        };
      } catch (error) {
        if (absent(error)) return undefined;
        throw error;
      }
    });

  const get: ObjectStore["get"] = async (path, maxBytes, version) =>
    ask(`reading ${path}`, async (sdk, client, options) => {
      let found;
      try {
        found = await client.send(
          new sdk.GetObjectCommand({
            ...{ Bucket: bucket, Key: keyOf(path) },
            ...(version === undefined || version === "" ? {} : { VersionId: version }),
          }),
          options,
        );
      } catch (error) {
        if (absent(error)) return undefined;
        throw error;
      }
      const body = found.Body as Readable | undefined;
      const length = found.ContentLength ?? 0;
      if (body === undefined) return Buffer.alloc(0);
      try {
        if (length > maxBytes) throw tooLong(place, path, length, maxBytes);
        const parts: Buffer[] = [];
        let bytes = 0;
        for await (const part of body as AsyncIterable<Buffer>) {
          bytes += part.length;
          if (bytes > maxBytes) throw tooLong(place, path, bytes, maxBytes);
          parts.push(part);
        }
        if (bytes !== length) throw new Error(`the answer ended after ${bytes} of ${length} bytes`);
        return Buffer.concat(parts, bytes);
      } finally {
        body.destroy();
      }
    });

  const pages = async function* (folderOrKey: string): AsyncGenerator<{
    versions: { key: string; version: string; latest: boolean; atMs: number }[];
    marks: { key: string; version: string; latest: boolean; atMs: number }[];
  }> {
    let after: { KeyMarker?: string; VersionIdMarker?: string } = {};
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const marker = after;
      const found = await ask(`listing ${folderOrKey}`, (sdk, client, options) =>
        client.send(new sdk.ListObjectVersionsCommand({ Bucket: bucket, Prefix: folderOrKey, ...marker }), options),
      );
      const rows = (from: typeof found.DeleteMarkers) =>
        (from ?? []).map((row) => ({
          ...{ key: row.Key ?? "", version: row.VersionId ?? "", latest: row.IsLatest === true },
          atMs: row.LastModified?.getTime() ?? 0,
        }));
      yield { versions: rows(found.Versions), marks: rows(found.DeleteMarkers) };
      if (found.IsTruncated !== true) return;
      after = {
        ...(found.NextKeyMarker === undefined ? {} : { KeyMarker: found.NextKeyMarker }),
        ...(found.NextVersionIdMarker === undefined ? {} : { VersionIdMarker: found.NextVersionIdMarker }),
      };
      const still = after.KeyMarker === marker.KeyMarker && after.VersionIdMarker === marker.VersionIdMarker;
      if (after.KeyMarker === undefined || still) break; // it would give the same page for ever
    }
    throw new GlassError("integrity", `${place} does not come to an end when ${folderOrKey} is listed`);
  };

  const versions = async (path: string): Promise<ObjectVersion[]> => {
    const key = keyOf(path);
    let found: { version: string; deleted: boolean; latest: boolean; atMs: number }[] = [];
    for await (const page of pages(key)) {
      const own = (rows: typeof page.versions, deleted: boolean) =>
        rows.filter((row) => row.key === key).map(({ version, latest, atMs }) => ({ version, deleted, latest, atMs }));
      // Each page has newer before older; of one second, versions come before marks, so that a mark is on top of what it hides.
      const newestFirst = [...own(page.marks, true), ...own(page.versions, false)];
      found.push(...newestFirst.toSorted((a, b) => b.atMs - a.atMs));
      if (found.length > 2 * MAX_VERSIONS) found = found.slice(-MAX_VERSIONS);
      if ([...page.versions, ...page.marks].some((row) => row.key > key)) break; // only longer names follow
    }
    return (
      found
        .slice(-MAX_VERSIONS)
        .toReversed()
        // Where no versions are kept, the one that there is has the name "null".
        .map(({ version, deleted, latest }) => ({
          version: latest && version === "null" ? "" : version,
          deleted,
          latest,
        }))
    );
  };

  const send = async (path: string, bytes: Uint8Array, once: boolean, until: Date | undefined): Promise<string> =>
    ask(`writing ${path}`, async (sdk, client, options) => {
      const written = await client.send(
        new sdk.PutObjectCommand({
          ...{ Bucket: bucket, Key: keyOf(path), Body: bytes, ContentLength: bytes.length },
          ...{ ContentType: "application/octet-stream", ChecksumAlgorithm: "SHA256" as const },
          ContentMD5: hash("md5", bytes, "base64"), // some services want it of objects with a lock, beside the better one
          ChecksumSHA256: Buffer.from(sha256Hex(bytes), "hex").toString("base64"),
          ...(once ? { IfNoneMatch: "*" } : {}),
          ...(until === undefined ? {} : { ObjectLockMode: "COMPLIANCE" as const, ObjectLockRetainUntilDate: until }),
        }),
        options,
      );
      return written.VersionId ?? "";
    });

  /** What is wrong with a version that was written, or found where it was to be written; undefined: nothing. */
  const fault = async (
    path: string,
    version: string,
    bytes: Uint8Array,
    retainMs: number | undefined,
  ): Promise<{ stored: StoredObject; wrong: string | undefined }> => {
    const found = await head(path, version);
    if (found === undefined) {
      return { stored: { version, bytes: 0, lock: undefined }, wrong: "is not there when it is read back" };
    }
    const stored: StoredObject = { version: found.version, bytes: found.bytes, lock: found.lock };
    if (version !== "" && found.version !== version)
      return { stored, wrong: "is another version when it is read back" };
    let sha256 = found.sha256;
    if (found.bytes === bytes.length) {
      const read = sha256 === undefined ? await get(path, bytes.length, version) : undefined;
      sha256 ??= read === undefined ? "" : sha256Hex(read);
    }
    if (found.bytes !== bytes.length || !equalSecret(sha256 ?? "", sha256Hex(bytes))) {
      return { stored, wrong: "has other bytes when it is read back" };
    }
    if (retainMs === undefined) return { stored, wrong: undefined };
    if (found.version === "") return { stored, wrong: "has no version: the bucket does not keep versions" };
    if (found.lock === undefined) return { stored, wrong: "is not locked" };
    if (found.lock.mode !== "COMPLIANCE")
      return { stored, wrong: `is locked in ${found.lock.mode} mode, not COMPLIANCE` };
    // Counted from the service's own time: where the clocks differ, the lock is shorter than it looks from here.
    const heldMs = found.lock.until.getTime() - (found.storedAt?.getTime() ?? Date.now());
    const short = heldMs < retainMs - CLOCK_SLACK_MS;
    const asked = formatDuration(retainMs);
    return {
      stored,
      wrong: short ? `${LOCKED_FOR} ${formatDuration(heldMs)} by its clock, and not for ${asked}` : undefined,
    };
  };

  const notAsAsked = (path: string, wrong: string): GlassError =>
    new GlassError("integrity", `${path} in ${place} ${wrong}`, {
      next: "Look at the bucket's settings, at this machine's clock, and at who else may write there.",
    });

  const store: ObjectStore = {
    place,

    async preflight(locked) {
      if (!locked) {
        await ask("looking at the bucket", (sdk, client, options) =>
          client.send(new sdk.ListObjectsV2Command({ Bucket: bucket, MaxKeys: 1 }), options),
        );
        return;
      }
      const unfit = (why: string): GlassError =>
        new GlassError("config_invalid", `the bucket ${bucket} ${why}`, {
          next: "Make a bucket with versioning and Object Lock enabled (they cannot be missing later), without a default in governance mode, and name it in glasskey.yaml.",
        });
      const versioning = await ask("asking for the bucket's versioning", (sdk, client, options) =>
        client.send(new sdk.GetBucketVersioningCommand({ Bucket: bucket }), options),
      );
      if (versioning.Status !== "Enabled") throw unfit("does not keep versions");
      const lock = await ask("asking for the bucket's Object Lock", async (sdk, client, options) => {
        try {
          return await client.send(new sdk.GetObjectLockConfigurationCommand({ Bucket: bucket }), options);
        } catch (error) {
          if (absent(error)) return undefined; // ObjectLockConfigurationNotFoundError
          throw error;
        }
      });
      if (lock?.ObjectLockConfiguration?.ObjectLockEnabled !== "Enabled") throw unfit("has no Object Lock");
    },

    async put(path, bytes, { retainMs } = {}) {
      const until = (): Date | undefined => (retainMs === undefined ? undefined : new Date(Date.now() + retainMs));
      const checked = async (version: string): Promise<StoredObject> => {
        const { stored, wrong } = await fault(path, version, bytes, retainMs);
        if (wrong === undefined) return stored;
        throw notAsAsked(path, wrong);
      };
      for (let attempt = 1; ; attempt += 1) {
        try {
          return await checked(await send(path, bytes, true, until()));
        } catch (error) {
          const status = faults.statusOf(error);
          if (status === 409 && attempt < CONFLICT_TRIES) continue;
          if (status !== 412 && status !== 409) throw error;
        }
        // It is there: from before a crash, from another process, or from a stranger.
        let asked = 0;
        for (const { version, deleted } of await versions(path)) {
          if (deleted) continue;
          const { stored, wrong } = await fault(path, version, bytes, retainMs);
          if (wrong === undefined) return stored;
          // Ours, for this very time, and still too short: who asks again gets one more of them, which nobody can delete.
          const ours = wrong.startsWith(LOCKED_FOR);
          const sameTime = (stored.lock?.until.getTime() ?? 0) > Date.now() + (retainMs ?? 0) - SAME_TIME_MS;
          if (ours && sameTime && (asked += 1) >= ASKED_AT_MOST) throw notAsAsked(path, wrong);
        }
        // Without versions, to write would be to overwrite.
        if (retainMs === undefined) throw otherBytes(place, path);
        return checked(await send(path, bytes, false, until()));
      }
    },

    async replace(path, bytes) {
      const { wrong } = await fault(path, await send(path, bytes, false, undefined), bytes, undefined);
      if (wrong !== undefined) throw new GlassError("integrity", `${path} in ${place} ${wrong}`);
    },

    get,
    head,
    versions,

    async *list(folder) {
      const below = `${keyOf(folder)}/`;
      const strip = prefix === "" ? 0 : prefix.length + 1;
      let last = "";
      for await (const page of pages(below)) {
        const names = new Set([...page.versions, ...page.marks].map((row) => row.key));
        for (const key of [...names].toSorted()) {
          if (key <= last || !key.startsWith(below)) continue;
          last = key;
          const path = key.slice(strip);
          if (isObjectPath(path)) yield path;
        }
      }
    },

    close() {
      void connected?.then(
        ({ client }) => client.destroy(),
        () => {},
      );
      connected = undefined;
    },
  };
  return store;
}
