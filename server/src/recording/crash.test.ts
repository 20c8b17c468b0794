import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { newId } from "../core/ids.ts";
import { recordsIn, testFolder, testJournal } from "./testing/journal.ts";

const WRITER = fileURLToPath(new URL("./testing/crash-writer.ts", import.meta.url));
const KILLS = 8;

test.for([
  ["durable", "one folder"],
  ["written", "one folder"],
  ["durable", "mirrored"],
  ["written", "mirrored"],
] as const)(
  "mode %s, %s: killed again and again under load, every acknowledged record is there, once",
  { timeout: 120_000 },
  async ([mode, copies]) => {
    await using parent = await testFolder();
    const folder = { path: join(parent.path, "journal") };
    const mirror = copies === "mirrored" ? `${folder.path}-mirror` : undefined;
    const promised = new Map<string, number>();
    for (let kill = 0; kill < KILLS; kill++) {
      const sessions = Array.from({ length: 8 }, () => newId("session"));
      const child = spawn(process.execPath, [WRITER, folder.path, mode, copies, ...sessions], {
        stdio: ["ignore", "pipe", "pipe"],
      });
      let said = "";
      let errors = "";
      child.stdout.setEncoding("latin1").on("data", (text: string) => {
        if (said === "") setTimeout(() => child.kill("SIGKILL"), 5 + kill * 25); // at another moment of its life each time
        said += text;
      });
      child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
      await once(child, "close");
      expect(errors).toBe("");
      for (const line of said.split("\n").slice(0, -1)) {
        const [session, seq] = line.split(" ") as [string, string];
        expect(Number(seq)).toBe((promised.get(session) ?? 0) + 1); // acknowledged in order
        promised.set(session, Number(seq));
      }
    }
    await (await testJournal(folder.path, { mirror })).close(); // recovery
    const total = [...promised.values()].reduce((sum, seq) => sum + seq, 0);
    expect(total).toBeGreaterThan(KILLS * 50);
    for (const dir of mirror === undefined ? [folder.path] : [folder.path, mirror]) {
      const found = new Map<string, number>();
      for (const { session, seq, payload } of await recordsIn(dir)) {
        expect(seq).toBe((found.get(session) ?? 0) + 1);
        expect(payload.equals(Buffer.alloc(seq % 700, seq & 255))).toBe(true);
        found.set(session, seq);
      }
      for (const [session, seq] of promised) expect(found.get(session) ?? 0).toBeGreaterThanOrEqual(seq);
    }
  },
);
