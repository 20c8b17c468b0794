import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { HoldView } from "@glasskey/contract";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { runGlass, type Run } from "../testing/run.ts";

let system: TestSystem;
let homes: string;
let session: string;
let grant: string;

const run = (person: string, args: readonly string[]): Promise<Run> => runGlass(homes, person, args);

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-retention-"));
  const people = `- { name: ann, roles: [requester], groups: [payments], secret: HASH }
- { name: sam, roles: [security_officer], secret: HASH }
- { name: sue, roles: [security_officer], secret: HASH }
- { name: ida, roles: [auditor], secret: HASH }
`;
  system = await startTestSystem(inject("pg18"), { "people.yaml": people, "playbooks/consent.yaml": "" });
  const { url, caFile } = system.server();
  for (const person of ["ann", "sam", "sue", "ida"]) {
    await runGlass(homes, person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
  const ann = await system.as("ann");
  ({ grant } = await ann.break("repair"));
  const client = await ann.connect(grant);
  await client.query("select 1");
  await client.end();
  await ann.end(grant);
  for (let tries = 0; ; tries += 1) {
    const [row] = await system.storeQuery<{ id: string }>("select id from sessions where recording_complete");
    if (row !== undefined) {
      session = row.id;
      break;
    }
    if (tries > 400) throw new Error("the recording is not sealed");
    await new Promise((done) => setTimeout(done, 50));
  }
});
afterAll(async () => {
  await system.dispose();
  await rm(homes, { recursive: true, force: true });
});

test("a hold is placed, listed with its words, lifted; then another officer erases, and replay says what is left", async () => {
  const held = await run("sam", ["hold", session, "--why", "case 7 of the regulator", "--json"]);
  expect(held.code).toBe(0);
  const { hold } = JSON.parse(held.stdout) as HoldView;
  const listed = await run("ida", ["holds"]);
  expect(listed.stdout).toContain(hold);
  expect(listed.stdout).toContain("case 7 of the regulator");
  const why = ["--why", "the person asked for it"];
  expect(await run("sue", ["erase", session, ...why, "--yes"])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining(`glass hold release ${hold}`),
  });
  expect(await run("sam", ["hold", "release", hold])).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("lifted"),
  });
  expect(await run("sam", ["erase", session, ...why, "--yes"])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining("another"),
  });
  expect(await run("sue", ["erase", session, ...why])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--yes"),
  });
  const erased = await run("sue", ["erase", session, ...why, "--yes"]);
  expect(erased).toMatchObject({ code: 0, stdout: expect.stringMatching(/still match(es)? the log/) });
  expect(await run("sam", ["replay", session])).toMatchObject({ code: 1, stderr: expect.stringContaining("erased") });
  expect((await run("ida", ["holds"])).stdout).toContain("No recording is held");
  expect((await run("ida", ["holds", "--all"])).stdout).toContain("lifted by sam");
});

test("who may not is told so with the exit code of a denial, and a slip of the fingers is said before anything is asked", async () => {
  const why = ["--why", "for a reason"];
  expect((await run("ida", ["hold", grant, ...why])).code).toBe(3);
  expect((await run("ann", ["holds"])).code).toBe(3);
  expect((await run("ann", ["erase", session, ...why, "--yes"])).code).toBe(3);
  for (const words of [
    ["hold", "x", ...why],
    ["hold", grant],
    ["hold", "release", session],
    ["erase", grant, ...why, "--yes"],
    ["erase", session, "--yes"],
    ["hold"],
  ]) {
    expect((await run("sam", words)).code, words.join(" ")).toBe(2);
  }
});

test("while something does not verify, ls and status say so first, with what to do", async () => {
  await system.stop();
  await system.storeQuery(
    "set session_replication_role = replica; update log_entries set entry = entry || '\\x20' where idx = (select max(idx) from log_entries)",
  );
  await system.start();
  const { url, caFile } = system.server();
  await runGlass(homes, "ann", ["login", "ann", "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  for (const words of [["ls"], ["status"]]) {
    const { code, stdout } = await run("ann", words);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^CLOSED since .*nothing new is opened: /);
    expect(stdout).toContain("start Glasskey again");
  }
  const broken = await run("ann", ["break", "repair", "--reason", "outage", "--why", "it is down"]);
  expect(broken).toMatchObject({ code: 1, stderr: expect.stringContaining("nothing new is opened") });
  expect(JSON.parse((await run("ann", ["status", "--json"])).stdout)).toMatchObject({ opening: false });
});
