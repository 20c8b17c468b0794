import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, inject, test } from "vitest";
import { manyEntries } from "../server/testing/many-entries.ts";
import { terminalFlood } from "../server/testing/terminal-flood.ts";

// The short forms of `npm run soak -- entries terminal`. That of `crash` is in server/src/recording/crash-process.test.ts.

test("200,000 entries are sequenced, signed and exported, and the folder verifies", { timeout: 300_000 }, async () => {
  const found = await manyEntries(inject("pg18"), { entries: 200_000 });
  expect(found).toMatchObject({ entries: 200_000, problems: [] });
});

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
