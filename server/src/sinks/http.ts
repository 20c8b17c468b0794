import { readFileSync } from "node:fs";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { DeliveryError, networkFault } from "./sink.ts";

/** What the far side answered. Its body may hold anything: it never goes into an error or a log. */
export interface Answer {
  readonly status: number;
  readonly retryAfterMs: number | undefined;
  readonly body: string;
}

export interface PostOptions {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  /** File with the PEM of the CA; undefined: the public ones. Read at each use, so that it can be replaced. */
  readonly ca?: string | undefined;
  readonly signal: AbortSignal;
  /** Of the whole exchange. */
  readonly timeoutMs: number;
}

/** A receiver that takes longer than this for a megabyte is better asked again. */
export const TIMEOUT_MS = 30_000;
const MAX_ANSWER_BYTES = 64 * 1024;
const MAX_HEADER_BYTES = 8 * 1024;
const MAX_RETRY_AFTER_MS = 10 * 60_000; // who asks for more silence is asked again nevertheless

/**
 * One POST, over verified TLS or to this machine. Redirects are answers like any other: nothing is sent to where they
 * point. The answer is bounded, and the time covers the whole exchange.
 * @throws DeliveryError when there was no complete answer.
 */
export async function post({ url, headers, body, ca, signal, timeoutMs }: PostOptions): Promise<Answer> {
  const slow = AbortSignal.timeout(timeoutMs);
  const fault = (error: unknown): DeliveryError => {
    if (error instanceof DeliveryError) return error;
    if (signal.aborted) return new DeliveryError("it was interrupted");
    if (!slow.aborted) return networkFault(error);
    return new DeliveryError(`no answer within ${timeoutMs / 1000} s`, { slow: true });
  };
  const trusted = ca === undefined ? {} : { ca: readCa(ca) };
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const sent = (url.protocol === "https:" ? httpsRequest : httpRequest)(url, {
        method: "POST",
        agent: false,
        headers: {
          ...{ "accept-encoding": "identity", "user-agent": "glasskey", ...headers },
          "content-length": String(Buffer.byteLength(body)),
        },
        ...trusted,
        minVersion: "TLSv1.2",
        rejectUnauthorized: true, // whatever the environment says
        maxHeaderSize: MAX_HEADER_BYTES,
        signal: AbortSignal.any([signal, slow]),
      });
      sent.on("error", reject);
      sent.once("response", resolve);
      sent.end(body);
    });
    return {
      status: response.statusCode ?? 0,
      retryAfterMs: retryAfter(response.headers["retry-after"]),
      body: await readAnswer(response),
    };
  } catch (error) {
    throw fault(error);
  }
}

async function readAnswer(response: IncomingMessage): Promise<string> {
  response.on("error", () => {}); // whoever reads it is told
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) throw new DeliveryError("its answer is too long"); // leaving the loop destroys it
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

export function readCa(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new DeliveryError("the file of `ca` cannot be read", { cause });
  }
}

/** A header with a secret, whose faults say nothing of it. */
export function secretHeader(scheme: string, read: () => { reveal(): string }): string {
  let secret: string;
  try {
    secret = read().reveal();
  } catch (cause) {
    throw new DeliveryError("its secret cannot be read; look at its reference in glasskey.yaml", { cause });
  }
  if (!/^[\x20-\x7E]{1,4096}$/.test(secret)) throw new DeliveryError("its secret has characters that no header has");
  return `${scheme}${secret}`;
}

/**
 * Why a status is not the one that says "taken".
 * @param about statuses that are about what was sent; every other may be put right on the far side.
 */
export function refusal(answer: Answer, about: readonly number[] = [400, 413, 422]): DeliveryError {
  const { status, retryAfterMs } = answer;
  const words =
    status >= 300 && status < 400
      ? `answered ${status}, a redirect, which is not followed`
      : status === 401 || status === 403
        ? `answered ${status}: it does not accept the secret`
        : `answered ${status}`;
  return new DeliveryError(words, { refused: about.includes(status), retryAfterMs });
}

/** The answer as JSON. @throws DeliveryError. */
export function jsonOf(answer: Answer): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(answer.body);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch {
    // below
  }
  throw new DeliveryError(`answered ${answer.status} with something that is not JSON`);
}

/** `Retry-After` (RFC 9110, seconds), bounded. Its dates are left: they would need the far side's clock. */
function retryAfter(header: string | undefined): number | undefined {
  return header !== undefined && /^\d{1,9}$/.test(header)
    ? Math.min(MAX_RETRY_AFTER_MS, Number(header) * 1_000)
    : undefined;
}
