import { expect, test } from "vitest";
import type { Clock } from "../core/clock.ts";
import { createDeadlines } from "./deadline.ts";

function clock(): Clock & { wallMs: number; monoMs: number; pass(ms: number): void } {
  const held = {
    wallMs: 1_000_000,
    monoMs: 50,
    now: () => new Date(held.wallMs),
    monotonicMs: () => held.monoMs,
    pass(ms: number) {
      held.wallMs += ms;
      held.monoMs += ms;
    },
  };
  return held;
}

test("lesson 1: the second connection of a grant has what is left, not a fresh window", () => {
  const time = clock();
  const deadlines = createDeadlines(time);
  deadlines.start("gr_a", 1_060_000);
  time.pass(45_000);
  expect(deadlines.start("gr_a", 1_060_000).remainingMs()).toBe(15_000);
});

test("a wall clock that jumps forward ends the session at once", () => {
  const time = clock();
  const deadline = createDeadlines(time).start("gr_a", 1_060_000);
  time.wallMs += 60_000;
  expect(deadline.remainingMs()).toBe(0);
});

test("a wall clock that is set back lengthens neither the session, nor the next connection, nor an extension", () => {
  const time = clock();
  const deadlines = createDeadlines(time);
  const first = deadlines.start("gr_a", 1_060_000);
  time.pass(10_000);
  time.wallMs -= 3_600_000;
  expect(first.remainingMs()).toBe(50_000);
  expect(deadlines.start("gr_a", 1_060_000).remainingMs()).toBe(50_000);
  first.move(1_070_000);
  expect(first.remainingMs()).toBe(60_000);
  time.pass(60_000);
  expect(deadlines.start("gr_a", 1_060_000).remainingMs()).toBeLessThan(0);
});

test("an extension that is heard of after a later one takes nothing back", () => {
  const deadline = createDeadlines(clock()).start("gr_a", 1_060_000);
  deadline.move(1_080_000);
  deadline.move(1_070_000); // decided first, by another process
  expect(deadline.endsAtMs).toBe(1_080_000);
  expect(deadline.remainingMs()).toBe(80_000);
});

test("a grant without a finite end opens nothing", () => {
  const deadlines = createDeadlines(clock());
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(() => deadlines.start("gr_a", bad)).toThrow(/without an end/);
    expect(() => deadlines.start("gr_a", 1_060_000).move(bad)).toThrow(/needs an end/);
  }
});
