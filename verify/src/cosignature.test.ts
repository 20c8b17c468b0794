import { createPrivateKey, generateKeyPairSync } from "node:crypto";
import { expect, test } from "vitest";
import { checkpointAt, cosigned, testSigner, testWitness, WITNESSED_AT_MS } from "../testing/log.ts";
import { openCheckpoint, signCheckpoint } from "./checkpoint.ts";
import { openCosignatures, openWitnessed } from "./cosignature.ts";
import { FormatError, VerifyError } from "./errors.ts";
import {
  createCosigner,
  createSigner,
  formatCosignerKey,
  openNote,
  parseSignerKey,
  parseVerifierKey,
  parseVerifierKeys,
} from "./note.ts";
import { witnessPolicy } from "./policy.ts";

const log = testSigner("log");
const logKeys = parseVerifierKeys(log.vkey);
const note = checkpointAt([Buffer.from("a"), Buffer.from("b")], 2, log);
const [w1, w2, w3] = [testWitness("w1"), testWitness("w2", "ml-dsa-44"), testWitness("w3")];
const all = [w1, w2, w3];
const keys = all.map(({ vkey }) => parseVerifierKey(vkey));

test("a cosignature is over the header, the time and the checkpoint's text, as tlog-cosignature writes it", () => {
  // The example of the specification, signed here with a key of our own: the message is written out by hand.
  const text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
  const { privateKey } = generateKeyPairSync("ed25519");
  const witness = createCosigner("witness.example.com/w1", privateKey, () => 1_679_315_147_999);
  const signature = witness.sign(Buffer.from(text));
  expect(Buffer.from(signature.subarray(0, 8)).toString("hex")).toBe("00000000641850cb");
  const message = `cosignature/v1\ntime 1679315147\n${text}`;
  const plain = createSigner("x", privateKey).sign(Buffer.from(message)); // Ed25519 is deterministic
  expect(Buffer.from(signature.subarray(8))).toEqual(Buffer.from(plain));
  expect(parseVerifierKey(witness.vkey).publicKey).toHaveLength(32);
  expect(Buffer.from(witness.vkey.split("+").slice(2).join("+"), "base64")[0]).toBe(0x04);
});

test("witnesses of both algorithms cosign, and each cosignature has its witness and its time", () => {
  const found = openCosignatures(cosigned(note, all), keys);
  expect(found.map(({ name, seconds }) => [name, seconds])).toEqual(
    all.map(({ name }) => [name, WITNESSED_AT_MS / 1000]),
  );
  // Each line may be moved to another copy of the same checkpoint, and to no other checkpoint.
  const [line = ""] = found.map((cosignature) => cosignature.line);
  expect(openCosignatures(note + line, keys)).toHaveLength(1);
  const other = checkpointAt([Buffer.from("a"), Buffer.from("c")], 2, log);
  for (const { line: moved } of found) expect(() => openCosignatures(other + moved, keys)).toThrow(VerifyError);
  expect(openCosignatures(note, keys)).toEqual([]);
});

test("changing any byte of a cosignature, its time included, is refused", () => {
  for (const witness of [w1, w2]) {
    const line = cosigned(note, [witness]).slice(note.length);
    const bytes = Buffer.from(line.split(" ")[2] ?? "", "base64");
    const step = witness === w1 ? 1 : 97; // thousands of bytes: a sample
    for (let i = 4; i < bytes.length; i += step) {
      const edited = Buffer.from(bytes);
      edited[i] = (edited[i] ?? 0) ^ 1;
      const forged = `${note}— ${witness.name} ${edited.toString("base64")}\n`;
      expect(() => openCosignatures(forged, keys), `byte ${i}`).toThrow(VerifyError);
    }
    for (const length of [5, 11, 12, bytes.length - 1]) {
      const cut = `${note}— ${witness.name} ${bytes.subarray(0, length).toString("base64")}\n`;
      expect(() => openCosignatures(cut, keys), `cut to ${length}`).toThrow(VerifyError);
    }
    const longer = Buffer.concat([bytes, Buffer.from("x")]).toString("base64");
    expect(() => openCosignatures(`${note}— ${witness.name} ${longer}\n`, keys)).toThrow(VerifyError);
  }
});

test("a witness's key is none of a log, a log's none of a witness, and no signature of the one passes for the other", () => {
  expect(() => parseVerifierKeys(w1.vkey)).toThrow(/key of a witness, and not of a log/);
  expect(() => openCheckpoint(cosigned(note, [w1]), [parseVerifierKey(w1.vkey)])).toThrow(FormatError);
  expect(() => openCosignatures(note, logKeys)).toThrow(/key of a log, and not of a witness/);
  // One private key for both: a plain signature of the text is not a cosignature of it, nor the other way round.
  const { privateKey } = generateKeyPairSync("ed25519");
  const [asLog, asWitness] = [createSigner("both.test/x", privateKey), createCosigner("both.test/x", privateKey)];
  expect(parseVerifierKey(asLog.vkey).keyId).not.toBe(parseVerifierKey(asWitness.vkey).keyId);
  const text = Buffer.from(note.slice(0, note.indexOf("\n\n") + 1));
  expect(parseVerifierKey(asWitness.vkey).verify(text, asLog.sign(text))).toBe(false);
  expect(parseVerifierKey(asLog.vkey).verify(text, asWitness.sign(text))).toBe(false);
});

