import { createHmac } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { Identity } from "../../core/certificates.ts";

/** One request that a fake got. */
export interface Seen {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  readonly body: Record<string, unknown>;
  readonly status: number;
}

export interface FakeAnswer {
  readonly status: number;
  readonly body?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Nothing is ever answered. */
  readonly hang?: boolean;
  /** The answer comes so much later. */
  readonly delayMs?: number;
}

/** A vendor's server as its published documents describe it, on loopback over TLS. */
export interface Fake {
  readonly url: string;
  /** Everything that came, in order, also what was refused. */
  readonly seen: Seen[];
  /** What was taken. */
  taken(): readonly Seen[];
  /** Answers like this instead of what the documents say; undefined: as documented again. */
  broken: FakeAnswer | undefined;
  stop(): Promise<void>;
}

type Documented = (request: { path: string; headers: IncomingHttpHeaders; text: string; body: unknown }) => FakeAnswer;

export async function startFake(identity: Identity, path: string, documented: Documented): Promise<Fake> {
  const seen: Seen[] = [];
  const fake: { broken: FakeAnswer | undefined } = { broken: undefined };
  const server: Server = createServer({ key: identity.key, cert: identity.cert }, (request, response) => {
    let text = "";
    request.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
    request.once("end", () => {
      const body = parse(text);
      const about = { path: request.url ?? "", headers: request.headers, text };
      const answer = fake.broken ?? documented({ ...about, body });
      seen.push({ ...about, body: (body ?? {}) as Record<string, unknown>, status: answer.status });
      if (answer.hang === true) return;
      setTimeout(() => {
        response.writeHead(answer.status, { "content-type": "text/plain", ...answer.headers });
        response.end(answer.body ?? "");
      }, answer.delayMs ?? 0);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return Object.assign(fake, {
    url: `https://127.0.0.1:${port}${path}`,
    seen,
    taken: () => seen.filter(({ status }) => status >= 200 && status < 300),
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

/**
 * A fake of Slack's incoming webhooks, from docs.slack.dev: "Sending messages using incoming webhooks" (200 with `ok`;
 * 400 `invalid_payload`, `no_text`; 404 `no_service`) and "Block Kit" (at most 50 blocks, 3,000 characters in a section).
 */
export function fakeSlack(identity: Identity): Promise<Fake> {
  const path = "/services/T00000000/B00000000/x-secret-of-the-webhook-x";
  return startFake(identity, path, ({ path: asked, headers, body }) => {
    if (asked !== path) return { status: 404, body: "no_service" };
    if (!/^application\/json/.test(headers["content-type"] ?? "") || !isObject(body)) {
      return { status: 400, body: "invalid_payload" };
    }
    const { text, blocks } = body;
    if (typeof text !== "string" || text === "") return { status: 400, body: "no_text" };
    const good = (block: unknown): boolean =>
      isObject(block) &&
      block["type"] === "section" &&
      isObject(block["text"]) &&
      (block["text"]["type"] === "mrkdwn" || block["text"]["type"] === "plain_text") &&
      typeof block["text"]["text"] === "string" &&
      block["text"]["text"].length > 0 &&
      block["text"]["text"].length <= 3_000;
    if (!Array.isArray(blocks) || blocks.length > 50 || !blocks.every(good))
      return { status: 400, body: "invalid_blocks" };
    return { status: 200, body: "ok", headers: { "x-slack-req-id": "0123abc" } };
  });
}

/**
 * A fake of PagerDuty's Events API v2, from PagerDuty/api-schema, reference/events-v2/openapiv3.json ("PagerDuty V2 Events
 * API" 2.0), with the limits of docs/events-API-v2/02-Trigger-Events.md of PagerDuty/developer-docs.
 */
export function fakePagerDuty(identity: Identity): Promise<Fake> {
  const invalid = (error: string): FakeAnswer => ({
    status: 400,
    body: JSON.stringify({ status: "invalid event", message: "Event object is invalid", errors: [error] }),
  });
  return startFake(identity, "/v2/enqueue", ({ path, body }) => {
    if (path !== "/v2/enqueue") return { status: 404 };
    if (!isObject(body)) return invalid("JSON parse error");
    const { routing_key: routingKey, event_action: action, dedup_key: key, payload, links } = body;
    if (typeof routingKey !== "string" || routingKey.length !== 32) return invalid("'routing_key' is invalid");
    if (action !== "trigger" && action !== "acknowledge" && action !== "resolve")
      return invalid("'event_action' is invalid");
    if (key === undefined ? action !== "trigger" : typeof key !== "string" || key.length > 255) {
      return invalid("'dedup_key' is invalid");
    }
    if (action === "trigger") {
      if (!isObject(payload)) return invalid("'payload' is missing");
      const { summary, source, severity } = payload;
      if (typeof summary !== "string" || summary === "" || summary.length > 1_024)
        return invalid("'summary' is invalid");
      if (typeof source !== "string" || source === "") return invalid("'source' is invalid");
      if (!["critical", "error", "warning", "info"].includes(String(severity))) return invalid("'severity' is invalid");
      const good = (link: unknown): boolean => isObject(link) && typeof link["href"] === "string";
      if (links !== undefined && !(Array.isArray(links) && links.every(good))) return invalid("'links' is invalid");
    }
    const answer = { status: "success", message: "Event processed", dedup_key: key ?? "made-by-pagerduty" };
    return { status: 202, body: JSON.stringify(answer) };
  });
}

/** A receiver that verifies as the Standard Webhooks specification 1.0.0 tells receivers to; `secret` is `whsec_…`. */
export function fakeReceiver(identity: Identity, secret: string): Promise<Fake> {
  const key = Buffer.from(secret.slice("whsec_".length), "base64");
  return startFake(identity, "/hook", ({ headers, text }) => {
    const [id, at] = [headers["webhook-id"], headers["webhook-timestamp"]];
    if (typeof id !== "string" || typeof at !== "string") return { status: 401 };
    if (Math.abs(Date.now() / 1_000 - Number(at)) > 300) return { status: 401 };
    const expected = `v1,${createHmac("sha256", key).update(`${id}.${at}.${text}`).digest("base64")}`;
    return String(headers["webhook-signature"]).split(" ").includes(expected) ? { status: 204 } : { status: 401 };
  });
}
