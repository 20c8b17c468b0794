import { hash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { request as httpsRequest } from "node:https";
import type { IncomingHttpHeaders } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LogEntryView, LogKeyList, LogKeyView, LogPage, LogProof, LogStatus } from "@glasskey/contract";
import { openWitnessed, parseNote, parseProof, parseVerifierKeys, verifyProof, witnessPolicy } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { addLog, openWitnessFolder, serveWitness } from "../../../witness/src/index.ts";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";

const SECRET = "a-secret-of-the-tests";
const PATIENCE = { timeout: 30_000, interval: 100 };
let system: TestSystem;
let witnessKey: string;
let cleanUp = async (): Promise<void> => {};

beforeAll(async () => {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-witness-"));
  const witness = openWitnessFolder({ folder, name: "witness.example/w" });
  const server = await serveWitness({ witness, host: "127.0.0.1", port: 0, onProblem: () => {} });
  witnessKey = witness.signer.vkey;
  const of = [{ key: witnessKey, url: `http://127.0.0.1:${server.port}` }];
  system = await startTestSystem(inject("pg18"), {}, { origin: "example.org/glasskey", witnesses: { need: 1, of } });
  addLog(folder, system.server().vkey);
  cleanUp = async () => {
    await server.stop();
    witness.close();
    await rm(folder, { recursive: true, force: true });
  };
});
afterAll(async () => {
  await (system as TestSystem | undefined)?.dispose();
  await cleanUp();
});

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
}

/** A request as it is, such as a verifier's: the path is not made neat, and nothing is added. */
async function raw(path: string, headers: Record<string, string> = {}, method = "GET"): Promise<Answer> {
  const { url, caFile } = system.server();
  const ca = await readFile(caFile, "utf8");
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    const request = httpsRequest({ ...{ hostname, port, path, headers, method, ca }, agent: false });
    request.once("error", reject);
    request.once("response", (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.once("end", () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }),
      );
      response.once("error", reject);
    });
    request.end();
  });
}

async function bearer(person: string): Promise<Record<string, string>> {
  const client = await system.as("");
  const { token } = await client.call<{ token: string }>("POST", "/v1/login", { name: person, secret: SECRET });
  return { authorization: `Bearer ${token}` };
}

test("checkpoints and hash tiles are anybody's, immutable ones for ever, the newest asked for each time", async () => {
  const newest = await raw("/log/checkpoint");
  expect(newest).toMatchObject({
    status: 200,
    headers: { "content-type": "text/plain; charset=utf-8", "cache-control": "no-cache" },
  });
  const size = Number(newest.body.toString().split("\n")[1]);
  const kept = await raw(`/log/checkpoints/${size}`);
  expect(kept).toMatchObject({ status: 200, headers: { "cache-control": "public, max-age=31536000, immutable" } });
  expect(kept.body.equals(newest.body)).toBe(true);
  const tile = await raw(`/log/tile/0/000.p/${size}`);
  expect(tile).toMatchObject({
    status: 200,
    headers: { "content-type": "application/octet-stream", "cache-control": "public, max-age=31536000, immutable" },
  });
  expect(tile.body).toHaveLength(size * 32);

  const { etag = "" } = kept.headers;
  const known = await raw(`/log/checkpoints/${size}`, { "if-none-match": `"other", W/${etag}` });
  expect(known).toMatchObject({ status: 304, headers: { etag } });
  expect(known.body).toHaveLength(0);
  const head = await raw(`/log/checkpoints/${size}`, {}, "HEAD");
  expect(head).toMatchObject({ status: 200, headers: { etag, "content-length": String(kept.body.length) } });
  expect(head.body).toHaveLength(0);
});

