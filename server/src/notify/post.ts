import { request } from "node:https";

/** What the far side answered. Its body may hold anything: it never goes into an error or a log. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  readonly body: string;
}

/** A delivery that did not happen, in words that hold neither URL nor secret nor anything the far side said. */
export class DeliveryError extends Error {
  override readonly name = "DeliveryError";
  /** Whether the same bytes can never be taken. */
  readonly final: boolean;
  /** What the far side asked for. */
  readonly retryAfterMs: number | undefined;

  constructor(message: string, options: { final?: boolean; retryAfterMs?: number | undefined } = {}) {
    super(message);
    this.final = options.final ?? false;
    this.retryAfterMs = options.retryAfterMs;
  }
}

export interface PostOptions {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  readonly ca?: string | undefined;
  readonly signal: AbortSignal;
  /** Of the whole exchange. */
  readonly timeoutMs: number;
}

const MAX_ANSWER_BYTES = 16 * 1024;
const MAX_HEADER_BYTES = 8 * 1024;
const MAX_RETRY_AFTER_MS = 10 * 60_000; // a channel that asks for more silence is asked again nevertheless

/**
 * One POST over verified TLS. Redirects are failures, the answer is bounded, the time covers the whole exchange.
 * @throws DeliveryError when there was no complete answer.
 */
export function post({ url, headers, body, ca, signal, timeoutMs }: PostOptions): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const slow = AbortSignal.timeout(timeoutMs);
    const fail = (error: NodeJS.ErrnoException): void => {
      if (slow.aborted) reject(new DeliveryError(`no answer within ${timeoutMs / 1000} s`));
      else if (signal.aborted) reject(new DeliveryError("Glasskey is stopping"));
      else
        reject(
          new DeliveryError(
            `no connection (${/^[A-Z0-9_]{1,60}$/.test(error.code ?? "") ? error.code : "unknown error"})`,
          ),
        );
    };
    const sent = request(url, {
      method: "POST",
      agent: false,
      headers: { ...headers, "content-length": String(Buffer.byteLength(body)), "user-agent": "glasskey" },
      ...(ca === undefined ? {} : { ca }),
      minVersion: "TLSv1.2",
      rejectUnauthorized: true,
      maxHeaderSize: MAX_HEADER_BYTES,
      signal: AbortSignal.any([signal, slow]),
    });
    sent.once("error", fail);
    sent.once("response", (response) => {
      const chunks: Buffer[] = [];
      let bytes = 0;
      response.once("error", fail);
      response.on("data", (chunk: Buffer) => {
        bytes += chunk.length;
        if (bytes <= MAX_ANSWER_BYTES) chunks.push(chunk);
        else {
          reject(new DeliveryError("the answer is too long"));
          sent.destroy();
        }
      });
      response.once("end", () => {
        const { statusCode: status = 0, headers } = response;
        resolve({ status, headers, body: Buffer.concat(chunks).toString("utf8") });
      });
    });
    sent.end(body);
  });
}

/** Why a status is not the one that says "taken"; `Retry-After` (RFC 9110, seconds or a date) is read and bounded. */
export function refusal(answer: Answer, nowMs: number, detail = ""): DeliveryError {
  const { status } = answer;
  const asked = answer.headers["retry-after"];
  const seconds = typeof asked === "string" && /^\d{1,9}$/.test(asked) ? Number(asked) * 1_000 : undefined;
  const date = typeof asked === "string" && seconds === undefined ? Date.parse(asked) - nowMs : Number.NaN;
  const wait = seconds ?? (Number.isFinite(date) ? date : undefined);
  return new DeliveryError(`answered ${status}${detail === "" ? "" : ` ${detail}`}`, {
    // 400, 413 and 422 are about what was sent; everything else may be put right on the other side.
    final: status === 400 || status === 413 || status === 422,
    retryAfterMs: wait === undefined ? undefined : Math.min(MAX_RETRY_AFTER_MS, Math.max(0, wait)),
  });
}
