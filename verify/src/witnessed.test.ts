import { afterEach, expect, test } from "vitest";
import {
  buildLog,
  checkpointAt,
  cosigned,
  testSigner,
  testWitness,
  writeFolder,
  type TestFolder,
} from "../testing/log.ts";
import { createCosigner } from "./note.ts";
import { witnessPolicy } from "./policy.ts";
import { formatProblem, type Report } from "./report.ts";
import { encodeBundle } from "./tiles.ts";
import { signCheckpoint } from "./checkpoint.ts";
import { EMPTY_ROOT, leafHash } from "./merkle.ts";
import { verifyFolder, type VerifyOptions } from "./verify.ts";
import { createPrivateKey, hash } from "node:crypto";

const entries = Array.from({ length: 300 }, (_, n) => Buffer.from(`{"n":${n}}`));
const log = buildLog({ entries });
const [w1, w2, w3] = [testWitness("w1"), testWitness("w2"), testWitness("w3")];
const witnesses = witnessPolicy(2, [w1.vkey, w2.vkey, w3.vkey]);
const at = (size: number, of = entries): string => checkpointAt(of, size, log.signer);
const WITNESSED = "checkpoint.witnessed";

const cleanup: TestFolder[] = [];
afterEach(() => {
  for (const folder of cleanup.splice(0)) folder.dispose();
});

async function verify(
  change: Record<string, string | Uint8Array | undefined>,
  options: Partial<VerifyOptions> = { witnesses },
): Promise<Report & { lines: string[] }> {
  const made = writeFolder(log.files);
  cleanup.push(made);
  for (const [path, text] of Object.entries(change)) {
    if (text === undefined) made.remove(path);
    else made.write(path, Buffer.from(text));
  }
  const report = await verifyFolder({ folder: made.folder, vkey: log.signer.vkey, ...options });
  return { ...report, lines: report.problems.map(formatProblem) };
}

test("with a policy, enough witnesses must have seen a prefix of the log, and what is newer is counted", async () => {
  const report = await verify({ [WITNESSED]: cosigned(at(290), [w1, w3]) });
  expect(report.lines).toEqual([]);
  expect(report.witnessed).toMatchObject({ size: 290, unwitnessed: 10, by: ["w.test/w1", "w.test/w3"] });
  const bounded = (maxUnwitnessed: number): ReturnType<typeof verify> =>
    verify({ [WITNESSED]: cosigned(at(290), [w1, w3]) }, { witnesses, maxUnwitnessed });
  expect((await bounded(10)).ok).toBe(true);
  expect((await bounded(9)).lines).toEqual([expect.stringContaining("10 newer ones are not witnessed, and at most 9")]);
});

test("a policy that is not met fails: no witnessed checkpoint, too few, strangers, or a bad line", async () => {
  expect((await verify({})).lines).toEqual([
    "checkpoint.witnessed: is missing: nothing here is cosigned by 2 of 3 witnesses",
  ]);
  const few = await verify({ [WITNESSED]: cosigned(at(290), [w1, testWitness("stranger")]) });
  expect(few.lines).toEqual([
    "checkpoint.witnessed: is cosigned by w.test/w1 only, and the policy asks for 2 of 3 witnesses",
  ]);
  expect((await verify({ [WITNESSED]: at(290) })).lines).toEqual([expect.stringContaining("is cosigned by none")]);
  expect((await verify({ [WITNESSED]: "" })).ok).toBe(false);
  const forged = cosigned(at(290), [w1, w2]).replace("\n290\n", "\n291\n");
  expect((await verify({ [WITNESSED]: forged })).ok).toBe(false);
});

test("insider: a history that was rewritten, signed by the log and shown to no witness, is found by what they saw", async () => {
  const honest = cosigned(at(290), [w1, w2, w3]);
  const forged = buildLog({ entries: entries.with(5, Buffer.from('{"n":"edited"}')) });
  const report = await verify({ ...Object.fromEntries(forged.files), [WITNESSED]: honest });
  expect(report.lines).toEqual([expect.stringMatching(/^checkpoint\.witnessed: signs another history: the first 290/)]);
  const cut = buildLog({ entries: entries.slice(0, 200) });
  const files: Record<string, Uint8Array | undefined> = Object.fromEntries(cut.files);
  for (const path of log.files.keys()) files[path] ??= undefined;
  expect((await verify({ ...files, [WITNESSED]: honest })).lines).toEqual([
    "checkpoint.witnessed: covers 290 entries, and the log has only 200 now: its tail was cut off",
  ]);
  // Without a policy nobody is believed but the log, and its own two words are still held against each other.
  expect((await verify({ ...Object.fromEntries(forged.files), [WITNESSED]: honest }, {})).ok).toBe(false);
  expect((await verify({ [WITNESSED]: cosigned(at(290), [w1]) }, {})).ok).toBe(true);
});

test("what witnesses cosign of every log, that it began empty, is no word for what it became", async () => {
  const empty = cosigned(signCheckpoint({ origin: log.signer.name, size: 0, root: EMPTY_ROOT }, [log.signer]), [
    w1,
    w2,
  ]);
  expect((await verify({ [WITNESSED]: empty })).lines).toEqual([
    "checkpoint.witnessed: covers no entry: witnesses saw nothing of this log",
  ]);
  const kept = { ...archive([100, 280], []), "witnessed/0": empty };
  expect((await verify(kept)).lines).toEqual([expect.stringContaining("nothing here is cosigned")]);
  const nothing = buildLog({ entries: [] });
  const files: Record<string, Uint8Array | undefined> = Object.fromEntries(nothing.files);
  for (const path of log.files.keys()) files[path] ??= undefined;
  expect(await verify({ ...files, [WITNESSED]: empty })).toMatchObject({ ok: true, size: 0, witnessed: { size: 0 } });
});

