import { request as httpRequest, Agent as HttpAgent, type IncomingMessage, type RequestOptions } from "node:http";
import { request as httpsRequest, Agent as HttpsAgent } from "node:https";
import { BlockList, isIP } from "node:net";
import { createGunzip } from "node:zlib";
import { FormatError } from "./errors.ts";
import { ReadError, type LogSource } from "./source.ts";

export interface UrlOptions {
  /** What `checkpoint` and `tile/…` lie below, such as `https://glasskey.example.org:7443/log/`. */
  readonly url: string;
  /** Bearer token for entries and chunks, which not everybody may read. It is sent to this server only. */
  readonly token?: string | undefined;
  /** PEM of the CA that the server's certificate must come from, instead of the system's. */
  readonly ca?: string | undefined;
  /** How long a server may be silent, and how long one answer may take. */
  readonly idleMs?: number;
  readonly answerMs?: number;
  /** Pause before the second attempt; the third comes after five times that. */
  readonly retryMs?: number;
}

const PARALLEL = 8; // hides the round trip; a hostile server makes us hold that many bundles at most
const IDLE_MS = 15_000;
const ANSWER_MS = 120_000; // a chunk of 16 MiB over a line of 1.2 Mbit/s
const RETRY_MS = 300;
const ATTEMPTS = 3;
/** What needs the token: the tree's hashes and heads are for everybody. */
const PRIVATE = /^(?:tile\/entries|chunks)\//;

/**
 * A log over HTTPS, or HTTP from this machine itself. Redirects are refused, answers are bounded in size and time, and
 * an answer other than 200 or 404 is an error after three attempts. There is no listing.
 * @throws FormatError for a URL that is not one of these, or a token that is none.
 */
export function openUrl(options: UrlOptions): LogSource & { close(): void } {
  const base = parseBase(options.url);
  if (options.token !== undefined && !/^[\u0021-\u007e]+$/.test(options.token)) {
    throw new FormatError("the token is not one line of printable characters");
  }
  const { ca } = options;
  const shared = { keepAlive: true, maxSockets: PARALLEL };
  const agent =
    base.protocol === "https:" ? new HttpsAgent(ca === undefined ? shared : { ...shared, ca }) : new HttpAgent(shared);
  return {
    parallel: PARALLEL,
    async read(path, maxBytes) {
      for (let attempt = 1; ; attempt += 1) {
        const answer = await get(options, base, agent, path, maxBytes);
        if (!(answer instanceof ReadError)) return answer;
        if (attempt === ATTEMPTS || answer.cause === FINAL) throw answer;
        await new Promise((done) => setTimeout(done, (options.retryMs ?? RETRY_MS) * (attempt === 1 ? 1 : 5)));
      }
    },
    close: () => agent.destroy(),
  };
}

/** Asking again will not help. */
const FINAL = Symbol("final");

async function get(
  options: UrlOptions,
  base: URL,
  agent: HttpAgent | HttpsAgent,
  path: string,
  maxBytes: number,
): Promise<Uint8Array | undefined | ReadError> {
  const whole = new AbortController();
  const timer = setTimeout(() => whole.abort(), options.answerMs ?? ANSWER_MS);
  try {
    const response = await send(new URL(path, base), {
      ...{ agent, signal: whole.signal, timeout: options.idleMs ?? IDLE_MS },
      headers: {
        "accept-encoding": "gzip, identity", // tlog-tiles: a log may compress without being asked
        ...(options.token !== undefined && PRIVATE.test(path) ? { authorization: `Bearer ${options.token}` } : {}),
      },
    });
    const { statusCode = 0 } = response;
    if (statusCode !== 200) {
      response.destroy();
      return statusCode === 404 ? undefined : refusal(statusCode, options.token !== undefined);
    }
    return await readBody(response, maxBytes);
  } catch (error) {
    if (error instanceof ReadError) return error;
    const why = whole.signal.aborted ? "took too long" : error instanceof Error ? error.message : String(error);
    return new ReadError(`cannot be read: ${why}`, isCertificate(error) ? { cause: FINAL } : {});
  } finally {
    clearTimeout(timer);
  }
}

function refusal(status: number, withToken: boolean): ReadError {
  if (status === 401 || status === 403) {
    const next = withToken ? "the token does not allow it" : "it needs a token of somebody who may read it";
    return new ReadError(`was refused (${status}): ${next}`, { cause: FINAL });
  }
  const redirected = status >= 300 && status < 400;
  const passing = status === 429 || status >= 500;
  return new ReadError(
    redirected ? `is said to be elsewhere (${status}), and redirects are not followed` : `was answered with ${status}`,
    passing ? {} : { cause: FINAL },
  );
}

function send(url: URL, options: RequestOptions): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = (url.protocol === "https:" ? httpsRequest : httpRequest)(url, options, resolve);
    request.on("error", reject);
    request.on("timeout", () => request.destroy(new Error("the server fell silent")));
    request.end();
  });
}

async function readBody(response: IncomingMessage, maxBytes: number): Promise<Uint8Array> {
  const encoding = response.headers["content-encoding"] ?? "identity";
  if (encoding !== "identity" && encoding !== "gzip") {
    response.destroy();
    throw new ReadError(`comes in an encoding that was not asked for`, { cause: FINAL });
  }
  const plain = encoding === "gzip" ? response.pipe(createGunzip()) : response;
  // An error of the connection does not pass through a pipe by itself.
  if (plain !== response) response.once("error", (error) => plain.destroy(error));
  const parts: Buffer[] = [];
  let length = 0;
  try {
    for await (const part of plain as AsyncIterable<Buffer>) {
      length += part.length;
      if (length > maxBytes) throw new ReadError(`has more than the ${maxBytes} bytes it can have`, { cause: FINAL });
      parts.push(part);
    }
  } finally {
    if (!response.complete) response.destroy();
  }
  if (!response.complete) throw new Error("the answer was cut off");
  const [only] = parts;
  return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts);
}

function parseBase(text: string): URL {
  let url;
  try {
    url = new URL(text);
  } catch {
    throw new FormatError(`"${text}" is not a URL`);
  }
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "") {
    throw new FormatError("the URL of a log has neither user, password, query nor fragment");
  }
  if (url.protocol !== "https:" && !(url.protocol === "http:" && isLoopback(url.hostname))) {
    throw new FormatError("a log is read over https; http is only for this machine itself");
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

function isLoopback(hostname: string): boolean {
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  const family = isIP(host);
  return family === 0 ? host === "localhost" : LOOPBACK.check(host, family === 4 ? "ipv4" : "ipv6");
}

/** A certificate that does not hold will not hold in a moment. */
function isCertificate(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return /CERT|SELF_SIGNED|UNABLE_TO_VERIFY|ERR_TLS/.test(code);
}
