import { join, sep } from "node:path";
import { z } from "zod";
import { formatDuration, LONGEST_KEEP_MS, parseDuration } from "../core/duration.ts";
import { describe } from "../core/errors.ts";
import { placeS3, S3_KEYS, s3Schema, type S3Config } from "../objects/config.ts";

/** Where files go that are written once. */
export type PlaceConfig = { readonly kind: "folder"; readonly folder: string } | ({ readonly kind: "s3" } & S3Config);

export interface ArchiveConfig {
  readonly to: PlaceConfig;
  /** How long nobody may delete what is archived: the log, and the recordings. */
  readonly retainMs: number;
  readonly recordingsRetainMs: number;
  /** A dated checkpoint at least this often. */
  readonly everyMs: number;
}

const DAY_MS = 24 * 3_600_000;
const [LEAST_EVERY_MS, MOST_EVERY_MS] = [60_000, DAY_MS];

const retain = z.string().transform((text, context): number => {
  try {
    const ms = parseDuration(text, LONGEST_KEEP_MS);
    if (ms >= DAY_MS) return ms;
    context.addIssue({ code: "custom", message: "must be a day at least, such as 400d" });
  } catch (error) {
    context.addIssue({ code: "custom", message: describe(error) });
  }
  return z.NEVER;
});

const every = z.string().transform((text, context): number => {
  try {
    const ms = parseDuration(text);
    if (ms >= LEAST_EVERY_MS && ms <= MOST_EVERY_MS) return ms;
    const range = `${formatDuration(LEAST_EVERY_MS)} to ${formatDuration(MOST_EVERY_MS)}`;
    context.addIssue({ code: "custom", message: `must be ${range}` });
  } catch (error) {
    context.addIssue({ code: "custom", message: describe(error) });
  }
  return z.NEVER;
});

const archiveKeys = z.strictObject({
  s3: s3Schema.optional(),
  folder: z.string().min(1).optional(),
  retain,
  recordings: retain.optional(),
  every: every.prefault("1h"),
});

/** `archive:` in glasskey.yaml. Paths and references stay as they are written; {@link placeArchive} resolves them. */
export const archiveSchema = archiveKeys.transform((value, context): ArchiveConfig => {
  const { s3, folder } = value;
  if ((s3 === undefined) === (folder === undefined)) {
    context.addIssue({ code: "custom", message: "needs either `s3` or `folder`" });
    return z.NEVER;
  }
  return {
    to: s3 === undefined ? { kind: "folder", folder: folder ?? "" } : { kind: "s3", ...s3 },
    retainMs: value.retain,
    recordingsRetainMs: value.recordings ?? value.retain,
    everyMs: value.every,
  };
});

/** `log: mirror:`: a folder, or a map with `s3`. */
export const mirrorSchema = z
  .union([z.string().min(1), z.strictObject({ s3: s3Schema })], "must be a folder, or a map with `s3`")
  .transform((value): PlaceConfig =>
    typeof value === "string" ? { kind: "folder", folder: value } : { kind: "s3", ...value.s3 },
  );

/** `recordings: store:`. */
export const chunkStoreSchema = z.strictObject({ s3: s3Schema }).transform(({ s3 }): S3Config => s3);

/** The keys that may stand there, for suggestions. @param path from the top of glasskey.yaml. */
export function archiveKeysAt(path: readonly (string | number)[]): readonly string[] | undefined {
  const at = path.join(".");
  if (at === "archive") return Object.keys(archiveKeys.shape);
  if (at === "recordings.store" || at === "log.mirror") return ["s3"];
  return ["archive.s3", "recordings.store.s3", "log.mirror.s3"].includes(at) ? S3_KEYS : undefined;
}

interface Rules {
  readonly path: (text: string) => string;
  readonly reference: (text: string) => string;
}

export function placeAt(place: PlaceConfig, rules: Rules): PlaceConfig {
  return place.kind === "folder"
    ? { kind: "folder", folder: rules.path(place.folder) }
    : { kind: "s3", ...placeS3(place, rules) };
}

/** Whether what is written to one lies in the other, or beside it under the same names. */
export function overlap(a: PlaceConfig, b: PlaceConfig): boolean {
  if (a.kind === "folder" || b.kind === "folder") {
    if (a.kind !== "folder" || b.kind !== "folder") return false;
    const [one, two] = [join(a.folder, sep), join(b.folder, sep)];
    return one.startsWith(two) || two.startsWith(one);
  }
  return a.bucket === b.bucket && a.endpoint === b.endpoint && a.prefix === b.prefix;
}

export function placeArchive(config: ArchiveConfig, rules: Rules): ArchiveConfig {
  return { ...config, to: placeAt(config.to, rules) };
}
