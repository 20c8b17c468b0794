import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect as connectTcp, isIP, type Socket } from "node:net";
import { hostname } from "node:os";
import { Duplex } from "node:stream";
import { checkServerIdentity, connect as connectTls } from "node:tls";
import { sleep } from "../core/clock.ts";
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
const FAREWELL_MS = 2_000;
/** A reset that follows the farewell is on its way by then: both are sent in one go. */
const RESET_MS = 20;
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
      const connection = await connect(sink, signal);
      try {
        await sendAndClose(connection, frames, signal);
      } finally {
        connection.stream.destroy();
        connection.tcp.destroy();
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

/** `stream` takes the messages; `tcp` is what lies under it, or the same where there is no TLS. */
interface Connection {
  readonly stream: Socket;
  readonly tcp: Socket;
}

async function connect(sink: SyslogSink, signal: AbortSignal): Promise<Connection> {
  const slow = AbortSignal.any([signal, AbortSignal.timeout(CONNECT_MS)]);
  const secure = sink.transport === "tls" ? identity(sink) : undefined;
  // A half-open connection is what tells us that the receiver has read to the end.
  const tcp = connectTcp({ host: sink.host, port: sink.port, allowHalfOpen: true });
  try {
    await ready(tcp, "connect", slow);
    if (secure === undefined) return { stream: tcp, tcp };
    const stream = connectTls({ ...secure, host: sink.host, socket: endless(tcp) });
    await ready(stream, "secureConnect", slow);
    return { stream, tcp };
  } catch (error) {
    tcp.destroy();
    if (signal.aborted) throw new DeliveryError("it was interrupted");
    throw slow.aborted ? new DeliveryError(`no connection within ${CONNECT_MS / 1000} s`) : networkFault(error);
  }
}

function ready(socket: Socket, event: "connect" | "secureConnect", slow: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const tooSlow = (): void => reject(new DeliveryError("too slow"));
    slow.addEventListener("abort", tooSlow, { once: true });
    socket.on("error", reject); // stays: an error that nobody listens to would end the process
    socket.once("close", () => reject(new DeliveryError("the connection was closed")));
    socket.once(event, () => {
      slow.removeEventListener("abort", tooSlow);
      resolve();
    });
    if (slow.aborted) tooSlow();
  });
}

/**
 * What TLS runs on: the connection's bytes as they are, but when TLS ends, the connection does not, so that it can be
 * seen how the receiver ends it.
 */
function endless(tcp: Socket): Duplex {
  const under = new Duplex({
    read: () => void tcp.resume(),
    write: (chunk: Buffer, _encoding, done) => void tcp.write(chunk, done),
    final: (done) => done(),
    destroy(error, done) {
      tcp.resume();
      done(error);
    },
  });
  tcp.on("data", (chunk: Buffer) => {
    if (!under.destroyed && !under.push(chunk)) tcp.pause();
  });
  tcp.once("end", () => {
    if (!under.destroyed) under.push(null);
  });
  tcp.once("error", (error) => under.destroy(error));
  tcp.once("close", () => under.destroy());
  return under;
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
async function sendAndClose(
  { stream, tcp }: Connection,
  frames: readonly Buffer[],
  signal: AbortSignal,
): Promise<void> {
  const slow = AbortSignal.any([signal, AbortSignal.timeout(BATCH_MS)]);
  const gone = new DeliveryError("the connection broke before the receiver had everything");
  let onSlow = (): void => {};
  const failed = new Promise<never>((_, reject) => {
    onSlow = (): void =>
      reject(
        signal.aborted
          ? new DeliveryError("it was interrupted")
          : new DeliveryError(`the receiver did not read to the end and close within ${BATCH_MS / 1000} s`, {
              slow: true,
            }),
      );
    slow.addEventListener("abort", onSlow, { once: true });
    if (slow.aborted) onSlow();
    for (const socket of new Set([stream, tcp])) socket.on("error", (error) => reject(networkFault(error)));
    tcp.once("close", () => reject(gone));
  });
  failed.catch(() => {}); // looked at below
  let sent = false;
  const ended = new Promise<void>((resolve, reject) => {
    stream.once("end", () => {
      if (sent) resolve();
      else reject(new DeliveryError("the receiver closed the connection before it had everything"));
    });
  });
  ended.catch(() => {});
  stream.resume(); // a receiver says nothing; whatever it says is dropped
  try {
    for (const chunk of frames) {
      if (stream.destroyed) await failed;
      if (!stream.write(chunk)) await Promise.race([once(stream, "drain"), ended, failed]);
    }
    stream.end(() => (sent = true));
    await Promise.race([ended, failed]);
    if (stream !== tcp) await Promise.race([wholeClose(tcp), failed]);
  } finally {
    slow.removeEventListener("abort", onSlow);
  }
}

/**
 * TLS says its farewell in the same way when a receiver has read everything and when it leaves in the middle of it. What
 * differs is below: a system that closes a connection on which something lies unread resets it.
 */
async function wholeClose(tcp: Socket): Promise<void> {
  if (!tcp.readableEnded) await once(tcp, "end", { signal: AbortSignal.timeout(FAREWELL_MS) }).catch(() => {});
  if (!tcp.readableEnded) {
    tcp.end(); // it waits for us to go first
    await once(tcp, "end");
    return;
  }
  await sleep(RESET_MS);
  // Into a connection that was closed whole this goes nowhere; one that was reset takes no byte any more.
  await new Promise<void>((resolve, reject) => {
    tcp.write(Buffer.of(0), (error) => (error ? reject(networkFault(error)) : resolve()));
  });
}
