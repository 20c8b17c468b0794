import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, inject, test } from "vitest";
import { createRig, folderIn, type ArchiveRig } from "./testing/rig.ts";
import type { KillPlan } from "./testing/kill-child.ts";

const CHILD = fileURLToPath(new URL("./testing/kill-child.ts", import.meta.url));

let rig: ArchiveRig;
beforeEach(async () => {
  rig = await createRig(inject("pg18"));
});
afterEach(() => rig.dispose());

async function archiveIn(plan: KillPlan): Promise<{ killed: boolean; said: string }> {
  const child = spawn(process.execPath, [CHILD, JSON.stringify(plan)], { stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (said += text));
  const [, signal] = (await once(child, "close")) as [number | null, string | null];
  return { killed: signal === "SIGKILL", said };
}

test(
  "kill -9 while it archives, in the middle of writes and before syncs, at the last ones each: the next process goes on, and the archive verifies",
  { timeout: 300_000 },
  async () => {
    await rig.log.append(...Array.from({ length: 250 }, () => ({})));
    const size = await rig.grow(20); // a full bundle, and what is not full behind it
    const chunks = join(rig.folder, "recordings");
    for (const [path, bytes] of rig.chunks) {
      await mkdir(dirname(join(chunks, path)), { recursive: true });
      await writeFile(join(chunks, path), bytes);
    }
    const plan = { address: rig.log.address, vkey: rig.log.signer.vkey, archive: join(rig.folder, "archive"), chunks };
    for (let killAt = 1, killed = true; killed; killAt += killAt < 28 ? 5 : 1) {
      const one = await archiveIn({ ...plan, killAt });
      expect(one.said).toBe(one.killed ? "" : `archived ${size}\n`);
      killed = one.killed;
      if (!killed) expect(killAt).toBeGreaterThan(25);
      await rig.log.query("update archives set claimed_until = null"); // as if the dead process's time were over
      const archive = rig.archive(folderIn(rig));
      await archive.archiveNow();
      expect(await archive.status(), `killed in operation ${killAt}`).toMatchObject({
        size,
        owed: 0,
        lastError: undefined,
      });
      await archive.stop();
      const restored = await rig.restored(folderIn(rig));
      expect(restored, `killed in operation ${killAt}`).toMatchObject({ size, missing: [], notes: [], problems: [] });
      await rig.log.query("delete from archive_objects; delete from archives");
      await rm(plan.archive, { recursive: true });
    }
  },
);
