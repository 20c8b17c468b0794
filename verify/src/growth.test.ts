import { afterEach, expect, test } from "vitest";
import { buildLog, checkpointAt, testSigner, writeFolder, type TestFolder } from "../testing/log.ts";
import { openFolder } from "./folder.ts";
import { verifyGrowth, type Growth } from "./growth.ts";
import { formatProblem } from "./report.ts";

const entries = Array.from({ length: 1_000 }, (_, n) => Buffer.from(`{"n":${n}}`));
const log = buildLog({ entries });
const at = (size: number, of = entries): string => checkpointAt(of, size, log.signer);
const fork = entries.with(3, Buffer.from('{"n":-3}'));

const cleanup: TestFolder[] = [];
afterEach(() => {
  for (const folder of cleanup.splice(0)) folder.dispose();
});

async function grow(since: string, until: string, change?: (folder: TestFolder) => void): Promise<Growth> {
  const made = writeFolder(log.files);
  cleanup.push(made);
  change?.(made);
  return verifyGrowth({ source: openFolder(made.folder), vkey: log.signer.vkey, since, until });
}

const lines = ({ problems }: Growth): string[] => problems.map(formatProblem);

test("growth between any two checkpoints verifies from tiles alone, and reads no entry", async () => {
  for (const [older, newer] of [
    [0, 1_000],
    [1, 2],
    [255, 256],
    [256, 257],
    [512, 1_000],
    [700, 999],
    [999, 1_000],
    [1_000, 1_000],
  ] as const) {
    const growth = await grow(at(older), at(newer), ({ remove }) => remove("tile/entries"));
    expect(growth, `${older} to ${newer}`).toMatchObject({ ok: true, oldSize: older, size: newer, problems: [] });
  }
});

test("a fork, a shrunken log and two roots at one size are told apart", async () => {
  expect(lines(await grow(at(500, fork), at(1_000)))).toEqual([
    "older checkpoint: signs another history: the log of the newer one does not begin with its 500 entries",
  ]);
  expect(lines(await grow(at(500), at(1_000, fork)))).toEqual([
    expect.stringMatching(/^tile: the tiles here do not have the root of the newer checkpoint/),
  ]);
  expect(lines(await grow(at(1_000), at(500)))).toEqual([
    "newer checkpoint: covers 500 entries, and the older one 1000",
  ]);
  expect(lines(await grow(at(500), at(500, fork)))).toEqual([expect.stringMatching(/the log signed two histories$/)]);
});

test("an unsigned checkpoint and a missing or edited tile are no growth", async () => {
  const foreign = checkpointAt(entries, 500, testSigner("other"));
  expect(lines(await grow(foreign, at(1_000)))).toEqual([expect.stringMatching(/^older checkpoint: no signature by/)]);
  expect(lines(await grow("", at(1_000)))).toHaveLength(1);
  const missing = await grow(at(500), at(1_000), ({ remove }) => remove("tile/0/001"));
  expect(lines(missing)).toEqual(["tile/0/001: is missing"]);
  const edited = await grow(at(500), at(1_000), ({ write }) => write("tile/0/001", Buffer.alloc(8_192)));
  expect(edited.ok).toBe(false);
  const cut = await grow(at(500), at(1_000), ({ write }) => write("tile/0/001", Buffer.alloc(8_191)));
  expect(lines(cut)).toEqual(["tile/0/001: is damaged"]);
});
