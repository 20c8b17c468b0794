import { readFileSync } from "node:fs";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import type { z } from "zod";
import { describe, GlassError } from "../core/errors.ts";
import type { JsonValue } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";
import { SourceFault } from "./source.ts";

/** A page of 100 incidents with everything about them has about 1 MB. */
const MAX_BODY_BYTES = 4 * 1024 * 1024;

/** Asks one base URL, and no other, for JSON. */
export interface JsonClient {
  /**
   * Asks, and checks the answer against `answer`. Redirects are not followed, and the token goes nowhere but to the base.
   * @returns undefined for a 404 whose body `missing` describes, where that is given.
   * @throws SourceFault for everything else that is not a well-formed 200.
   */
  ask<T extends z.ZodType>(call: Call<T>): Promise<z.infer<T>>;
  ask<T extends z.ZodType>(call: Call<T> & { missing: z.ZodType }): Promise<z.infer<T> | undefined>;
}

export interface Call<T extends z.ZodType> {
  /** Parts of the path below the base; each is escaped. */
  readonly path: readonly string[];
  readonly query?: readonly (readonly [string, string])[];
  /** Makes it a POST. */
  readonly body?: JsonValue;
  readonly answer: T;
  readonly signal: AbortSignal;
}

export interface JsonClientOptions {
  readonly base: URL;
  readonly ca?: string;
  /** Made for each question, so that a secret can be replaced while the server runs. */
  readonly headers: () => Readonly<Record<string, string>>;
}

/** @throws GlassError `config_invalid` where the CA cannot be read. */
export function createJsonClient({ base, ca, headers }: JsonClientOptions): JsonClient {
  const trusted = ca === undefined ? {} : { ca: readCa(ca) };
  return {
    async ask<T extends z.ZodType>(call: Call<T> & { missing?: z.ZodType }): Promise<z.infer<T> | undefined> {
      const url = new URL(base);
      url.pathname = [base.pathname.replace(/\/+$/, ""), ...call.path.map(encodeURIComponent)].join("/");
      url.search = new URLSearchParams((call.query ?? []).map(([key, value]) => [key, value])).toString();
      const { status, text } = await send(url, call.body, ownHeaders(headers), trusted, call.signal);
      if (status === 404 && call.missing !== undefined && call.missing.safeParse(json(text)).success) return undefined;
      if (status !== 200) throw new SourceFault(statusFault(status), status === 429 || status >= 500);
      const parsed = call.answer.safeParse(json(text));
      if (parsed.success) return parsed.data;
      throw new SourceFault("its answer does not have the form that its API documents");
    },
  };
}

/** A header with a token, whose faults say nothing of it. */
export function tokenHeader(scheme: string, secret: () => Secret): Readonly<Record<string, string>> {
  const token = secret().reveal();
  if (!/^[\x21-\x7E]{1,4096}$/.test(token)) throw new SourceFault("its token has characters that no token has");
  return { authorization: `${scheme}${token}` };
}

function readCa(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new GlassError("config_invalid", `the CA of a source of evidence cannot be read: ${describe(cause)}`, {
      cause,
    });
  }
}

function ownHeaders(headers: JsonClientOptions["headers"]): Readonly<Record<string, string>> {
  try {
    return headers();
  } catch (error) {
    if (error instanceof SourceFault) throw error;
    throw new SourceFault("its token cannot be read; look at its reference in glasskey.yaml");
  }
}

function send(
  url: URL,
  body: JsonValue | undefined,
  headers: Readonly<Record<string, string>>,
  trusted: { ca?: string },
  signal: AbortSignal,
): Promise<{ status: number; text: string }> {
  const payload = body === undefined ? undefined : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const fail = (fault: SourceFault): void => {
      request.destroy();
      reject(fault);
    };
    const request = (url.protocol === "https:" ? httpsRequest : httpRequest)(url, {
      method: payload === undefined ? "GET" : "POST",
      headers: {
        accept: "application/json",
        "accept-encoding": "identity",
        ...(payload === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
      agent: false,
      rejectUnauthorized: true, // whatever the environment says
      signal,
      ...trusted,
    });
    request.on("error", (error) => reject(networkFault(error, signal)));
    request.once("response", (response) => {
      response.on("error", () => {}); // whoever reads it is told; nobody may be reading any more
      readText(response).then(
        (text) => resolve({ status: response.statusCode ?? 0, text }),
        (error: unknown) => fail(error instanceof SourceFault ? error : networkFault(error, signal)),
      );
    });
    request.end(payload);
  });
}

async function readText(response: IncomingMessage): Promise<string> {
  const encoding = response.headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") throw new SourceFault("its answer is compressed, which was not asked for");
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) throw new SourceFault("its answer is larger than any that makes sense");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function networkFault(error: unknown, signal: AbortSignal): SourceFault {
  if (signal.aborted) return new SourceFault("it did not answer in time", true);
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const known = /^[A-Z][A-Z0-9_]{2,60}$/.test(code) ? ` (${code})` : "";
  const tls = /CERT|TLS|SSL|SELF_SIGNED|UNABLE_TO/.test(code);
  return new SourceFault(tls ? `its certificate does not hold${known}` : `it cannot be reached${known}`, true);
}

function statusFault(status: number): string {
  if (status >= 300 && status < 400) return "it answered with a redirect, which is not followed";
  if (status === 401 || status === 403) return `it refused Glasskey's token (${status})`;
  if (status === 429) return "it was asked too often (429)";
  return status >= 500 ? `it answered that it is out of order (${status})` : `it answered ${status}`;
}

function json(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new SourceFault("its answer is not JSON");
  }
}
