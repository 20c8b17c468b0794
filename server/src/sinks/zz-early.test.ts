import { createServer as createTls } from "node:tls";
import { createServer as createTcp, type AddressInfo, type Socket } from "node:net";
import { expect, inject, test } from "vitest";
import { startRig } from "./testing/rig.ts";
import { syslogDriver } from "./syslog.ts";
import { configOf } from "./testing/rig.ts";
import type { Item } from "./sink.ts";

const items: Item[] = Array.from({ length: 1000 }, (_, index) => ({
  index, leafHash: "ab".repeat(32), type: "login.failed", at: "2026-11-20T02:14:09.120Z", severity: "medium", json: JSON.stringify({ index, pad: "x".repeat(700) }),
}));
test("early", async () => {
  const rig = await startRig(inject("pg18"));
  for (const kind of ["tls", "tcp"] as const) for (const way of ["end-then-destroy", "end-then-linger", "destroySoon"]) {
    let read = 0;
    const on = (socket: Socket) => {
      socket.on("error", () => {});
      socket.on("data", (chunk: Buffer) => {
        read += chunk.length;
        socket.pause(); setTimeout(() => {
        if (way === "destroySoon") socket.destroySoon();
        else { socket.end(); if (way === "end-then-destroy") setTimeout(() => socket.destroy(), 100); else setTimeout(() => socket.destroy(), 3000); } }, 300);
      });
    };
    const server = kind === "tls" ? createTls({ key: rig.identity.key, cert: rig.identity.cert, allowHalfOpen: true }, on) : createTcp({ allowHalfOpen: true }, on);
    await new Promise<void>((r) => server.listen(0, "127.0.0.1", r));
    const [sink] = configOf({ s: { kind: "syslog", host: "127.0.0.1", port: (server.address() as AddressInfo).port, transport: kind, ...(kind === "tls" ? { ca: rig.ca } : {}) } });
    if (sink?.kind !== "syslog") throw new Error();
    const d = syslogDriver(sink, { origin: "o", version: "1" });
    const r = await d.deliver(items, AbortSignal.timeout(20000)).then(() => "DELIVERED", (e) => String(e));
    console.log(kind, way, "read", read, r);
    server.close();
  }
  await rig[Symbol.asyncDispose]();
  expect(1).toBe(1);
}, 60_000);