test("entry bundles are for who may read the log, and no shared cache keeps them", async () => {
  const size = Number((await raw("/log/checkpoint")).body.toString().split("\n")[1]);
  const path = `/log/tile/entries/000.p/${size}`;
  expect((await raw(path)).status).toBe(401);
  expect((await raw(path, await bearer("ann"))).status).toBe(403);
  const bundle = await raw(path, await bearer("ida"));
  expect(bundle).toMatchObject({
    status: 200,
    headers: { "cache-control": "private, max-age=31536000, immutable", vary: expect.stringMatching(/authorization/i) },
  });
  expect(bundle.body.subarray(2, bundle.body.readUInt16BE(0) + 2).toString()).toMatch(/^\{"actor":/);
});

test("however a path is written, entries stay closed, and no cache keeps an answer that has no file", async () => {
  for (const path of [
    "/log/tile/%65ntries/000.p/1",
    "/log/tile/entries%2F000.p/1",
    "/log/tile/0/../entries/000.p/1",
    "/log/tile/0/%2e%2e/entries/000.p/1",
    "/log/./tile/entries/000.p/1",
    "//log/tile/entries/000.p/1",
    "/log/tile//entries/000.p/1",
    "/log/tile/ENTRIES/000.p/1",
    "/log/tile/entries/000.p/1?x=/log/tile/0/000.p/1",
    "/log/tile/0/000.p/1%00/entries",
    "/log/checkpoints/999999999",
    "/log/checkpoints/../checkpoint",
    "/log/tile/0/x001/000",
    "/log/chunks/se_000000000000/0.gkc",
  ]) {
    const { status, headers, body } = await raw(path);
    expect([path, status >= 400 && status < 500, headers["cache-control"]]).toEqual([path, true, "no-store"]);
    expect(body.includes('{"actor"')).toBe(false);
  }
});

test("what is beyond the checkpoint, or another spelling of a path, is not found", async () => {
  const reader = await bearer("ida");
  for (const path of [
    "/log/tile/0/000",
    "/log/tile/0/000.p/255",
    "/log/tile/0/000.p/0",
    "/log/tile/0/000.p/01",
    "/log/tile/0/0",
    "/log/tile/00/000.p/1",
    "/log/tile/8/000.p/1",
    "/log/tile/entries/000.p/255",
    "/log/tile/entries/../0/000.p/1",
    "/log/tile/0/../../checkpoint",
    "/log/tile/%2e%2e/checkpoint",
    "/log/tile/..%2fcheckpoint",
    "/log/tile/0/000.p/1%00",
    "/log/tile//0/000.p/1",
    "/log/checkpoints/0",
    "/log/checkpoints/01",
    "/log/checkpoints/999999",
    "/log/checkpoints/-1",
    "/log/checkpoints/..%2fcheckpoint",
    "/log/chunks/se_0123456789ab/0.gkc",
    "/log/chunks/se_0123456789ab/0",
    "/log/chunks/..%2f..%2fetc/0.gkc",
    "/log/nothing",
  ]) {
    expect((await raw(path, reader)).status, path).toBe(404);
    expect((await raw(path, reader, "HEAD")).status, `HEAD ${path}`).toBe(404);
  }
});

test("entries are shown as checkpointed, then as witnessed, and the proof of one carries the cosignature", async () => {
  const ida = await system.as("ida");
  const { size } = await ida.call<LogPage>("GET", "/v1/log?from=0&limit=1");
  await expect
    .poll(async () => (await ida.call<LogPage>("GET", "/v1/log?from=0&limit=1")).witnessed, PATIENCE)
    .toBeGreaterThanOrEqual(size);
  const page = await ida.call<LogPage>("GET", "/v1/log");
  expect(page.archived).toBeNull();
  for (const { index, state } of page.entries)
    expect(state).toBe(index < (page.witnessed ?? 0) ? "witnessed" : "checkpointed");
  expect(page.entries[0]?.state).toBe("witnessed");

  const { proof, entry, witnessed } = await ida.call<LogProof>("GET", "/v1/log/proof/0");
  expect(witnessed).toBe(true);
  expect(verifyProof({ proof, entry: Buffer.from(entry), vkey: system.server().vkey }).index).toBe(0);
  const [own, policy] = [parseVerifierKeys(system.server().vkey), witnessPolicy(1, [witnessKey])];
  const checkpoint = openWitnessed(parseProof(proof).checkpoint, own, policy);
  expect(checkpoint.cosignatures.map(({ name }) => name)).toEqual(["witness.example/w"]);
  const served = await raw("/log/checkpoint.witnessed");
  expect(served).toMatchObject({ status: 200, headers: { "cache-control": "no-cache" } });
  expect(openWitnessed(served.body, own, policy).size).toBeGreaterThanOrEqual(checkpoint.size);

  const folder = system.server().logDir;
  await expect
    .poll(
      () =>
        readFile(join(folder, "checkpoint.witnessed")).then(
          (note) => openWitnessed(note, own, policy).size,
          () => 0,
        ),
      PATIENCE,
    )
    .toBeGreaterThanOrEqual(checkpoint.size);
});

test("the status says what is signed, witnessed and waiting, to those who may read the log", async () => {
  const ida = await system.as("ida");
  await expect
    .poll(async () => {
      const { unwitnessedSince, waiting } = await ida.call<LogStatus>("GET", "/v1/log/status");
      return { unwitnessedSince, waiting };
    }, PATIENCE)
    .toEqual({ unwitnessedSince: null, waiting: 0 });
  const status = await ida.call<LogStatus>("GET", "/v1/log/status");
  expect(status).toMatchObject({ origin: "example.org/glasskey", waitingSince: null, archived: null });
  expect(status.keys.map((key) => key.vkey)).toEqual([system.server().vkey]);
  expect((await (await system.as("ann")).refused("GET", "/v1/log/status")).code).toBe("policy_denied");
});

test("a chunk is given to who may read the log and that recording, and that it was read is logged", async () => {
  const ann = await system.as("ann");
  const ida = await system.as("ida");
  const grant = await ann.break("repair");
  await ann.until(grant.grant, ["active"]);
  const client = await ann.connect(grant.grant);
  await client.query("select 1");
  await client.end();
  await ann.end(grant.grant);
  let sealed: LogEntryView | undefined;
  await expect
    .poll(async () => {
      const { entries } = await ida.call<LogPage>("GET", `/v1/log`);
      sealed = entries.find(({ entry }) => entry["type"] === "recording.sealed");
      return sealed !== undefined;
    }, PATIENCE)
    .toBe(true);
  const session = String(sealed?.entry["session"]);
  const path = `/log/chunks/${session}/0.gkc`;
  expect((await raw(path)).status).toBe(401);
  expect((await raw(path, await bearer("ann"))).status).toBe(403);
  expect((await raw(path, await bearer("amy"))).status).toBe(403);
  const chunk = await raw(path, await bearer("ida"));
  expect(chunk).toMatchObject({
    status: 200,
    headers: { "content-type": "application/octet-stream", "cache-control": expect.stringMatching(/^private/) },
  });
  const data = sealed?.entry["data"] as { sha256: string; bytes: number };
  expect(hash("sha256", chunk.body)).toBe(data.sha256);
  expect((await raw(`/log/chunks/${session}/1000.gkc`, await bearer("ida"))).status).toBe(404);
  expect((await raw(`/log/chunks/${session}/00.gkc`, await bearer("ida"))).status).toBe(404);
  await expect
    .poll(async () => {
      const { entries } = await ida.call<LogPage>("GET", "/v1/log");
      return entries.filter(({ entry }) => entry["type"] === "recording.read").map(({ entry }) => entry["session"]);
    }, PATIENCE)
    .toEqual([session]);
});

test("keys are changed by an admin alone; both processes sign with both, and a restart keeps it so", async () => {
  const ida = await system.as("ida");
  for (const person of ["ann", "bob", "sam"]) {
    const other = await system.as(person);
    expect((await other.refused("POST", "/v1/log/keys")).code, person).toBe("policy_denied");
    expect((await other.refused("POST", "/v1/log/keys/1/retire")).code, person).toBe("policy_denied");
  }
  const nobody = await system.as("");
  expect((await nobody.refused("POST", "/v1/log/keys")).code).toBe("unauthenticated");
  expect((await ida.refused("POST", "/v1/log/keys/1/retire")).code).toBe("conflict");

  const second = await system.startSecond();
  const added = await ida.call<LogKeyView>("POST", "/v1/log/keys");
  expect(added.generation).toBe(2);
  const names = async (): Promise<number> => parseNote((await raw("/log/checkpoint")).body).signatures.length;
  await expect.poll(names, PATIENCE).toBe(2);
  await system.stop(); // the other process takes over, and reads of the key in the store
  await system.as("ida", second);
  await system.start();
  const again = await system.as("ida");
  await expect.poll(names, PATIENCE).toBe(2);
  expect(system.server().vkey.split("\n")).toHaveLength(2);
  const { keys } = await again.call<LogKeyList>("GET", "/v1/log/keys");
  expect(keys.map(({ generation, retiredAt }) => [generation, retiredAt])).toEqual([
    [1, null],
    [2, null],
  ]);
  await again.call<LogKeyView>("POST", "/v1/log/keys/1/retire");
  await expect.poll(names, PATIENCE).toBe(1);
  const served = (await raw("/log/vkey")).body.toString();
  expect(served).toMatch(/^# Key 2, in force[^]*# Key 1, retired/);
  expect(parseVerifierKeys(served).map((key) => key.vkey)).toEqual([added.vkey, keys[0]?.vkey]);
  const status = await again.call<LogStatus>("GET", "/v1/log/status");
  expect(status.keys.map((key) => key.generation)).toEqual([2]);
  expect(system.warnings.filter((line) => /integrity|not what was signed/.test(line))).toEqual([]);
});
