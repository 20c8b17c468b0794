import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { request as tlsRequest } from "node:https";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { once } from "node:events";
import { openCosignatures, parseCheckpointText, parseVerifierKey } from "@glasskey/verify";
import { afterEach, expect, test } from "vitest";
import { createAuthority, issueServerCertificate } from "../../server/src/core/certificates.ts";
import { growingLog, type GrowingLog } from "../testing/log.ts";
import { addLog, openWitnessFolder, type WitnessFolder } from "./folder.ts";
import { serveWitness, type ServeOptions } from "./server.ts";

const cleanup: (() => unknown)[] = [];
afterEach(async () => {
  for (const undo of cleanup.splice(0).toReversed()) await undo();
});

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "glasskey-witness-"));
  cleanup.push(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

interface Running {
  port: number;
  witness: WitnessFolder;
  folder: string;
  problems: unknown[];
}

async function start(logs: readonly GrowingLog[], options: Partial<ServeOptions> = {}): Promise<Running> {
  const [folder, problems] = [newFolder(), [] as unknown[]];
  const witness = openWitnessFolder({ folder, name: "w.test/1" });
  cleanup.push(witness.close);
  for (const log of logs) addLog(folder, log.signer.vkey);
  const onProblem = (error: unknown): unknown => problems.push(error);
  const server = await serveWitness({ witness, host: "127.0.0.1", port: 0, onProblem, ...options });
  cleanup.push(server.stop);
  return { port: server.port, witness, folder, problems };
}

interface Reply {
  status: number;
  body: string;
  headers: Record<string, unknown>;
}

function send(
  port: number,
  body: string | Buffer,
  options: { method?: string; path?: string; ca?: string; chunked?: boolean } = {},
): Promise<Reply> {
  const { method = "POST", path = "/add-checkpoint", ca } = options;
  return new Promise((resolve, reject) => {
    const headers = options.chunked === true ? {} : { "content-length": Buffer.byteLength(body) };
    const target = { host: "127.0.0.1", port, method, path, headers, agent: false };
    const sent = ca === undefined ? request(target) : tlsRequest({ ...target, ca, servername: "localhost" });
    sent.on("response", (response) => {
      let text = "";
      response.on("data", (part: Buffer) => (text += part.toString()));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, body: text, headers: response.headers }));
      response.on("error", reject);
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

function grown(size: number, origin?: string): GrowingLog {
  const log = growingLog(origin);
  log.append(size);
  return log;
}

test("add-checkpoint over HTTP: 200 with the cosignature's line, 409 with the size", async () => {
  const log = grown(9);
  const { port, witness } = await start([log]);
  const first = await send(port, await log.body(0, 5));
  expect(first.status).toBe(200);
  expect(openCosignatures(log.checkpoint(5) + first.body, [parseVerifierKey(witness.signer.vkey)])).toHaveLength(1);
  const second = await send(port, await log.body(0, 9));
  expect(second).toMatchObject({ status: 409, body: "5\n", headers: { "content-type": "text/x.tlog.size" } });
});

test("it serves nothing else, and tells nothing of itself", async () => {
  const log = grown(5);
  const { port } = await start([log]);
  const body = await log.body(0, 5);
  const asked: [string, string][] = [
    ["GET", "/add-checkpoint"],
    ["PUT", "/add-checkpoint"],
    ["POST", "/"],
    ["POST", "/add-checkpoint/"],
    ["POST", "/add-checkpoint?x=1"],
    ["POST", "/sign-subtree"],
    ["GET", "/witness.key"],
    ["GET", "/../witness.key"],
    ["GET", "/logs"],
    ["GET", "/healthz"],
  ];
  for (const [method, path] of asked) {
    const reply = await send(port, body, { method, path });
    expect([path, reply.status, reply.body]).toEqual([path, 404, "not found\n"]);
    expect(Object.keys(reply.headers).filter((name) => /server|powered/i.test(name))).toEqual([]);
  }
  // A log that it does not know looks like a path that it does not have.
  expect(await send(port, await grown(3, "stranger.test/log").body(0, 3))).toMatchObject({
    status: 404,
    body: "not found\n",
  });
});

test("of many requests at once for one size, every cosignature is of one history", async () => {
  const log = grown(40);
  const { port, witness } = await start([log]);
  const fork = log.fork(0);
  const sizes = Array.from({ length: 40 }, (_, i) => i + 1);
  const asked = sizes.flatMap((size) => [log, fork].map(async (of) => ({ of, size, body: await of.body(0, size) })));
  const replies = await Promise.all(
    asked.map(async (each) => ({ ...(await each), reply: await send(port, (await each).body) })),
  );
  const cosigned = replies.filter(({ reply }) => reply.status === 200);
  // Whichever came first was cosigned; all others named a size that is not the last one any more.
  expect(cosigned).toHaveLength(1);
  expect(replies.filter(({ reply }) => reply.status === 409)).toHaveLength(79);
  const [last] = witness.logs();
  expect(last?.cosigned?.checkpoint.size).toBe(cosigned[0]?.size);
});

test("a body that is too large, announced or not, is refused, and the witness goes on", async () => {
  const log = grown(5);
  const { port, problems } = await start([log]);
  const huge = Buffer.alloc(1 << 20, 0x61);
  for (const chunked of [false, true]) {
    // It answers 413; a client that goes on sending may find the connection closed instead.
    const status = await send(port, huge, { chunked }).then(
      (reply) => reply.status,
      () => 413,
    );
    expect(status).toBe(413);
  }
  expect((await send(port, await log.body(0, 5))).status).toBe(200);
  expect(problems).toEqual([]);
});

test("connections beyond the limit and half-sent requests do not keep a log from its witness", async () => {
  const log = grown(5);
  const { port, problems } = await start([log]);
  const idle = Array.from({ length: 100 }, () => connect(port, "127.0.0.1"));
  cleanup.push(() => idle.forEach((socket) => socket.destroy()));
  await Promise.all(idle.map((socket) => once(socket, "connect")));
  for (const socket of idle)
    socket.on("error", () => {}).write("POST /add-checkpoint HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nold");
  expect((await send(port, await log.body(0, 5))).status).toBe(200);
  for (const socket of idle) socket.destroy();
  expect(problems).toEqual([]);
});

test("what goes wrong inside is told to the operator, and to the client only that it did", async () => {
  const log = grown(9);
  const { port, folder, problems } = await start([log]);
  await send(port, await log.body(0, 5));
  writeFileSync(join(folder, "logs", readdirSync(join(folder, "logs"))[0] ?? "", "cosigned"), "garbage");
  expect(await send(port, await log.body(5, 9))).toMatchObject({
    status: 500,
    body: "this witness cannot cosign now\n",
  });
  expect(problems.map(String)).toEqual([expect.stringContaining(folder)]);
});

test("over TLS it is believed under its CA, and speaks no plain HTTP", async () => {
  const log = grown(5);
  const ca = await createAuthority("witness test", 2);
  const tls = await issueServerCertificate(ca, ["localhost", "127.0.0.1"], 1);
  const { port } = await start([log], { tls });
  expect((await send(port, await log.body(0, 5), { ca: ca.cert })).status).toBe(200);
  await expect(send(port, await log.body(5, 5))).rejects.toThrow();
});

test(
  "killed at any moment, again and again, it never cosigns two histories nor an older one",
  { timeout: 300_000 },
  async () => {
    const log = grown(60);
    const fork = log.fork(2);
    const folder = newFolder();
    openWitnessFolder({ folder, name: "w.test/1" }).close();
    addLog(folder, log.signer.vkey);
    const heard = new Map<number, string>(); // size → root, of every cosignature that left
    let last = 0;
    for (let round = 0; round < 8; round += 1) {
      const { child, port, vkey } = await startProgram(folder);
      const sizeNow = Number((await send(port, await log.body(60, 60))).body);
      if (last > 0 && round > 0) expect(sizeNow, "what was cosigned is remembered").toBeGreaterThanOrEqual(last);
      let size = Number.isNaN(sizeNow) ? 60 : sizeNow;
      const ended = once(child, "exit");
      const killAt = Math.min(59, size + 3 + (round % 4));
      for (let alive = true; alive && size < 60;) {
        const target = size + 1;
        if (size >= killAt) setTimeout(() => child.kill("SIGKILL"), round % 3); // with requests on their way
        const answers = await Promise.allSettled([
          log.body(size, target).then((body) => send(port, body)),
          fork.body(size, target).then((body) => send(port, body)),
        ]);
        for (const [i, answer] of answers.entries()) {
          if (answer.status === "rejected") alive = false;
          else if (answer.value.status === 200) {
            const of = i === 0 ? log : fork;
            const note = of.checkpoint(target) + answer.value.body;
            expect(openCosignatures(note, [parseVerifierKey(vkey)])).toHaveLength(1);
            const root = Buffer.from(parseCheckpointText(note.slice(0, note.indexOf("\n\n") + 1)).root).toString("hex");
            expect(heard.get(target) ?? root, `one root at ${target}`).toBe(root);
            heard.set(target, root);
            last = Math.max(last, target);
            size = target;
          }
        }
      }
      child.kill("SIGKILL");
      await ended;
    }
    expect(heard.size).toBeGreaterThan(10);
    const cosigned = readFileSync(join(folder, "logs", readdirSync(join(folder, "logs"))[0] ?? "", "cosigned"), "utf8");
    expect(parseCheckpointText(cosigned.slice(0, cosigned.indexOf("\n\n") + 1)).size).toBeGreaterThanOrEqual(last);
  },
);

/** The program itself, on a free port. */
async function startProgram(folder: string): Promise<{ child: ChildProcess; port: number; vkey: string }> {
  const program = join(import.meta.dirname, "../bin/glasskey-witness.mjs");
  const child = spawn(process.execPath, [program, folder, "--listen", "127.0.0.1:0"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  cleanup.push(() => child.kill("SIGKILL"));
  let out = "";
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  child.stdout.on("data", (part: Buffer) => {
    out += part.toString();
    if (/^Listening on /m.test(out)) resolve();
  });
  child.once("exit", () => reject(new Error(`the witness ended: ${out}`)));
  await promise;
  const [, port = ""] = /Listening on http:\/\/127\.0\.0\.1:(\d+)/.exec(out) ?? [];
  const [, vkey = ""] = /^This witness's key: (\S+)/.exec(out) ?? [];
  return { child, port: Number(port), vkey };
}
