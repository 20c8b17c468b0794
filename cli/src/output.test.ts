import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";

const GLASS = join(import.meta.dirname, "../bin/glass.mjs");

test("the overview of verbs, and the help of each, keep to eighty columns where those are asked for", () => {
  const help = (...words: string[]): string[] =>
    spawnSync(process.execPath, [GLASS, "help", ...words], {
      ...{ encoding: "utf8", env: { ...process.env, COLUMNS: "80" } },
    }).stdout.split("\n");
  for (const lines of [help(), help("break"), help("search"), help("log")]) {
    expect(lines.length).toBeGreaterThan(3);
    expect(lines.filter((line) => line.length > 80)).toEqual([]);
  }
});
