import type { EventLine, ShownLine, StatementLine } from "@glasskey/contract";
import { expect, test } from "vitest";
import type { Output } from "./output.ts";
import { tellStory } from "./story.ts";

const at = "2026-11-21T02:14:00.000Z";
const printed = (n: number, text: string): ShownLine => ({ what: "output", n, at, seq: 2, text });
const ran = (n: number, text: string): StatementLine => ({
  ...{ what: "statement", at, n, seq: 1, via: "exec", text, detail: {} },
  ...{ outcome: "done", tag: "exit 0", sentBytes: 0 },
});
const ended: EventLine = { what: "ended", at, seq: 9, content: { cause: "client" } };

/** The date stands before the time on every other day. */
const TIME = /^(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d +/;

/** What is said, without times and results. */
function told(live: boolean, ...lines: readonly (ShownLine | StatementLine | EventLine)[]): string[] {
  const said: string[] = [];
  const same = (text: string): string => text;
  const out: Output = {
    ...{ json: false, tty: false, hint: () => {}, value: () => {} },
    ...{ bold: same, dim: same, red: same, green: same, yellow: same },
    say: (line = "") => void said.push(line),
    sayAll: (all) => void said.push(...all),
  };
  const story = tellStory(out, live);
  for (const line of lines) story.tell(line);
  story.end();
  return said.filter((line) => !/^ +[→·]/.test(line)).map((line) => line.replace(TIME, ""));
}

test("in a replay a command stands before what it printed, also where two ran at once", () => {
  const lines = [printed(1, "one"), printed(2, "two"), printed(1, "more"), ran(2, "second"), ran(1, "first"), ended];
  expect(told(false, ...lines)).toEqual([
    "exec: second",
    "» two",
    "exec: first",
    "» one",
    "» more",
    "session ends: client",
  ]);
});

test("what was printed is told also where its command never comes, or there is much of it", () => {
  expect(told(false, printed(1, "one"))).toEqual(["» one"]);
  expect(told(false, printed(1, "one"), ended)).toEqual(["» one", "session ends: client"]);
  const much = Array.from({ length: 2_500 }, (_, i) => printed(1, `${i}`));
  expect(told(false, ...much, ran(1, "yes"))).toHaveLength(2_501);
});

test("whoever watches sees at once what a command prints that began before", () => {
  expect(told(true, printed(1, "one"), ran(1, "first"))).toEqual(["» one", "exec: first"]);
});
