import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { describeMachine } from "./machine.ts";
import { percentile, result } from "./result.ts";

test("a result compares with its peer and says whether the goal was met", () => {
  const peer = { name: "pgbouncer", value: 200 };
  expect(result("tx", "tx/s", 120, { peer, goal: { ratioAtLeast: 0.6 } })).toEqual({
    ...{ metric: "tx", unit: "tx/s", value: 120, peer: "pgbouncer", peerValue: 200, ratio: 0.6 },
    ...{ goal: "ratio at least 0.6", met: true },
  });
  expect(result("tx", "tx/s", 119, { peer, goal: { ratioAtLeast: 0.6 } }).met).toBe(false);
  expect(result("p99", "ms", 101, { goal: { atMost: 100 } })).toMatchObject({ goal: "at most 100 ms", met: false });
  expect(result("acks", "1/s", 20_000, { goal: { atLeast: 20_000 } }).met).toBe(true);
});

test("a goal that compares is neither met nor missed without the peer", () => {
  expect(result("tx", "tx/s", 120, { goal: { ratioAtLeast: 0.6 } })).toMatchObject({
    peer: null,
    ratio: null,
    met: null,
  });
  expect(result("tx", "tx/s", 120)).toMatchObject({ goal: null, met: null });
});

test("a percentile is one of the samples", () => {
  const samples = Array.from({ length: 100 }, (_, i) => 100 - i);
  expect([percentile(samples, 0.5), percentile(samples, 0.99), percentile(samples, 1), percentile(samples, 0)]).toEqual(
    [...[50, 99, 100, 1]],
  );
  expect(percentile([], 0.5)).toBeNaN();
});

test("the machine is described with the noise that was measured on it", async () => {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-machine-"));
  try {
    const machine = describeMachine(folder);
    expect(machine).toMatchObject({ node: process.version, cores: expect.any(Number) });
    expect(machine.noise.cpuPercent).toBeGreaterThanOrEqual(0);
    expect(machine.noise.diskPercent).toBeGreaterThanOrEqual(0);
    expect(machine.syncMs).toBeGreaterThan(0);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
