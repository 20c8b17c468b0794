import { describe, GlassError } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";

/** Turns what goes wrong at S3 into errors that may be shown: without keys, requests or headers. */
export interface Faults {
  /** From now on this value does not show in an error, whoever wrote it there. @returns the secret. */
  hide(secret: Secret): Secret;
  /** @param what was done, such as `reading tile/0/000`. A GlassError stays as it is. */
  of(what: string, error: unknown): GlassError;
  /** The HTTP status behind an error that `of` made; undefined when there was no answer. */
  statusOf(error: unknown): number | undefined;
}

export function createFaults(place: string): Faults {
  const secrets: Secret[] = [];
  const statuses = new WeakMap<GlassError, number>();
  const clean = (text: string): string => {
    let shown = text;
    for (const secret of secrets) shown = shown.replaceAll(secret.reveal(), "[secret]");
    return shown;
  };
  return {
    hide(secret) {
      // Read again at each attempt while a bucket refuses: the same ones, for days.
      if (!secrets.some((known) => known.reveal() === secret.reveal())) secrets.push(secret);
      return secret;
    },
    of(what, error) {
      if (error instanceof GlassError) return error;
      // The library's error holds the whole request; so it is no `cause` either.
      const status = statusIn(error);
      const words = clean(wordsOf(error));
      const { code, said, next } = kindOf(status, words);
      const fault = new GlassError(code, `${place}: ${what}: ${said}`, { next });
      if (status !== undefined) statuses.set(fault, status);
      return fault;
    },
    statusOf: (error) => (error instanceof GlassError ? statuses.get(error) : undefined),
  };
}

/** Whether S3 said that there is no such object (or no such version, or no lock): not that there is no such bucket. */
export function absent(error: unknown): boolean {
  if (!(error instanceof Error) || error.name === "NoSuchBucket") return false;
  const status = statusIn(error);
  // 405 is what a version answers that is the mark of a deletion.
  return status === 404 || status === 405;
}

function kindOf(
  status: number | undefined,
  words: string,
): { code: "store_unavailable" | "config_invalid"; said: string; next: string } {
  const unreachable = { code: "store_unavailable", next: "Nothing is lost: it is tried again." } as const;
  if (status === undefined) return { ...unreachable, said: `no answer (${words})` };
  if (status >= 500 || status === 429 || status === 409 || status === 412) {
    return { ...unreachable, said: `${status} (${words})` };
  }
  if (status >= 300 && status < 400) {
    const next = "Write the endpoint and region where the bucket is; redirects are not followed.";
    return { code: "config_invalid", said: `it wants to send us elsewhere (${status})`, next };
  }
  const next = "Check bucket, region and endpoint, and what the key may do there (docs/archive.md has the rights).";
  return { code: "config_invalid", said: `refused, ${status} (${words})`, next };
}

function statusIn(error: unknown): number | undefined {
  if (typeof error !== "object" || error === null || !("$metadata" in error)) return undefined;
  const metadata = error.$metadata;
  if (typeof metadata !== "object" || metadata === null || !("httpStatusCode" in metadata)) return undefined;
  return typeof metadata.httpStatusCode === "number" ? metadata.httpStatusCode : undefined;
}

function wordsOf(error: unknown): string {
  const name = error instanceof Error && !["Error", "UnknownError", "Unknown"].includes(error.name) ? error.name : "";
  const text = describe(error).slice(0, 200);
  return name === "" || text.includes(name) ? text : `${name}: ${text}`;
}