test("changing any byte of the witnessed checkpoint is found", async () => {
  const note = Buffer.from(cosigned(at(290), [w1, w2]));
  const made = writeFolder(log.files);
  cleanup.push(made);
  for (let i = 0; i < note.length; i += 1) {
    const edited = Buffer.from(note);
    edited[i] = (edited[i] ?? 0) ^ 1;
    made.write(WITNESSED, edited);
    const report = await verifyFolder({ folder: made.folder, vkey: log.signer.vkey, witnesses });
    expect([report.ok, report.problems[0]?.where], `byte ${i}`).toEqual([false, WITNESSED]);
  }
});

test("a policy whose witness is the log itself is refused", async () => {
  const der = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), hash("sha256", "log", "buffer")]);
  const self = createCosigner("w.test/self", createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
  const policy = witnessPolicy(1, [self.vkey]);
  await expect(verify({ [WITNESSED]: cosigned(at(290), [self]) }, { witnesses: policy })).rejects.toThrow(
    /has the key of the log itself/,
  );
});

/** What an archive has of this log: dated checkpoints, full tiles, and the partial tiles of each checkpoint's size. */
function archive(sizes: readonly number[], by = [w1, w2]): Record<string, string | Uint8Array | undefined> {
  const files: Record<string, string | Uint8Array | undefined> = { checkpoint: undefined };
  for (const path of log.files.keys()) if (path.includes(".p/")) files[path] = undefined;
  for (const size of sizes) {
    files[`checkpoints/${size}`] = cosigned(at(size), by);
    const [tail, first] = [size % 256, size - (size % 256)];
    if (tail === 0) continue;
    const part = entries.slice(first, size);
    files[`tile/entries/00${first / 256}.p/${tail}`] = encodeBundle(part);
    files[`tile/0/00${first / 256}.p/${tail}`] = Buffer.concat(part.map(leafHash));
    if (size > 256) files["tile/1/000.p/1"] = log.files.get("tile/1/000.p/1");
  }
  return files;
}

test("an archive, which has dated checkpoints and the tiles they need, verifies up to the newest of them", async () => {
  const report = await verify(archive([100, 280]), {});
  expect(report.lines).toEqual([]);
  expect(report).toMatchObject({ ok: true, size: 280, head: "checkpoints/280", totals: { checkpoints: 2, beyond: 0 } });
  // Tiles that were archived after it are counted and not held against it.
  expect(await verify(archive([100]), {})).toMatchObject({ ok: true, size: 100, totals: { beyond: 2 } });
  const edited = { ...archive([100, 280]), "tile/0/000": Buffer.alloc(8_192) };
  expect((await verify(edited, {})).lines[0]).toMatch(/^tile\/0\/000, entry 0: was changed/);
  expect((await verify({ ...archive([]) }, {})).lines).toEqual(["checkpoint: is missing"]);
  expect((await verify({ ...archive([100, 280]), "checkpoints/280": at(280, entries.toReversed()) }, {})).ok).toBe(
    false,
  );
});

test("an archive may keep what witnesses saw in a folder of its own, and it is held against the log", async () => {
  const plain = archive([100, 280], []);
  const seen = { ...plain, "witnessed/100": cosigned(at(100), [w1, w2]), "witnessed/270": cosigned(at(270), [w2, w3]) };
  expect(await verify(seen)).toMatchObject({ ok: true, witnessed: { size: 270, unwitnessed: 10 } });
  expect((await verify(plain)).lines).toEqual([expect.stringContaining("nothing here is cosigned")]);
  const forked = { ...seen, "witnessed/270": cosigned(at(270, entries.toReversed()), [w2, w3]) };
  expect((await verify(forked)).lines).toEqual([expect.stringMatching(/^witnessed\/270: signs another history/)]);
  const cut = { ...plain, "witnessed/290": cosigned(at(290), [w1, w2]) };
  expect((await verify(cut)).lines).toEqual([
    expect.stringMatching(/^witnessed\/290: covers 290 .* tail was cut off$/),
  ]);
  // Beside a `checkpoint` such a folder does not belong.
  expect((await verify({ "witnessed/100": cosigned(at(100), [w1, w2]) }, {})).lines).toEqual([
    "witnessed: does not belong here",
  ]);
});

test("in an archive the newest dated checkpoint with enough cosignatures is the witnessed one", async () => {
  const mixed = { ...archive([100, 280]), "checkpoints/280": cosigned(at(280), [w1]) };
  expect(await verify(mixed)).toMatchObject({ ok: true, witnessed: { size: 100, unwitnessed: 180 } });
  expect((await verify(archive([100, 280], [w1]))).lines).toEqual([
    expect.stringContaining("nothing here is cosigned"),
  ]);
});

test("a key file may say with comments what its keys are, and nothing else", async () => {
  const vkey = log.signer.vkey;
  expect((await verify({ "log.vkey": `# in force\n${vkey}\n# former\n` }, {})).ok).toBe(true);
  for (const text of [`${vkey}\n\n`, vkey, `# \u001b[2J\n${vkey}\n`, ` ${vkey}\n`, "# nothing\n"]) {
    expect((await verify({ "log.vkey": text }, {})).lines, text).toEqual([expect.stringMatching(/^log\.vkey: /)]);
  }
  const stranger = testSigner("stranger").vkey;
  expect((await verify({ "log.vkey": `${stranger}\n` }, {})).ok).toBe(false);
});
