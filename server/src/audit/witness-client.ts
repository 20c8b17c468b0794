import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { openCosignatures, type Cosignature, type NoteVerifier } from "@glasskey/verify";

/** What a witness answered to a checkpoint. */
export type WitnessAnswer =
  | { readonly kind: "cosigned"; readonly cosignature: Cosignature }
  /** It knows the log at this size, and wants the proof from there. Its word alone. */
  | { readonly kind: "size"; readonly size: number }
  /** The checkpoint is not what it saw grow. Its word alone. */
  | { readonly kind: "inconsistent" }
  /** No usable answer; `why` has nothing that the far side wrote. */
  | { readonly kind: "failed"; readonly why: string };

export interface WitnessClient {
  readonly name: string;
  /**
   * One `add-checkpoint` (https://c2sp.org/tlog-witness). Never rejects.
   * @param proof consistency proof from `oldSize`; empty for 0, and where the sizes are the same.
   * @param signal bounds the exchange.
   */
  ask(note: string, oldSize: number, proof: readonly Uint8Array[], signal: AbortSignal): Promise<WitnessAnswer>;
  close(): void;
}

const MAX_ANSWER_BYTES = 64 * 1024; // a line of ML-DSA-44 has 3.3 KB
const MAX_HEADER_BYTES = 8 * 1024;
/** Between the clocks of two machines. A cosignature that says otherwise is not taken: its time would be a lie for ever. */
const MAX_SKEW_S = 600;
const LINES = /^(?:\u2014 [^\s]{1,512} [A-Za-z0-9+/=]{1,8192}\n){1,16}$/;

/**
 * A client for one witness.
 * @param keys its verifier keys, all of one name: a cosignature by any of them is its word.
 * @param ca PEM; undefined: the public CAs.
 */
export function createWitnessClient(options: {
  readonly keys: readonly [NoteVerifier, ...NoteVerifier[]];
  readonly url: string;
  readonly ca?: string | undefined;
  readonly now: () => Date;
}): WitnessClient {
  const { keys, now } = options;
  const url = new URL(`${options.url}/add-checkpoint`);
  const secure = url.protocol === "https:";
  const tls = { ...(options.ca === undefined ? {} : { ca: options.ca }), minVersion: "TLSv1.2" as const };
  const kept = { keepAlive: true, maxSockets: 2, timeout: 60_000 };
  const agent = secure ? new HttpsAgent({ ...kept, ...tls, rejectUnauthorized: true }) : new HttpAgent(kept);

  const send = (body: string, signal: AbortSignal): Promise<{ status: number; text: string }> =>
    new Promise((resolve, reject) => {
      const request = (secure ? httpsRequest : httpRequest)(url, {
        ...{ method: "POST", agent, signal, maxHeaderSize: MAX_HEADER_BYTES },
        headers: {
          "content-type": "text/plain; charset=utf-8",
          "content-length": Buffer.byteLength(body),
          "accept-encoding": "identity",
          "user-agent": "glasskey",
        },
      });
      request.on("error", reject);
      request.once("response", (response) => {
        response.on("error", () => {}); // whoever reads it is told
        readText(response).then(
          (text) => resolve({ status: response.statusCode ?? 0, text }),
          (error: unknown) => {
            request.destroy();
            reject(error instanceof Error ? error : new Error("no answer"));
          },
        );
      });
      request.end(body);
    });

  return {
    name: keys[0].name,
    async ask(note, oldSize, proof, signal) {
      const lines = proof.map((each) => `${Buffer.from(each).toString("base64")}\n`).join("");
      try {
        const { status, text } = await send(`old ${oldSize}\n${lines}\n${note}`, signal);
        if (status === 200) return cosignatureIn(text, note, keys, now);
        if (status === 409) return sizeIn(text);
        return status === 422 ? { kind: "inconsistent" } : { kind: "failed", why: statusInWords(status) };
      } catch (error) {
        return { kind: "failed", why: signal.aborted ? "it did not answer in time" : networkFault(error) };
      }
    },
    close: () => agent.destroy(),
  };
}

/** Nothing of the answer is believed that the witness's own key did not sign, over this note, now. */
function cosignatureIn(text: string, note: string, keys: readonly NoteVerifier[], now: () => Date): WitnessAnswer {
  if (!LINES.test(text)) return { kind: "failed", why: "its answer is not signature lines" };
  let found: readonly Cosignature[];
  try {
    found = openCosignatures(`${note}${text}`, keys);
  } catch {
    return { kind: "failed", why: "its cosignature does not hold" };
  }
  const [cosignature] = found;
  if (cosignature === undefined) return { kind: "failed", why: "its answer has no cosignature by its own key" };
  const off = cosignature.seconds - Math.floor(now().getTime() / 1_000);
  if (Math.abs(off) <= MAX_SKEW_S) return { kind: "cosigned", cosignature };
  const minutes = Math.round(Math.abs(off) / 60);
  return { kind: "failed", why: `its clock is ${minutes} minutes ${off > 0 ? "ahead of" : "behind"} this one` };
}

function sizeIn(text: string): WitnessAnswer {
  const size = /^(0|[1-9]\d{0,15})\n?$/.exec(text)?.[1];
  if (size !== undefined && Number.isSafeInteger(Number(size))) return { kind: "size", size: Number(size) };
  return { kind: "failed", why: "it has another size of the log, and does not say which" };
}

async function readText(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) throw Object.assign(new Error("too large"), { code: "ANSWER_TOO_LARGE" });
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function statusInWords(status: number): string {
  if (status === 404) return "it does not know this log: its operator must add the log's verifier key (404)";
  if (status === 403) return "it does not know the key that signs: its operator must add the new verifier key (403)";
  if (status >= 300 && status < 400) return "it answered with a redirect, which is not followed";
  return `it answered ${status}`;
}

function networkFault(error: unknown): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const known = /^[A-Z][A-Z0-9_]{2,60}$/.test(code) ? ` (${code})` : "";
  if (code === "ANSWER_TOO_LARGE") return "its answer is larger than any that makes sense";
  return /CERT|TLS|SSL|SELF_SIGNED|UNABLE_TO/.test(code)
    ? `its certificate does not hold${known}`
    : `it cannot be reached${known}`;
}
