import { writeFileSync } from "node:fs";
import { createServer as createTcpServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { TLSSocket } from "node:tls";
import { afterEach, expect, inject, test } from "vitest";
import { issueServerCertificate, createAuthority } from "../core/certificates.ts";
import { DeliveryError, networkFault, type Item } from "./sink.ts";
import { syslogDriver } from "./syslog.ts";
import { configOf, ORIGIN, startRig, tagsOf, until, type Rig } from "./testing/rig.ts";
import { freePort, hasRsyslog, startRsyslog, written } from "./testing/rsyslog.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

async function rigOf(): Promise<Rig> {
  const rig = await startRig(inject("pg18"));
  undo.push(() => rig[Symbol.asyncDispose]());
  return rig;
}
const upTo = (size: number): readonly number[] => Array.from({ length: size }, (_, i) => i);
const speaker = { origin: ORIGIN, version: "0.1.0" };

/** Delivers a megabyte to a port and says how it went: undefined when it counts. */
async function deliver(rig: Rig, port: number): Promise<string | undefined> {
  const [sink] = configOf({ siem: { kind: "syslog", host: "127.0.0.1", port, ca: rig.ca } });
  if (sink?.kind !== "syslog") throw new Error("not syslog");
  const items = upTo(1_000).map((index): Item => {
    const about = { index, leafHash: "ab".repeat(32), type: "login.failed", at: "2026-11-20T02:14:09.120Z" } as const;
    return { ...about, severity: "medium", json: JSON.stringify({ index, pad: "x".repeat(700) }) };
  });
  return syslogDriver(sink, speaker)
    .deliver(items, AbortSignal.timeout(40_000))
    .then(
      () => undefined,
      (error: unknown) => (error instanceof DeliveryError ? error.message : `not a DeliveryError: ${String(error)}`),
    );
}

/** A receiver over TLS that hands out the connection below as well. */
async function receiver(rig: Rig, on: (tls: TLSSocket, tcp: Socket) => void): Promise<number> {
  const open = new Set<Socket>();
  const server = createTcpServer({ allowHalfOpen: true }, (tcp) => {
    open.add(tcp);
    tcp.on("error", () => {});
    const { key, cert } = rig.identity;
    const tls = new TLSSocket(tcp, { isServer: true, key, cert });
    tls.on("error", () => {});
    on(tls, tcp);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  undo.push(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** Reads some of it, and lets the rest arrive unread. */
function afterSome(tls: TLSSocket, leave: () => void): void {
  tls.once("data", () => {
    tls.pause();
    setTimeout(leave, 300); // by then the sender's system has taken all of it
  });
}

test("a receiver that says farewell in good order before it has read everything has taken nothing", async () => {
  const rig = await rigOf();
  const left: Record<string, (tls: TLSSocket, tcp: Socket) => void> = {
    "ends and closes": (tls) => tls.destroySoon(),
    "ends and is reset": (tls, tcp) => tls.end(() => tcp.resetAndDestroy()),
  };
  for (const [how, leave] of Object.entries(left)) {
    const port = await receiver(rig, (tls, tcp) => afterSome(tls, () => leave(tls, tcp)));
    expect(await deliver(rig, port), how).toMatch(/connection/);
  }
});

test("an error says whose certificate is at fault, the receiver's or ours", async () => {
  const rig = await rigOf();
  const plain = createTcpServer((socket) => socket.on("error", () => {}).end("220 no TLS here\r\n"));
  await new Promise<void>((resolve) => plain.listen(0, "127.0.0.1", resolve));
  undo.push(() => plain.close());
  expect(await deliver(rig, (plain.address() as AddressInfo).port)).toMatch(/^TLS failed \(ERR_SSL_\w+\)$/);
  for (const [code, text] of Object.entries({
    ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED: "it did not take our certificate, or demands one",
    ERR_SSL_TLSV1_ALERT_UNKNOWN_CA: "it did not take our certificate, or demands one",
    ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION: "TLS failed",
    ERR_OSSL_PEM_NO_START_LINE: "the files of `ca`, `cert` and `key` do not hold, or do not fit each other",
    CERT_HAS_EXPIRED: "its certificate does not hold",
    UNABLE_TO_VERIFY_LEAF_SIGNATURE: "its certificate does not hold",
    ECONNREFUSED: "the connection failed",
  }))
    expect(networkFault(Object.assign(new Error("hostile"), { code })).message).toBe(`${text} (${code})`);
});

test("a receiver counts whether it ends its connection with TLS, or waits until we end ours", async () => {
  const rig = await rigOf();
  const whole: Record<string, (tls: TLSSocket, tcp: Socket) => void> = {
    "at once": (tls) => tls.destroySoon(),
    "after us": (tls, tcp) => {
      tls.end();
      tcp.once("end", () => tcp.end());
    },
  };
  for (const [how, leave] of Object.entries(whole)) {
    let read = 0;
    const port = await receiver(rig, (tls, tcp) => {
      tls.on("data", (chunk: Buffer) => (read += chunk.length));
      tls.once("end", () => leave(tls, tcp));
    });
    expect(await deliver(rig, port), how).toBeUndefined();
    expect(read).toBeGreaterThan(700_000);
  }
});

test.skipIf(!hasRsyslog)(
  "a real rsyslog that demands a certificate gets entries from who has the one that it permits, and from nobody else",
  async () => {
    const rig = await rigOf();
    const authority = await createAuthority("strangers", 2);
    const port = await freePort();
    const file = (name: string, text: string): string => {
      const path = join(rig.folder, name);
      writeFileSync(path, text);
      return path;
    };
    // The rig's authority has signed both of its identities; rsyslog permits the name of one.
    const pair = (name: string, { cert, key }: { cert: string; key: string }) => ({
      cert: file(`${name}.pem`, cert),
      key: file(`${name}.key`, key),
    });
    const stranger = await issueServerCertificate(authority, ["elsewhere.example"], 2);
    await startRsyslog(rig, port, (step) => undo.push(step), "elsewhere.example");
    const base = { kind: "syslog", host: "127.0.0.1", port, ca: rig.ca, from: "start" };
    const bad = await rig.sinks({
      none: base,
      othername: { ...base, ...pair("othername", rig.identity) },
      otherca: { ...base, ...pair("otherca", stranger) },
      mixed: { ...base, cert: pair("one", rig.stranger).cert, key: pair("two", rig.identity).key },
    });
    const size = await rig.add(50);
    const failing = await until(async () => {
      const all = await bad.status();
      const met = ({ lastError }: (typeof all)[number]) => lastError !== null && !lastError.includes("ECONNREFUSED");
      return all.every(met) ? all : undefined;
    });
    expect(written(rig)).toEqual([]);
    for (const { name, nextIndex } of failing) expect(nextIndex, name).toBe(0);
    expect(failing.find(({ name }) => name === "mixed")?.lastError).toMatch(/^the files of `ca`, `cert` and `key`/);
    await bad.stop();
    await rig.sinks({ siem: { ...base, ...pair("siem", rig.stranger) } });
    await until(async () => (await rig.next("siem")) >= size);
    expect(tagsOf(written(rig).map(([, , , body = ""]) => body)).map(({ index }) => index)).toEqual(upTo(size));
  },
);
