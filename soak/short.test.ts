import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, inject, test } from "vitest";
import { insiderLoop } from "../server/testing/insider-loop.ts";
import { manyEntries } from "../server/testing/many-entries.ts";
import { restoreLoop } from "../server/testing/restore-loop.ts";
import { terminalFlood } from "../server/testing/terminal-flood.ts";

// The short forms of `npm run soak -- entries terminal restore insider`. That of `crash` is in server/src/recording/crash-process.test.ts.

test("200,000 entries are sequenced, signed and exported, and the folder verifies", { timeout: 300_000 }, async () => {
  const found = await manyEntries(inject("pg18"), { entries: 200_000 });
  expect(found).toMatchObject({ entries: 200_000, problems: [] });
});

test(
  "20,000 entries are archived in stages and restored from the folder alone; tiles that are gone are made again, a bundle that is gone is named",
  { timeout: 300_000 },
  async () => {
    const folder = await mkdtemp(join(tmpdir(), "glasskey-restore-"));
    try {
      const found = await restoreLoop(inject("pg18"), { entries: 20_000, stages: 4, folder });
      expect(found).toMatchObject({ entries: 20_000, chunks: 40, dated: 4, problems: [] });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
);

test(
  "whichever entry or recording an insider takes, each of the ways to change the history is found and named",
  { timeout: 300_000 },
  async () => {
    const folder = await mkdtemp(join(tmpdir(), "glasskey-insider-"));
    try {
      const found = await insiderLoop(inject("pg18"), { rounds: 1, entries: 50, folder });
      expect(found).toMatchObject({ rounds: 1, played: 6, found: 6, problems: [] });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
);

test(
  "32 MiB of a terminal's output, binary garbage, are in the export with the same SHA-256, in bounded memory",
  { timeout: 300_000 },
  async () => {
    const folder = await mkdtemp(join(tmpdir(), "glasskey-flood-"));
    try {
      const found = await terminalFlood({ cluster: inject("pg18"), folder, bytes: 32 << 20 });
      expect(found).toMatchObject({ problems: [], sealedBytes: 32 << 20, sealed: found.sent });
      expect(found.castEvents).toBeGreaterThan(1_000);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
);
