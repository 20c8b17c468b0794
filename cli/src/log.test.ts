import { mkdir, mkdtemp, rm, writeFile, readFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LogKeyList, LogPage, LogProof, LogStatus } from "@glasskey/contract";
import { parseNote, parseProof, type Report, verifyFolder } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { addLog, openWitnessFolder, serveWitness } from "../../witness/src/index.ts";
import { createAuthority, issueServerCertificate } from "../../server/src/core/certificates.ts";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { runGlass, type Run } from "../testing/run.ts";

const PATIENCE = { timeout: 30_000, interval: 200 };
let system: TestSystem | undefined;
let homes = "";
let cleanUp = async (): Promise<void> => {};
const run = (person: string, ...args: string[]): Promise<Run> => runGlass(homes, person, args);

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-log-"));
  const folder = join(homes, "witness");
  const witness = openWitnessFolder({ folder, name: "witness.example/w" });
  const server = await serveWitness({ witness, host: "127.0.0.1", port: 0, onProblem: () => {} });
  cleanUp = async () => {
    await server.stop();
    witness.close();
  };
  const of = [{ key: witness.signer.vkey, url: `http://127.0.0.1:${server.port}` }];
  system = await startTestSystem(inject("pg18"), {}, { witnesses: { need: 1, of } });
  const { vkey, url, caFile } = system.server();
  addLog(folder, vkey);
  for (const person of ["ann", "ida", "sam"]) {
    await runGlass(homes, person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
});
afterAll(async () => {
  await system?.dispose();
  await cleanUp();
  await rm(homes, { recursive: true, force: true });
});

test("glass log marks how far each entry came, and says what the marks mean", async () => {
  await expect
    .poll(async () => (JSON.parse((await run("ida", "log", "--json")).stdout) as LogPage).entries[0]?.state, PATIENCE)
    .toBe("witnessed");
  const { code, stdout } = await run("ida", "log");
  expect(code).toBe(0);
  expect(stdout).toMatch(/^ {5}0 {2}w {2}\S+ +\S+/m);
  expect(stdout.trimEnd().split("\n").at(-1)).toBe("c checkpointed  w witnessed");
});

test("glass log status says on a few lines what is signed, witnessed and waiting", async () => {
  await expect
    .poll(async () => (await run("ida", "log", "status")).stdout, PATIENCE)
    .toMatch(
      /^Log glasskey\.local\/\w+\n {2}signed +\d+ {2}last \d+\w* ago; nothing waits\n {2}witnessed +\d+ {2}all\n {2}archived +- {2}no archive\n {2}keys +1 {2}1 since \S+\n$/,
    );
  const { stdout } = await run("ida", "log", "status", "--json");
  expect((JSON.parse(stdout) as LogStatus).archived).toBeNull();
  expect((await run("ann", "log", "status")).code).toBe(3);
});

test("a server that answers with the proof of another entry, or with more than a proof, gets nothing onto the terminal", async () => {
  const { proof } = JSON.parse((await run("ida", "log", "prove", "1", "--json")).stdout) as LogProof;
  const authority = await createAuthority("evil", 1);
  let answer = proof;
  const server = createServer(await issueServerCertificate(authority, ["127.0.0.1"], 1), (_request, response) =>
    response.end(JSON.stringify({ proof: answer, entry: "{}", size: 5, witnessed: true })),
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const { port } = server.address() as AddressInfo;
    const login = { server: `https://127.0.0.1:${port}`, ca: authority.cert, person: "x", token: "t", expiresAt: "" };
    await mkdir(join(homes, "fooled"));
    await writeFile(join(homes, "fooled", "login.json"), JSON.stringify(login), { mode: 0o600 });
    expect(await run("fooled", "log", "prove", "1")).toMatchObject({ code: 0, stdout: proof });
    const another = await run("fooled", "log", "prove", "2");
    expect(another).toMatchObject({ code: 1, stdout: "", stderr: expect.stringContaining("no proof of entry 2") });
    for (answer of ["all is well", `${proof}\u001b[2J`, `${proof}— \u202egol\u009b2J AAAAAAA=\n`]) {
      const { code, stdout, stderr } = await run("fooled", "log", "prove", "1");
      expect([code, stdout, stderr.includes("no proof of entry 1")], answer).toEqual([1, "", true]);
    }
  } finally {
    server.close();
    server.closeAllConnections();
  }
});

