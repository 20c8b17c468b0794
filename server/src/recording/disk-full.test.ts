import { execFileSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { newId } from "../core/ids.ts";
import { RECORD } from "../targets/target.ts";
import { committed, recordsIn, testFolder, testJournal, turn } from "./testing/journal.ts";

/** Mounts a small file system; undefined with the reason where this user may not. */
async function smallDisk(path: string): Promise<{ unmount(): void } | string> {
  await mkdir(path);
  if (process.platform !== "linux" || process.getuid?.() !== 0)
    return "only root on Linux may mount a small file system";
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", path], { stdio: "pipe" });
  } catch {
    return "this machine lets root mount nothing, as in most containers";
  }
  return { unmount: () => execFileSync("umount", [path], { stdio: "pipe" }) };
}

test.for(["durable", "written"] as const)(
  "mode %s: a disk of 4 MB that fills up ends recording with a clear error, and nothing is acknowledged that is not there",
  async (mode, { skip }) => {
    await using folder = await testFolder();
    const dir = join(folder.path, "small");
    const disk = await smallDisk(dir);
    if (typeof disk === "string") skip(disk);
    if (typeof disk === "string") return;
    try {
      const journal = await testJournal(dir, { mode, fileBytes: 1 << 20 });
      const session = newId("session");
      const recorder = journal.recorder(session);
      let acknowledged = 0;
      for (let sent = 0; sent < 8_000 && journal.failures.length === 0; sent++) {
        recorder.write(RECORD.data, Buffer.alloc(1_000, sent), () => acknowledged++);
        while (recorder.pendingBytes > 20_000 && journal.failures.length === 0) await turn();
      }
      expect(journal.failures).toHaveLength(1);
      expect(journal.failures[0]).toMatchObject({
        code: "recording_unavailable",
        message: expect.stringContaining("no room for the recording"),
      });
      const atFailure = acknowledged;
      await committed(recorder, RECORD.sessionEnded, '{"cause":"cut"}');
      expect(acknowledged).toBe(atFailure);
      await journal.close();

      const found = await recordsIn(dir);
      expect(found.filter(({ kind }) => kind === RECORD.data)).toHaveLength(atFailure);
      expect(found.at(-1)?.kind).toBe(RECORD.sessionEnded);
      expect(found.map(({ seq }) => seq)).toEqual(found.map((_, i) => i + 1));
    } finally {
      disk.unmount();
    }
  },
);
