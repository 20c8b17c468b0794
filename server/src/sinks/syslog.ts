import { connect as connectTcp, isIP, type Socket } from "node:net";
import { checkServerIdentity, connect as connectTls } from "node:tls";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import type { SyslogSink } from "./config.ts";
import { readCa } from "./http.ts";
import { DeliveryError, networkFault, type Item, type Severity, type SinkDriver, type Speaker } from "./sink.ts";

/** RFC 5424, table 1: "log audit". */
const FACILITY = 13;
/** RFC 5424, table 2. */
const SYSLOG_SEVERITY: Readonly<Record<Severity, number>> = {
  ...{ informational: 6, low: 5, medium: 4, high: 3, critical: 2 },
};
const CONNECT_MS = 10_000;
const BATCH_MS = 60_000;
const BATCH = { entries: 2_000, bytes: 1024 * 1024 };

/**
 * Sends entries as RFC 5424 messages over TLS (RFC 5425, octet counting), one connection for each batch.
 *
 * Syslog has no acknowledgement. The nearest to one: after the batch we close our side, and the receiver closes its own
 * when it has read to the end (RFC 5425, section 4.4). Only then does the batch count. A connection that breaks before has
 * delivered nothing, and the batch before is sent again too.
 */
export function syslogDriver(sink: SyslogSink, speaker: Speaker): SinkDriver {
  const host = sink.hostname ?? printable(hostname(), 255);
  return {
    ...{ batch: BATCH, doubtful: true },
    async deliver(items, signal) {
      const frames = items.map((item) => frame(message(item, { host, enterprise: sink.enterprise, speaker })));
      const socket = await connect(sink, signal);
      try {
        await sendAndClose(socket, frames, signal);
      } finally {
        socket.destroy();
      }
    },
  };
}

interface Header {
  readonly host: string;
  readonly enterprise: number;
  readonly speaker: Speaker;
}

/**
 * One message. All of it is printable ASCII without a line end, whatever an entry says: JSON escapes controls, and what is
 * not ASCII is escaped here. So it needs no byte order mark (RFC 5424, section 6.4), and no receiver splits it.
 */
export function message(item: Item, { host, enterprise, speaker }: Header): string {
  const priority = FACILITY * 8 + SYSLOG_SEVERITY[item.severity];
  const fields = { index: String(item.index), leafHash: item.leafHash, origin: speaker.origin };
  const data = Object.entries(fields).map(([name, value]) => ` ${name}="${paramValue(value)}"`);
  const head = [`<${priority}>1`, timestamp(item.at), host, "glasskey", "-", printable(item.type, 32)].join(" ");
  return `${head} [glasskey@${enterprise}${data.join("")}] ${ascii(item.json)}`;
}

/** RFC 5425, section 4.3: the length in octets, a space, the message. */
export function frame(text: string): Buffer {
  return Buffer.from(`${Buffer.byteLength(text)} ${text}`);
}

/** RFC 5424, section 6.3.3. */
function paramValue(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "?").replaceAll(/["\\\]]/g, (char) => `\\${char}`);
}

function timestamp(at: string): string {
  return /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$/.test(at) ? at : "-";
}

function printable(text: string, most: number): string {
  const kept = text.replaceAll(/[^\x21-\x7E]/g, "?").slice(0, most);
  return kept === "" ? "-" : kept;
}

function ascii(json: string): string {
  return json.replaceAll(/[^\x20-\x7E]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

async function connect(sink: SyslogSink, signal: AbortSignal): Promise<Socket> {
  const slow = AbortSignal.any([signal, AbortSignal.timeout(CONNECT_MS)]);
  // A half-open connection is what tells us that the receiver has read to the end.
  const to = { host: sink.host, port: sink.port, allowHalfOpen: true };
  const socket = sink.transport === "tcp" ? connectTcp(to) : connectTls({ ...to, ...identity(sink) });
  return new Promise((resolve, reject) => {
    const fail = (error: unknown): void => {
      socket.destroy();
      if (signal.aborted) reject(new DeliveryError("it was interrupted"));
      else
        reject(slow.aborted ? new DeliveryError(`no connection within ${CONNECT_MS / 1000} s`) : networkFault(error));
    };
    const tooSlow = (): void => fail(undefined);
    slow.addEventListener("abort", tooSlow, { once: true });
    if (slow.aborted) return tooSlow();
    socket.on("error", fail);
    socket.once(sink.transport === "tcp" ? "connect" : "secureConnect", () => {
      slow.removeEventListener("abort", tooSlow);
      socket.off("error", fail);
      socket.on("error", () => {}); // `sendAndClose` listens too
      resolve(socket);
    });
  });
}

function identity({ ca, client, serverName, host }: SyslogSink) {
  const name = serverName ?? host;
  const read = (file: string): string => {
    try {
      return readFileSync(file, "utf8");
    } catch (cause) {
      throw new DeliveryError("the file of `cert` or `key` cannot be read", { cause });
    }
  };
  return {
    ...(ca === undefined ? {} : { ca: readCa(ca) }),
    ...(client === undefined ? {} : { cert: read(client.cert), key: read(client.key) }),
    ...(isIP(name) === 0 ? { servername: name } : {}),
    ...(serverName === undefined ? {} : { checkServerIdentity: named(serverName) }),
    minVersion: "TLSv1.2",
    rejectUnauthorized: true,
  } as const;
}

/** Holds the certificate against the configured name, whatever host was dialled. */
function named(name: string): typeof checkServerIdentity {
  return (_host, certificate) => checkServerIdentity(name, certificate);
}

/** Resolves when the far side closed in good order after all of it. */
function sendAndClose(socket: Socket, frames: readonly Buffer[], signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const slow = AbortSignal.any([signal, AbortSignal.timeout(BATCH_MS)]);
    const finish = (error?: DeliveryError): void => {
      slow.removeEventListener("abort", onSlow);
      if (error === undefined) resolve();
      else reject(error);
    };
    const onSlow = (): void =>
      finish(
        signal.aborted
          ? new DeliveryError("it was interrupted")
          : new DeliveryError(`the receiver did not read to the end and close within ${BATCH_MS / 1000} s`),
      );
    slow.addEventListener("abort", onSlow, { once: true });
    if (slow.aborted) return onSlow();
    let sent = false;
    socket.on("error", (error) => finish(networkFault(error)));
    socket.once("end", () =>
      finish(sent ? undefined : new DeliveryError("the receiver closed the connection before it had everything")),
    );
    socket.once("close", () => finish(new DeliveryError("the connection broke before the receiver had everything")));
    socket.resume(); // a receiver says nothing; whatever it says is dropped
    void (async () => {
      for (const chunk of frames) {
        if (socket.destroyed) return;
        if (!socket.write(chunk)) await new Promise<void>((drained) => socket.once("drain", drained));
      }
      socket.end(() => (sent = true));
    })();
  });
}