test("an ML-DSA-44 signature is bound to its signer's name, to the origin, the size and the root", () => {
  const key = createPrivateKey({
    key: Buffer.concat([Buffer.from("3034020100300b060960864801650304031104228020", "hex"), Buffer.alloc(32, 7)]),
    ...{ format: "der", type: "pkcs8" },
  });
  const [a, b] = [createCosigner("a.test", key), createCosigner("b.test", key)];
  const text = Buffer.from(note.slice(0, note.indexOf("\n\n") + 1));
  const signature = a.sign(text);
  const [asA, asB] = [parseVerifierKey(a.vkey), parseVerifierKey(b.vkey)];
  expect(asA.verify(text, signature)).toBe(true);
  expect(asB.verify(text, signature)).toBe(false);
  for (const [from, to] of [
    ["glasskey", "glasskex"],
    ["\n2\n", "\n3\n"],
  ] as const) {
    expect(asA.verify(Buffer.from(text.toString().replace(from, to)), signature)).toBe(false);
  }
  expect(asA.verify(Buffer.from("no checkpoint\n"), signature)).toBe(false);
  expect(() => a.sign(Buffer.from("no checkpoint\n"))).toThrow(FormatError);
  expect(() => a.sign(Buffer.from(`${"o".repeat(256)}\n0\n${Buffer.alloc(32).toString("base64")}\n`))).toThrow(
    /1 to 255 bytes/,
  );
});

test("a log that signs with Ed25519 and with ML-DSA-44 verifies with either key", () => {
  const { privateKey } = generateKeyPairSync("ml-dsa-44");
  const second = createSigner(log.name, privateKey);
  const both = signCheckpoint({ origin: log.name, size: 5, root: Buffer.alloc(32, 1) }, [log, second]);
  for (const vkeys of [log.vkey, second.vkey, `${log.vkey}\n${second.vkey}\n`]) {
    expect(openCheckpoint(both, parseVerifierKeys(vkeys)).size).toBe(5);
  }
  expect(openNote(both, parseVerifierKeys(`${log.vkey}\n${second.vkey}`)).signatures).toHaveLength(2);
});

test("enough witnesses are enough, and fewer are not, whoever else signed", () => {
  const policy = witnessPolicy(2, [w1.vkey, w2.vkey, w3.vkey]);
  expect(openWitnessed(cosigned(note, [w1, w3]), logKeys, policy)).toMatchObject({ size: 2, origin: log.name });
  const stranger = testWitness("stranger");
  for (const by of [[], [w1], [w1, stranger], [w1, w1]]) {
    expect(() => openWitnessed(cosigned(note, by), logKeys, policy), String(by.length)).toThrow(
      /the policy asks for 2 of 3 witnesses/,
    );
  }
  // Witnesses alone do not make a checkpoint: the log itself must have signed.
  const unsigned = `${note.slice(0, note.indexOf("\n\n") + 2)}${cosigned(note, all).slice(note.length)}`;
  expect(() => openWitnessed(unsigned, logKeys, policy)).toThrow(/no signature by glasskey/);
  // A known witness's bad line refuses the note, even where the others would be enough.
  const bad =
    cosigned(checkpointAt([Buffer.from("x")], 1, log), [w2])
      .split("\n\n")[1]
      ?.split("\n")[1] ?? "";
  expect(() => openWitnessed(`${cosigned(note, [w1, w3])}${bad}\n`, logKeys, policy)).toThrow(/does not hold/);
});

test("a log cannot be its own witness: a witness with the log's key is refused", () => {
  const { privateKey } = generateKeyPairSync("ed25519");
  const [own, self] = [createSigner("own.test/log", privateKey), createCosigner("w.test/self", privateKey)];
  const signed = signCheckpoint({ origin: "own.test/log", size: 1, root: Buffer.alloc(32) }, [own]);
  expect(() =>
    openWitnessed(cosigned(signed, [self]), parseVerifierKeys(own.vkey), witnessPolicy(1, [self.vkey])),
  ).toThrow(/has the key of the log itself/);
});

test("a witness's private key round-trips in one line, in both algorithms", () => {
  for (const type of ["ed25519", "ml-dsa-44"] as const) {
    const { privateKey } = type === "ed25519" ? generateKeyPairSync("ed25519") : generateKeyPairSync("ml-dsa-44");
    const line = formatCosignerKey("w.test/1", privateKey);
    expect(parseSignerKey(line).vkey).toBe(createCosigner("w.test/1", privateKey).vkey);
    expect(() => parseSignerKey(line.slice(0, -8))).toThrow(FormatError);
    expect(() => parseSignerKey(line.replace("w.test/1", "w.test/2"))).toThrow(/does not fit/);
  }
});
