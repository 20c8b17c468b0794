import fc from "fast-check";
import { expect, test } from "vitest";
import { openCheckpoint, signCheckpoint } from "./checkpoint.ts";
import { FormatError, VerifyError } from "./errors.ts";
import {
  createSigner,
  openNote,
  parseNote,
  parseSignerKey,
  parseVerifierKey,
  parseVerifierKeys,
  signNote,
  type Note,
} from "./note.ts";
import { parseCheckpointText } from "./tree-head.ts";
import { testSigner } from "../testing/log.ts";

// The published example of Go's golang.org/x/mod/sumdb/note.
const SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const SIGNED = `${TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n`;

const accepts = (note: Uint8Array | string): boolean => {
  try {
    openNote(note, [parseVerifierKey(VKEY)]);
    return true;
  } catch (error) {
    if (error instanceof FormatError || error instanceof VerifyError) return false;
    throw error;
  }
};

test("the published example of Go's sumdb/note verifies, and is made again byte for byte", () => {
  const signer = parseSignerKey(SKEY);
  expect(signer.vkey).toBe(VKEY);
  expect(signNote(TEXT, [signer])).toBe(SIGNED);
  expect(openNote(SIGNED, [parseVerifierKey(VKEY)]).text).toBe(TEXT);
});

test("editing any byte of a signed note to any other value is refused", () => {
  const bytes = Buffer.from(SIGNED);
  for (let i = 0; i < bytes.length; i += 1) {
    const saved = bytes[i] ?? 0;
    for (const change of [1, 2, 4, 8, 16, 32, 64, 128, 0x2a]) {
      bytes[i] = saved ^ change;
      expect(accepts(bytes), `byte ${i} ^ ${change}`).toBe(false);
    }
    bytes[i] = saved;
  }
  expect(accepts(bytes)).toBe(true);
});

test("signatures by unknown keys are ignored, also one that shares a name or an id with a known key", () => {
  const other = testSigner("other", "witness.example/w1");
  const twin = testSigner("twin", "PeterNeumann");
  const note = signNote(TEXT, [other, twin, parseSignerKey(SKEY)]);
  expect(openNote(note, [parseVerifierKey(VKEY)]).signatures.map((s) => s.name)).toEqual(["PeterNeumann"]);
  expect(openNote(note, [parseVerifierKey(VKEY), parseVerifierKey(other.vkey)]).signatures).toHaveLength(2);
  expect(() => openNote(signNote(TEXT, [other]), [parseVerifierKey(VKEY)])).toThrow(
    /no signature by PeterNeumann\+c74f20a3/,
  );
});

test("a known key's bad signature refuses the note, even beside a good one", () => {
  const [a, b] = [testSigner("a"), testSigner("b")];
  const note = signNote(TEXT, [a, b]);
  const forged = signNote(TEXT, [a]) + signNote(`not ${TEXT}`, [b]).split("\n\n")[1];
  expect(openNote(note, [parseVerifierKey(a.vkey), parseVerifierKey(b.vkey)]).signatures).toHaveLength(2);
  expect(openNote(forged, [parseVerifierKey(a.vkey)]).signatures).toHaveLength(1);
  expect(() => openNote(forged, [parseVerifierKey(a.vkey), parseVerifierKey(b.vkey)])).toThrow(VerifyError);
});

