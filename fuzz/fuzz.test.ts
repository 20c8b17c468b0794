import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fuzz } from "./harness.ts";
import { mutate } from "./mutate.ts";
import { createRandom } from "./random.ts";

const targets = (await readdir(import.meta.dirname)).filter((file) => file.endsWith(".fuzz.ts"));

describe("parsers of untrusted input", () => {
  test("are all fuzzed", () => {
    expect(targets.length).toBeGreaterThanOrEqual(5);
  });

  test.each(targets)(
    "%s: no crash, hang or growth on 1,000 mutated inputs",
    async (file) => {
      const report = await fuzz({ target: new URL(file, import.meta.url), seed: 20_260_101, iterations: 1_000 });
      expect(report).toEqual({ crashed: false, ran: 1_000 });
    },
    300_000,
  );
});

describe("the fuzzer", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "glasskey-fuzz-test-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  /** A target whose `one` has this body. */
  async function targetWith(name: string, body: string): Promise<URL> {
    const path = join(folder, `${name}.mjs`);
    await writeFile(path, `export const seeds = [Buffer.from("seed")];\nexport function one(input) {\n${body}\n}\n`);
    return pathToFileURL(path);
  }

  test("reports an exception with the seed that brings it back", async () => {
    const target = await targetWith("throws", 'if (input.length > 12) throw new RangeError("too long");');
    const report = await fuzz({ target, seed: 7, iterations: 10_000 });
    expect(report).toMatchObject({ crashed: true, why: expect.stringContaining("RangeError: too long") });
    if (!report.crashed) return;
    expect(report.seed).toBe(7 + report.ran);
    const again = await fuzz({ target, seed: report.seed, iterations: 1 });
    expect(again).toMatchObject({ crashed: true, ran: 0, seed: report.seed });
  });

  test("reports an input on which the parser hangs", async () => {
    const target = await targetWith("hangs", "if (input.length === 0) for (;;);");
    const report = await fuzz({ target, seed: 1, iterations: 100_000, hangsAfterMs: 300 });
    expect(report).toMatchObject({ crashed: true, why: expect.stringContaining("still running") });
  });

  test("reports memory that is taken for a length that was only announced", async () => {
    const target = await targetWith("announces", "globalThis.kept = Buffer.alloc(1 << 28);");
    const report = await fuzz({ target, seed: 1, iterations: 10 });
    expect(report).toMatchObject({ crashed: true, why: expect.stringContaining("of memory") });
  });

  test("reports a parser that keeps what it was given", async () => {
    const target = await targetWith(
      "grows",
      "(globalThis.kept ??= []).push(Array.from({ length: 1_000_000 }, (_, i) => i));",
    );
    const report = await fuzz({ target, seed: 1, iterations: 100_000 });
    expect(report).toMatchObject({ crashed: true, why: expect.stringMatching(/memory/i) });
  });

  test("makes the same input from the same seed, and others from others", () => {
    const seeds = [Buffer.from("one seed"), Buffer.from("another")];
    const inputs = Array.from({ length: 50 }, (_, n) => mutate(seeds, ["word"], createRandom(n)).toString("hex"));
    expect(inputs).toEqual(inputs.map((_, n) => mutate(seeds, ["word"], createRandom(n)).toString("hex")));
    expect(new Set(inputs).size).toBeGreaterThan(25);
  });
});
