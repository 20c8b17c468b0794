import { connect } from "node:net";
import { once } from "node:events";
import { afterEach, expect, test } from "vitest";
import { connectLine, login, SECRET, startRig, until, type Rig } from "./testing/rig.ts";

let rigs: Rig[] = [];
afterEach(async () => {
  await Promise.all(rigs.map((rig) => rig.close()));
  rigs = [];
});

async function rig(
  limits: NonNullable<Parameters<typeof startRig>[0]>["limits"] = {},
): Promise<Rig & { line: number }> {
  const started = await startRig({ limits });
  rigs.push(started);
  started.backend.grants.set("gr_a", { endsInMs: 60_000 });
  return { ...started, line: started.ports.line ?? 0 };
}

test("whoever proves nothing in time is put out; whoever has a session stays", async () => {
  const r = await rig({ handshakeMs: 250 });
  const silent = await connectLine(r.line);
  const user = await login(r.line, "gr_a");
  await silent.closedMs;
  await new Promise((resolve) => setTimeout(resolve, 300));
  user.say("echo here");
  expect(await user.line("echo")).toBe("echo here");
});

test("a protocol in which a person types the secret gives them its own time, and no other protocol's", async () => {
  const r = await rig({ handshakeMs: 250 });
  const [typing, silent] = [await connectLine(r.ports["line-patient"] ?? 0), await connectLine(r.line)];
  r.backend.grants.set("gr_p", { endsInMs: 60_000, kind: "line-patient" });
  await silent.closedMs;
  await new Promise((resolve) => setTimeout(resolve, 300));
  typing.say(`hello gr_p ${SECRET}`);
  expect(await typing.line("welcome")).toMatch(/^welcome/);
});

test("one address may hold so many unproved connections, and sessions do not count among them", async () => {
  const r = await rig({ unprovedConnectionsPerAddress: 2 });
  for (let i = 0; i < 3; i++) await login(r.line, "gr_a");
  const held = [await connectLine(r.line), await connectLine(r.line)];
  const third = await connectLine(r.line);
  await third.closedMs;
  held[0]?.socket.destroy();
  await held[0]?.closedMs;
  await until(() => held[0]?.socket.closed === true);
  const next = await login(r.line, "gr_a");
  expect(next.lines[0]).toMatch(/^welcome/);
});

test("strangers who fill the lobby do not lock the door: the oldest of them makes room", async () => {
  const r = await rig({ unprovedConnections: 3 });
  const strangers = [await connectLine(r.line), await connectLine(r.line), await connectLine(r.line)];
  await login(r.line, "gr_a");
  await strangers[0]?.closedMs;
  expect(strangers[2]?.socket.closed).toBe(false);
});

test("connections are bounded in total and per address, and room comes back", async () => {
  const r = await rig({ connectionsPerAddress: 2 });
  const first = await login(r.line, "gr_a");
  await login(r.line, "gr_a");
  const third = await connectLine(r.line);
  await third.closedMs;
  first.say("bye");
  await first.closedMs;
  await until(() => r.backend.ended.length === 1);
  const next = await login(r.line, "gr_a");
  expect(next.lines[0]).toMatch(/^welcome/);
});

test("failed attempts are told and then refused, alike for names that exist and names that do not", async () => {
  const r = await rig({ slowAfterFailures: 1_000, refuseAfterFailures: 4 });
  for (const user of ["gr_a", "gr_none", "gr_a", "gr_none"]) {
    const client = await connectLine(r.line);
    client.say(`hello ${user} wrong`);
    expect(await client.line("error")).toBe("error unauthenticated wrong secret");
    client.socket.destroy();
  }
  expect(r.backend.failures).toEqual(["gr_a", "gr_none", "gr_a", "gr_none"]);
  for (const user of ["gr_a", "gr_none"]) {
    const client = await connectLine(r.line);
    client.say(`hello ${user} ${SECRET}`);
    expect(await client.line("error")).toBe("error too_many_attempts too many failed attempts from this address");
  }
});

test("a name that failed often is answered slowly, but is not locked out", async () => {
  const r = await rig({ slowAfterFailures: 1 });
  const attacker = await connectLine(r.line);
  attacker.say("hello gr_a wrong");
  await attacker.line("error");
  const startMs = performance.now();
  await login(r.line, "gr_a");
  expect(performance.now() - startMs).toBeGreaterThan(200);
});

test("one connection may try a few times only", async () => {
  const r = await rig();
  const client = await connectLine(r.line);
  for (let i = 0; i < 7; i++) client.say("hello gr_a wrong");
  await until(() => client.lines.length === 7);
  client.say(`hello gr_a ${SECRET}`);
  await until(() => client.lines.length === 8);
  expect(client.lines.at(-1)).toBe("error too_many_attempts too many attempts on one connection");
});

test("names and descriptions without bounds are refused before the control plane sees them", async () => {
  const r = await rig();
  const client = await connectLine(r.line);
  client.say(`hello ${"x".repeat(300)} ${SECRET}`);
  expect(await client.line("error")).toMatch(/^error unauthenticated/);
  client.say(`hello gr_a ${SECRET} ${"m".repeat(9_000)}`);
  await client.line("error usage");
  expect(r.backend.opened).toEqual([]);
});

test("a protocol that throws when it is served loses that connection and nothing else", async () => {
  const r = await rig();
  const socket = connect(r.ports.broken ?? 0, "127.0.0.1").on("error", () => undefined);
  await once(socket, "close");
  await until(() => r.backend.lines.length === 1);
  expect(r.backend.lines).toEqual(["broken failed to serve a connection: serve is broken"]);
  await login(r.line, "gr_a");
});

test("resets in mid-handshake leave nothing behind", async () => {
  const r = await rig({ connectionsPerAddress: 20 });
  for (let round = 0; round < 3; round++) {
    const clients = await Promise.all(Array.from({ length: 15 }, () => connectLine(r.line)));
    for (const client of clients) client.say(`hello gr_a ${SECRET}`);
    for (const client of clients) client.socket.resetAndDestroy();
    await Promise.all(clients.map((client) => client.closedMs));
    await until(() => r.backend.ended.length === r.backend.opened.length);
  }
  await login(r.line, "gr_a");
  await until(() => r.backend.ended.length === r.backend.opened.length - 1);
  expect(new Set(r.backend.ended.map(({ session }) => session)).size).toBe(r.backend.ended.length);
});
