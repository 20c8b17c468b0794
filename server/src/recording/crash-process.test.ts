import { expect, inject, test } from "vitest";
import { crashLoop } from "../../testing/crash-loop.ts";

test(
  "glass serve, killed ten times under load: every statement that the target answered is in the exported recordings, and the log verifies",
  { timeout: 300_000 },
  async () => {
    const result = await crashLoop(inject("pg18"), { rounds: 10 });
    expect(result.problems).toEqual([]);
    expect(result).toMatchObject({ rounds: 10, sessions: 30 });
    expect(result.acknowledged).toBeGreaterThan(100);
    expect(result.recorded).toBeGreaterThanOrEqual(result.acknowledged);
    expect(result.chunks).toBeGreaterThanOrEqual(30);
  },
);
