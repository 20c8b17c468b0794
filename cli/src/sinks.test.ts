import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { runGlass, type Run } from "../testing/run.ts";
import { markOf } from "./commands/sinks.ts";
import { createOutput } from "./output.ts";
import { startTestSystem, type TestSystem } from "../../server/testing/system.ts";
import { sinksSchema } from "../../server/src/sinks/config.ts";

let system: TestSystem;
let folder: string;
const run = (person: string, args: readonly string[], input?: string): Promise<Run> =>
  runGlass(folder, person, args, input);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-cli-sinks-"));
  const sinks = sinksSchema.parse({
    copy: { kind: "file", folder: join(folder, "copy") },
    // Nobody listens there: the port is one that is never given out.
    away: { kind: "syslog", host: "127.0.0.1", port: 1, transport: "tcp", from: "start" },
  });
  system = await startTestSystem(inject("pg18"), {}, { sinks });
  const { url, caFile } = system.server();
  for (const person of ["ann", "ida"]) {
    await run(person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
});
afterAll(async () => {
  await system.dispose();
  await rm(folder, { recursive: true, force: true });
});

test("glass sinks says how far each sink is and why one fails, and glass sinks retry has it try at once", async () => {
  let shown = await run("ida", ["sinks"]);
  for (let tries = 0; tries < 100 && !/away .*fails/.test(shown.stdout); tries += 1)
    shown = await run("ida", ["sinks"]);
  expect(shown).toMatchObject({ code: 0, stderr: "" });
  expect(shown.stdout).toMatch(
    /✗ {2}away +syslog +\d+ behind, .+ at entry 0; fails since .+: the connection failed \(ECONNREFUSED\)/,
  );
  expect(shown.stdout).toMatch(/✓ {2}copy \(nd_\w+\) +file /);
  expect(await run("ida", ["sinks", "retry", "away"])).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("away is tried now."),
  });
  const json = await run("ida", ["sinks", "--json"]);
  expect(JSON.parse(json.stdout)).toMatchObject({ sinks: [{ sink: "away", nextIndex: 0 }, { sink: "copy" }] });
  expect(await run("ann", ["sinks"])).toMatchObject({ code: 3 });
  expect(await run("ida", ["sinks", "retry", "nosuch"])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining("glass sinks"),
  });
});

test("glass sinks has a check mark for nothing that is late, that nobody works on, or that lacks entries", async () => {
  await system.storeQuery(
    `insert into sinks (name, node, kind, next_index, before_index, created_at) values
       ('gone', '', 'webhook', 0, 0, now() - interval '1 hour'), ('copy', 'nd_000000000000', 'file', 0, 0, now())`,
  );
  try {
    const { stdout } = await run("ida", ["sinks"]);
    expect(stdout).toMatch(/! {2}gone +webhook .+not in this server's glasskey.yaml/);
    expect(stdout).toMatch(/! {2}copy \(nd_000000000000\) +file .+of another Glasskey process/);
  } finally {
    await system.storeQuery("delete from sinks where name = 'gone' or node = 'nd_000000000000'");
  }
  const parked = [{ index: 3, error: "answered 400", at: "2026-11-20T02:14:09.120Z" }];
  const good = { sink: "s", node: null, kind: "otel", configured: true, nextIndex: 5, lagEntries: 9, lagSeconds: 1 };
  const sink = { ...good, failures: 0, lastError: null, failingSince: null, deliveredAt: null, parked: [] };
  const marks = [sink, { ...sink, lagSeconds: 1_320 }, { ...sink, parked }, { ...sink, failures: 1 }];
  expect(marks.map((view) => stripVTControlCharacters(markOf(view, createOutput(false))))).toEqual([
    "✓",
    "!",
    "✗",
    "✗",
  ]);
});