/** Throws what is not a FormatError. */
const noteOrNothing = (bytes: Uint8Array): Note | undefined => {
  try {
    return parseNote(bytes);
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
};

test("without any known key a note is refused", () => {
  expect(() => openNote(SIGNED, [])).toThrow(/none was given/);
});

test("malformed notes are refused", () => {
  const sig = SIGNED.slice(TEXT.length + 1);
  const bad: Record<string, string | Buffer> = {
    "no empty line": TEXT + sig,
    "no signature": `${TEXT}\n`,
    "no final newline": SIGNED.slice(0, -1),
    "text without newline": `abc${SIGNED.slice(TEXT.length)}`.replace("abc\n", "abc"),
    "carriage returns": SIGNED.replaceAll("\n", "\r\n"),
    "a tab": SIGNED.replace(" cryptography", "\tcryptography"),
    "a byte order mark": `\uFEFF${SIGNED}`,
    "not UTF-8": Buffer.concat([Buffer.from([0xff]), Buffer.from(SIGNED)]),
    "half a surrogate": `\ud800${SIGNED}`,
    "a hyphen for the dash": SIGNED.replace("—", "-"),
    "two spaces": SIGNED.replace("— P", "—  P"),
    "a plus in the name": SIGNED.replace("PeterNeumann x08", "Peter+Neumann x08"),
    "base64 without padding": SIGNED.replace("nAM=", "nAM"),
    "base64 that is not canonical": SIGNED.replace("nAM=", "nAN="),
    "base64 with a line end": SIGNED.replace("x08go", "x08\ngo"),
    "a signature of four bytes": `${TEXT}\n— PeterNeumann x08gow==\n`,
    "something after the signatures": `${SIGNED}more\n`,
    "an empty note": "",
    "101 signatures": `${TEXT}\n${sig.repeat(101)}`,
    "more than a megabyte": "x".repeat(1 << 20) + SIGNED,
  };
  for (const [why, note] of Object.entries(bad)) expect(accepts(note), why).toBe(false);
  expect(accepts(`${TEXT}\n${sig.repeat(16)}`), "16 signatures").toBe(true);
});

test("no bytes make the parser throw anything but a FormatError", () => {
  const line = fc.constantFrom("\n", "— ", "a", " ", "AAAAAAAA", "\u0000", "—", "\n\n", "é", "+");
  fc.assert(
    fc.property(
      fc.oneof(
        fc.uint8Array({ maxLength: 300 }),
        fc.array(line).map((l) => Buffer.from(l.join(""))),
      ),
      (bytes) => {
        const note = noteOrNothing(bytes);
        expect(note === undefined || (note.text.endsWith("\n") && note.signatures.length > 0)).toBe(true);
      },
    ),
  );
});

test("any text and any number of signers round-trip", () => {
  const signers = ["a", "b", "c"].map((seed) => testSigner(seed));
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), fc.integer({ min: 1, max: 3 }), (raw, count) => {
      const text = `${raw.replaceAll(/[\u0000-\u001f]/g, "")}\n\nlast\n`;
      const note = signNote(text, signers.slice(0, count));
      expect(
        openNote(
          note,
          signers.map((s) => parseVerifierKey(s.vkey)),
        ),
      ).toMatchObject({ text });
      expect(parseNote(note).signatures).toHaveLength(count);
    }),
    { numRuns: 50 },
  );
});

test("verifier keys are strict: id, length, algorithm and names must fit", () => {
  const encoded = VKEY.split("+").slice(2).join("+");
  const bytes = Buffer.from(encoded, "base64");
  const other = Buffer.concat([Uint8Array.of(0x02), bytes.subarray(1)]).toString("base64");
  for (const bad of [
    "",
    "PeterNeumann",
    `PeterNeumann+c74f20a4+${encoded}`,
    `PeterNeumanm+c74f20a3+${encoded}`,
    `PeterNeumann+C74F20A3+${encoded}`,
    `Peter Neumann+c74f20a3+${encoded}`,
    `PeterNeumann+c74f20a3+${encoded}=`,
    `PeterNeumann+c74f20a3+${bytes.subarray(0, 32).toString("base64")}`,
    `PeterNeumann+c74f20a3+${other}`,
  ]) {
    expect(() => parseVerifierKey(bad), bad).toThrow(FormatError);
  }
  expect(() => parseVerifierKeys("\n# nothing\n")).toThrow(/no verifier key/);
  expect(() => parseVerifierKeys(`${VKEY}\n${testSigner("a").vkey}\n`)).toThrow(/different logs/);
  expect(parseVerifierKeys(`# my log\n${VKEY}\r\n`)).toHaveLength(1);
  expect(() => createSigner("with space", parseKey())).toThrow(FormatError);
});

function parseKey(): Parameters<typeof createSigner>[1] {
  return {} as Parameters<typeof createSigner>[1];
}

test("a checkpoint is origin, size and root, strictly, and bound to the key's name", () => {
  const signer = testSigner("log");
  const root = Buffer.alloc(32, 7);
  const note = signCheckpoint({ origin: signer.name, size: 12, root }, [signer]);
  const verifiers = parseVerifierKeys(signer.vkey);
  expect(openCheckpoint(note, verifiers)).toMatchObject({ origin: signer.name, size: 12 });
  const foreign = signCheckpoint({ origin: "other.example/log", size: 12, root }, [signer]);
  expect(() => openCheckpoint(foreign, verifiers)).toThrow(/is not the log that the key is for/);
  const b64 = root.toString("base64");
  expect(parseCheckpointText(`o\n0\n${b64}\nextension\n`).size).toBe(0);
  for (const bad of [
    `o\n012\n${b64}\n`,
    `o\n-1\n${b64}\n`,
    `o\n1e3\n${b64}\n`,
    `o\n99999999999999999999\n${b64}\n`,
    `\n1\n${b64}\n`,
    `o\n1\n${b64}`,
    `o\n1\n\n${b64}\n`,
    `o\n1\n${b64.slice(0, -1)}\n`,
    `o\n1\n${Buffer.alloc(31).toString("base64")}\n`,
    `o\n1\n`,
  ]) {
    expect(() => parseCheckpointText(bad), JSON.stringify(bad)).toThrow(FormatError);
  }
});
