import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { StandingView } from "@glasskey/contract";
import { verifyFolder } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";

let system: TestSystem;
beforeAll(async () => {
  system = await startTestSystem(inject("pg18"));
});
afterAll(() => system.dispose());

/** `glass serve` with these words on the system's own configuration. */
async function serve(...args: string[]): Promise<{ code: number | null; output: string }> {
  const file = join(system.config.dataDir, "..", "glasskey.yaml");
  const glass = join(import.meta.dirname, "../../../cli/bin/glass.mjs");
  const child = spawn(process.execPath, [glass, "serve", "--config", file, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const [code] = (await once(child, "close")) as [number | null];
  return { code, output };
}

test("a journal that is lost for good is given up by name: its recordings end, the log says so, and Glasskey opens again", async () => {
  await system.stop();
  const running = await system.startProcess(); // also writes the configuration that the command reads
  const ann = await system.as("ann", running);
  const { grant } = await ann.break("repair");
  const connection = await ann.connect(grant);
  await connection.query("select 1");
  await connection.query("select 2");
  const node = (await readFile(join(system.config.dataDir, "node"), "utf8")).trim();
  const busy = await serve("--abandon-journal", node, "--yes");
  expect(busy).toMatchObject({ code: 1, output: expect.stringContaining("data folder") }); // it runs
  await running.kill();
  await rm(join(system.config.dataDir, "journal"), { recursive: true, force: true }); // the disk is gone

  await system.start();
  const sealed = await (await system.as("ann")).call<StandingView>("GET", "/v1/health");
  expect(sealed.shut).toContainEqual(expect.objectContaining({ reason: "recording", code: "integrity" }));
  await system.stop();

  for (const [args, message] of [
    [["--abandon-journal", "nd_00000000", "--yes"], node],
    [["--abandon-journal", "../journal", "--yes"], "looks like"],
    [["--abandon-journal", node], "--yes"],
    [["--yes"], "--abandon-journal"],
  ] as const) {
    const { code, output } = await serve(...args);
    expect(code, output).not.toBe(0);
    expect(output).toContain(message);
  }
  await system.storeQuery("insert into nodes (id) values ($1)", [node]);
  expect(await serve("--abandon-journal", node, "--yes")).toMatchObject({
    code: 1,
    output: expect.stringContaining("alive"),
  });
  await system.storeQuery("delete from nodes where id = $1", [node]);

  const [session] = await system.storeQuery<{ id: string }>("select id from sessions where grant_id = $1", [grant]);
  const given = await serve("--abandon-journal", node, "--yes");
  expect(given.output).toContain(session?.id);
  expect(given.code).toBe(0);
  const around = await readdir(system.config.dataDir);
  expect(around.some((name) => name.startsWith("journal.lost-"))).toBe(true);

  await system.start();
  const again = await system.as("ann");
  expect(await again.call<StandingView>("GET", "/v1/health")).toMatchObject({ opening: true, shut: [] });
  expect((await again.end(grant)).state).toBe("closed");
  const ida = await system.as("ida");
  for (let tries = 0; ; tries += 1) {
    const { entries } = await ida.call<{ entries: { entry: { type: string; data?: object } }[] }>(
      "GET",
      "/v1/log?from=0",
    );
    const told = entries.find(({ entry }) => entry.type === "recording.journal_lost");
    if (told !== undefined) {
      expect(told.entry.data).toMatchObject({ node, sessions: 1 });
      break;
    }
    if (tries > 400) throw new Error("the log does not say so");
    await new Promise((done) => setTimeout(done, 25));
  }
  const open = await system.storeQuery("select id from sessions where not recording_complete");
  expect(open).toEqual([]);
  const { logDir, vkey } = system.server();
  await system.stop();
  expect(await verifyFolder({ folder: logDir, vkey })).toMatchObject({ ok: true });
  expect(existsSync(join(system.config.dataDir, "journal"))).toBe(true);
});
