import { request as httpsRequest } from "node:https";
import type { IncomingMessage } from "node:http";
import type { END_TRAILER, ErrorBody } from "@glasskey/contract";
import { isErrorCode } from "@glasskey/contract/errors";
import { CliError } from "./errors.ts";
import type { Login } from "./home.ts";

export type Server = Pick<Login, "server" | "ca"> & { token?: string };

const ANSWER_MS = 150_000; // the server waits up to two minutes for a proof
const END: typeof END_TRAILER = "glass-end"; // the contract itself is slow to load
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

/** One API call. @throws CliError with the server's own code and words, or `server_unreachable`. */
export async function call<T>(server: Server, method: "GET" | "POST", path: string, body?: unknown): Promise<T> {
  const response = await send(server, method, path, body);
  const text = await readAll(response);
  return JSON.parse(text) as T;
}

/**
 * An answer of JSON lines, one value at a time.
 * @param quietMs how long nothing may come, where the server sends something all the time. Otherwise the answer must end as
 *   the server says that it does: a part is never taken for the whole.
 */
export async function* callLines<T>(
  server: Server,
  path: string,
  options: { signal?: AbortSignal; quietMs?: number } = {},
): AsyncGenerator<T> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of callBytes(server, path, options)) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (options.signal?.aborted === true) return;
      if (line !== "") yield JSON.parse(line) as T;
    }
  }
  if (rest !== "" && options.signal?.aborted !== true) throw brokeOff();
}

/** An answer's bytes as they come; see {@link callLines}. @throws CliError as the server says when it fails on the way. */
export async function* callBytes(
  server: Server,
  path: string,
  { signal, quietMs }: { signal?: AbortSignal; quietMs?: number } = {},
): AsyncGenerator<Buffer> {
  const response = await send(server, "GET", path, undefined, signal).catch((error: unknown) => {
    if (signal?.aborted !== true) throw error;
  });
  if (response === undefined) return;
  response.setTimeout(quietMs ?? 0, () => response.destroy(new Error("nothing came for a while"))); // whoever replays may pause
  const leave = (): void => void response.destroy();
  signal?.addEventListener("abort", leave, { once: true });
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) yield chunk;
  } catch (cause) {
    if (signal?.aborted === true) return;
    throw brokeOff(cause);
  } finally {
    signal?.removeEventListener("abort", leave);
  }
  if (signal?.aborted === true || quietMs !== undefined) return;
  const end = response.trailers[END];
  if (end === undefined) throw brokeOff();
  if (end !== "ok") throw refusal(`{"error":${Buffer.from(end, "base64url").toString("utf8")}}`, 200);
}

function brokeOff(cause?: unknown): CliError {
  return new CliError("server_unreachable", "the answer broke off", { next: "Run it again.", cause });
}

async function send(
  server: Server,
  method: string,
  path: string,
  body?: unknown,
  signal?: AbortSignal,
): Promise<IncomingMessage> {
  const payload = body === undefined ? undefined : JSON.stringify(body);
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    let url: URL;
    try {
      url = new URL(path, server.server);
    } catch {
      throw new CliError("usage", `"${server.server}" is not a server's address`, {
        next: "Write it as https://HOST:7443",
      });
    }
    if (url.protocol !== "https:")
      throw new CliError("usage", "the server is reached over https only", { next: "Write it as https://HOST:7443" });
    const request = httpsRequest(url, {
      method,
      ...(signal === undefined ? {} : { signal }),
      ...(server.ca === undefined ? {} : { ca: server.ca }),
      timeout: ANSWER_MS,
      headers: {
        accept: "application/json",
        ...(server.token === undefined ? {} : { authorization: `Bearer ${server.token}` }),
        ...(payload === undefined
          ? {}
          : { "content-type": "application/json", "content-length": Buffer.byteLength(payload) }),
      },
    });
    request.once("response", resolve);
    request.once("timeout", () => request.destroy(new Error("no answer in time")));
    request.once("error", (error) => reject(unreachable(server.server, error)));
    request.end(payload);
  });
  if (response.statusCode === 200) return response;
  const text = await readAll(response);
  throw refusal(text, response.statusCode ?? 0);
}

function refusal(text: string, status: number): CliError {
  try {
    const { error } = JSON.parse(text) as ErrorBody;
    if (isErrorCode(error.code))
      return new CliError(error.code, error.message, { next: error.next, details: error.details });
  } catch {
    // not Glasskey's own answer
  }
  return new CliError("server_unreachable", `the server answered ${status}, and not as Glasskey does`, {
    next: "Check the address in `glass login --server`.",
  });
}

function unreachable(server: string, error: Error & { code?: string }): CliError {
  if (error.code !== undefined && /CERT|SELF_SIGNED|ISSUER|ALTNAME/.test(error.code)) {
    return new CliError(
      "server_unreachable",
      `the certificate of ${server} is not one that can be trusted (${error.code})`,
      {
        next: "Give the CA that the server's operator handed out: glass login NAME --ca FILE",
        cause: error,
      },
    );
  }
  return new CliError("server_unreachable", `cannot reach ${server}: ${error.message || error.code || "no answer"}`, {
    next: "Is it running? Start it with: glass serve",
    cause: error,
  });
}

async function readAll(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_ANSWER_BYTES) throw new CliError("server_unreachable", "the answer is too large");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}
