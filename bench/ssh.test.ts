import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { missingSshd } from "../server/src/targets/ssh/fixtures/sshd.ts";
import { measure, type SshSizes } from "./ssh.ts";

const why = missingSshd();
const SMALL: SshSizes = {
  ...{ connects: 2, fileMiB: 4, copyRounds: 1, keystrokes: 5, kills: 2, sessions: 4 },
  load: { perMinute: 500, seconds: 1 },
};

test.skipIf(why !== undefined)(
  "the benchmark of SSH measures every way and refuses nobody, in small",
  { timeout: 240_000 },
  async () => {
    const folder = await mkdtemp(join(tmpdir(), "glasskey-bench-ssh-"));
    await chmod(folder, 0o755);
    try {
      const results = await measure({ folder, signal: new AbortController().signal, progress: () => {} }, SMALL);
      for (const { metric, value } of results) expect(Number.isFinite(value), metric).toBe(true);
      expect(results.filter(({ peer }) => peer === "ssh -J").length).toBeGreaterThanOrEqual(8);
      expect(results.find(({ metric }) => metric.endsWith(": refused"))).toMatchObject({ value: 0, met: true });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
);