test("glass log prove says whether witnesses vouch for the checkpoint in the proof", async () => {
  const { code, stdout, stderr } = await run("ida", "log", "prove", "0");
  expect(code).toBe(0);
  expect(parseNote(parseProof(stdout).checkpoint).signatures).toHaveLength(2);
  expect(stderr).toMatch(/covers \d+ entries, and has its witnesses' cosignatures/);
});

test("glass log key add prints the new key and who must learn it; retire ends the old one, for an admin alone", async () => {
  const refused = await run("sam", "log", "key", "add");
  expect(refused.code).toBe(3);
  expect(refused.stderr).toContain("change the log's keys");
  const last = await run("ida", "log", "key", "retire", "1");
  expect(last.code).toBe(1);
  expect(last.stderr).toContain("glass log key add");

  const added = await run("ida", "log", "key", "add");
  expect(added.code).toBe(0);
  const { keys } = JSON.parse((await run("ida", "log", "keys", "--json")).stdout) as LogKeyList;
  expect(keys.map((key) => key.generation)).toEqual([1, 2]);
  expect(added.stdout.split("\n")).toContain(keys[1]?.vkey);
  expect(added.stdout).toMatch(/Auditors and witnesses must learn it by another way/);

  await expect.poll(async () => (await run("ida", "log", "key", "retire", "1")).code, PATIENCE).toBe(0);
  const listed = await run("ida", "log", "keys");
  expect(listed.stdout).toMatch(/^ {2}1 {2}retired [^\n]+\n {5}\S+\n {2}2 {2}signs, added [^\n]+\n {5}\S+\n$/);
  const status = await run("ida", "log", "status");
  expect(status.stdout).toMatch(/keys +1 {2}2 since/);
});

test("what is no generation, and a verb that is not finished, are usage errors that say what is meant", async () => {
  expect(await run("ida", "log", "key", "retire", "first")).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("Generations are the numbers of `glass log keys`"),
  });
  expect(await run("ida", "log", "key", "retire")).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("glass log key retire needs more"),
  });
  expect((await run("ida", "log", "key")).code).toBe(2);
});

test("an insider who puts garbage into the log's queue hides nothing behind it: the log is read, exported and verified past it, and a terminal stays whole", async () => {
  if (system === undefined) throw new Error("there is no system");
  const garbage = [
    Buffer.from([0xff, 0x00, 0x1b, 0x5d]),
    Buffer.from("[]"),
    Buffer.from("42"),
    Buffer.from(`{"at":"never","actor":7,"type":"\\u001b]0;mine\\u0007"}`),
    Buffer.from(`{"type":"recording.sealed","session":"se_000000000000","data":{"chunk":0,"sha256":"00"}}`),
    Buffer.from(`${"[".repeat(30_000)}${"]".repeat(30_000)}`),
    Buffer.from(`{"a":${"[".repeat(30_000)}${"]".repeat(30_000)}}`),
  ];
  const before = Number((await system.storeQuery<{ size: string }>("select size from log_head"))[0]?.size);
  for (const entry of garbage) {
    await system.storeQuery(
      `set role ${system.config.database?.user}; insert into log_queue (entry) values ('\\x${entry.toString("hex")}')`,
    );
  }
  await (await system.as("ann")).break("repair");
  const later = async (): Promise<LogPage> =>
    JSON.parse((await run("ida", "log", "--json")).stdout || '{"entries":[]}') as LogPage;
  await expect
    .poll(async () => (await later()).entries.map(({ entry }) => entry["type"]), PATIENCE)
    .toContain("grant.requested");
  const strange = (await later()).entries.filter(({ entry }) => "entryBase64" in entry);
  expect(strange.map(({ entry }) => entry["entryBase64"])).toEqual(
    [garbage[0], garbage[1], garbage[2], garbage[5], garbage[6]].map((bytes) => bytes?.toString("base64")),
  );
  const { code, stdout, stderr } = await run("ida", "log");
  expect(`${code} ${stderr}`).toBe("0 ");
  expect(stdout).not.toContain("\u001b]0");
  expect(stdout).toMatch(/not an entry of Glasskey's/);
  const { logDir } = system.server();
  const verified = async (): Promise<Report> => {
    const [vkey = ""] = (await readFile(join(logDir, "log.vkey"), "utf8")).split("\n"); // the one in force
    return verifyFolder({ folder: logDir, vkey });
  };
  await expect.poll(async () => (await verified()).size, PATIENCE).toBeGreaterThan(before + garbage.length);
  // Whoever verifies is told of the one that passes for a recording of ours.
  expect((await verified()).problems).toContainEqual(expect.objectContaining({ where: "recording" }));
}, 120_000);
