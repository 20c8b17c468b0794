import { execFileSync } from "node:child_process";
import { createHash, createPrivateKey, generateKeyPairSync, sign, type KeyObject } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  certificateName,
  certifiedSigner,
  fingerprint,
  keyTypeOf,
  parseKeyLine,
  parsePublicKey,
  parsePublicKeyLine,
  plainName,
  publicKeyLine,
  publicKeyOf,
  SIGNATURE_ALGORITHMS,
  signerFromSeed,
  signerOf,
  subjectKey,
  verifySignature,
} from "./keys.ts";
import { SshError } from "./types.ts";
import { Writer } from "./wire.ts";

const pairs: Readonly<Record<string, KeyObject>> = {
  "ssh-ed25519": generateKeyPairSync("ed25519").privateKey,
  "ecdsa-sha2-nistp256": generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey,
  "ecdsa-sha2-nistp384": generateKeyPairSync("ec", { namedCurve: "P-384" }).privateKey,
  "ecdsa-sha2-nistp521": generateKeyPairSync("ec", { namedCurve: "P-521" }).privateKey,
  "rsa-sha2-512": generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey,
};
const rsa = pairs["rsa-sha2-512"] as KeyObject;
const data = Buffer.from("session id and request");

describe("signatures", () => {
  test.each(Object.entries(pairs))("of %s are verified with the key they were made with, and no other", (name, key) => {
    const signer = signerOf(key);
    expect(signer.algorithm).toBe(name);
    const publicKey = parsePublicKey(signer.blob);
    // ECDSA's numbers have leading zeros now and then.
    for (let i = 0; i < 40; i += 1) expect(verifySignature(name, publicKey, data, signer.sign(data))).toBe(true);
    const signature = signer.sign(data);
    expect(verifySignature(name, publicKey, Buffer.concat([data, data]), signature)).toBe(false);
    const stranger = publicKeyOf(generateKeyPairSync("ed25519").privateKey);
    expect(verifySignature(name, stranger, data, signature)).toBe(false);
  });

  test("are wrong with any bit changed, and with bytes behind them, without an exception", () => {
    for (const key of Object.values(pairs)) {
      const signer = signerOf(key);
      const publicKey = parsePublicKey(signer.blob);
      const signature = signer.sign(data);
      fc.assert(
        fc.property(fc.nat(signature.length * 8 - 1), (bit) => {
          const changed = Buffer.from(signature);
          changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
          expect(verifySignature(signer.algorithm, publicKey, data, changed)).toBe(false);
        }),
        { numRuns: 30 },
      );
      expect(verifySignature(signer.algorithm, publicKey, data, Buffer.concat([signature, Buffer.of(0)]))).toBe(false);
      expect(verifySignature(signer.algorithm, publicKey, data, Buffer.alloc(0))).toBe(false);
    }
  });

  test("of RSA count only for the algorithm that was announced, and never with SHA-1", () => {
    const publicKey = publicKeyOf(rsa);
    const with256 = signerOf(rsa, { algorithm: "rsa-sha2-256" }).sign(data);
    expect(verifySignature("rsa-sha2-256", publicKey, data, with256)).toBe(true);
    expect(verifySignature("rsa-sha2-512", publicKey, data, with256)).toBe(false);
    const sha1 = new Writer()
      .string("ssh-rsa")
      .string(sign("sha1", data, rsa))
      .done();
    for (const algorithm of ["ssh-rsa", "rsa-sha2-256"])
      expect(verifySignature(algorithm, publicKey, data, sha1)).toBe(false);
    expect(() => signerOf(rsa, { algorithm: "ssh-rsa" })).toThrow(SshError);
    expect(SIGNATURE_ALGORITHMS).not.toContain("ssh-rsa");
  });

  test("of hardware keys count only if somebody touched the key, for its own application", () => {
    const { privateKey } = generateKeyPairSync("ed25519");
    const point = publicKeyOf(privateKey).blob.subarray(-32);
    const type = "sk-ssh-ed25519@openssh.com";
    const key = parsePublicKey(new Writer().string(type).string(point).string("ssh:").done());
    const sha = (bytes: Buffer | string): Buffer => createHash("sha256").update(bytes).digest();
    const made = (application: string, flags: number): Buffer => {
      const tail = Buffer.of(flags, 0, 0, 0, 7);
      const bytes = sign(null, Buffer.concat([sha(application), tail, sha(data)]), privateKey);
      return new Writer().string(type).string(bytes).raw(tail).done();
    };
    expect(verifySignature(type, key, data, made("ssh:", 1))).toBe(true);
    expect(verifySignature(type, key, data, made("ssh:", 5))).toBe(true);
    expect(verifySignature(type, key, data, made("ssh:", 0))).toBe(false);
    expect(verifySignature(type, key, data, made("https://evil.example", 1))).toBe(false);
    const plain = new Writer()
      .string(type)
      .string(sign(null, data, privateKey))
      .done();
    expect(verifySignature(type, key, data, plain)).toBe(false);
  });

  test("of ECDSA hardware keys are verified the same way", () => {
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const plain = publicKeyOf(privateKey).blob;
    const type = "sk-ecdsa-sha2-nistp256@openssh.com";
    const key = parsePublicKey(
      new Writer().string(type).string("nistp256").string(plain.subarray(-65)).string("ssh:").done(),
    );
    const sha = (bytes: Buffer | string): Buffer => createHash("sha256").update(bytes).digest();
    const tail = Buffer.of(1, 0, 0, 1, 0);
    const message = Buffer.concat([sha("ssh:"), tail, sha(data)]);
    const both = sign("sha256", message, { key: privateKey, dsaEncoding: "ieee-p1363" });
    const inner = new Writer().mpint(both.subarray(0, 32)).mpint(both.subarray(32)).done();
    expect(verifySignature(type, key, data, new Writer().string(type).string(inner).raw(tail).done())).toBe(true);
    tail[4] = 1;
    expect(verifySignature(type, key, data, new Writer().string(type).string(inner).raw(tail).done())).toBe(false);
  });
});

describe("public keys", () => {
  test("have one encoding, so one fingerprint", () => {
    for (const key of Object.values(pairs)) {
      const { blob } = publicKeyOf(key);
      expect(parsePublicKey(blob).blob).toEqual(blob);
      expect(() => parsePublicKey(Buffer.concat([blob, Buffer.of(0)]))).toThrow(SshError);
      expect(() => parsePublicKey(blob.subarray(0, -1))).toThrow(SshError);
    }
  });

  const n2048 = Buffer.alloc(256, 0xc5);
  const off = Buffer.concat([Buffer.of(4), Buffer.alloc(32, 1), Buffer.alloc(32, 2)]);
  test.each<[string, Buffer]>([
    ["an RSA key of 1024 bits", publicKeyBlob(generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey)],
    [
      "an RSA key of 2047 bits",
      new Writer()
        .string("ssh-rsa")
        .mpint(Buffer.of(1, 0, 1))
        .mpint(Buffer.concat([Buffer.of(0x7f), n2048.subarray(1)]))
        .done(),
    ],
    [
      "an RSA key of 32,768 bits",
      new Writer()
        .string("ssh-rsa")
        .mpint(Buffer.of(1, 0, 1))
        .mpint(Buffer.alloc(4096, 0xc5))
        .done(),
    ],
    ["an RSA key with the exponent 1", new Writer().string("ssh-rsa").mpint(Buffer.of(1)).mpint(n2048).done()],
    ["an RSA key with an exponent that costs minutes", new Writer().string("ssh-rsa").mpint(n2048).mpint(n2048).done()],
    [
      "an RSA key with an even number",
      new Writer()
        .string("ssh-rsa")
        .mpint(Buffer.of(1, 0, 1))
        .mpint(Buffer.alloc(256, 0xc4))
        .done(),
    ],
    ["an ECDSA key off its curve", new Writer().string("ecdsa-sha2-nistp256").string("nistp256").string(off).done()],
    [
      "an ECDSA key of another curve than its name",
      new Writer().string("ecdsa-sha2-nistp256").string("nistp384").string(off).done(),
    ],
    [
      "the point at infinity",
      new Writer().string("ecdsa-sha2-nistp256").string("nistp256").string(Buffer.of(0)).done(),
    ],
    ["an Ed25519 key of 31 bytes", new Writer().string("ssh-ed25519").string(Buffer.alloc(31)).done()],
    ["a DSA key", new Writer().string("ssh-dss").string("x").done()],
    [
      "a certificate where a plain key is wanted",
      new Writer().string("ssh-ed25519-cert-v01@openssh.com").string("x").done(),
    ],
    ["nothing", Buffer.alloc(0)],
  ])("%s is refused", (_what, blob) => {
    expect(() => parsePublicKey(blob)).toThrow(SshError);
  });

  test("names go to their certificate form and back", () => {
    for (const name of SIGNATURE_ALGORITHMS) {
      expect(plainName(certificateName(name))).toBe(name);
      expect(keyTypeOf(certificateName(name))).toBe(keyTypeOf(name));
    }
    expect(certificateName("sk-ssh-ed25519@openssh.com")).toBe("sk-ssh-ed25519-cert-v01@openssh.com");
    expect(keyTypeOf("rsa-sha2-512")).toBe("ssh-rsa");
    expect(keyTypeOf("ssh-rsa")).toBeUndefined();
  });

  test("a certificate is shown only with the key it is for", () => {
    const [mine, other] = [signerFromSeed(Buffer.alloc(32, 1)), signerFromSeed(Buffer.alloc(32, 2))];
    const type = "ssh-ed25519-cert-v01@openssh.com";
    const blob = new Writer().string(type).string("nonce").string(mine.blob.subarray(-32)).string("the rest").done();
    expect(subjectKey(blob).blob).toEqual(mine.blob);
    const signer = certifiedSigner(mine, blob);
    expect([signer.algorithm, signer.blob]).toEqual([type, blob]);
    expect(verifySignature(type, subjectKey(blob), data, signer.sign(data))).toBe(true);
    expect(() => certifiedSigner(other, blob)).toThrow(SshError);
  });

  test.each([
    "",
    "ssh-ed25519",
    "ssh-ed25519 !!!",
    "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIA==",
    `ssh-ed25519 ${"A".repeat(200_000)}`,
    "restrict ssh-ed25519 AAAA",
  ])("the line %j is refused", (line) => {
    expect(() => parsePublicKeyLine(line)).toThrow(SshError);
  });

  // Once its cost grew with the cube of its length: 8 KiB, which the API takes, held the whole process for minutes.
  test("a line that is almost one is refused at once, whatever it is full of", () => {
    for (const fill of [" ", "\t", "a ", "\n", "a", "=", "a=", "\u00A0"]) {
      for (const line of [`a AAAA ${fill.repeat(30_000)}\nX`, `${fill.repeat(30_000)}X`, `a ${fill.repeat(30_000)}!`])
        expect(() => parsePublicKeyLine(line)).toThrow(SshError);
    }
  });
});

function publicKeyBlob(key: KeyObject): Buffer {
  const { e = "", n = "" } = key.export({ format: "jwk" });
  return new Writer().string("ssh-rsa").mpint(Buffer.from(e, "base64url")).mpint(Buffer.from(n, "base64url")).done();
}

describe.skipIf(!existsSync("/usr/bin/ssh-keygen"))("with ssh-keygen (skipped where it is not installed)", () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "glasskey-keys-"));
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  test.each([
    ["ed25519", "256"],
    ["ecdsa", "256"],
    ["ecdsa", "384"],
    ["ecdsa", "521"],
    ["rsa", "2048"],
  ])("lines and fingerprints of its %s keys of %s bits are the same here", async (type, bits) => {
    const file = join(dir, `${type}-${bits}`);
    execFileSync("ssh-keygen", ["-q", "-t", type, "-b", bits, "-N", "", "-C", "ann at work", "-f", file]);
    const line = await readFile(`${file}.pub`, "utf8");
    const { key, comment } = parsePublicKeyLine(line);
    expect(comment).toBe("ann at work");
    expect(publicKeyLine(key.blob, comment)).toBe(line.trim());
    expect(parseKeyLine(line).blob).toEqual(key.blob);
    const shown = execFileSync("ssh-keygen", ["-lf", `${file}.pub`], { encoding: "utf8" });
    expect(shown).toContain(` ${fingerprint(key.blob)} `);
  });

  test("signatures made here are good to `ssh-keygen -Y verify`, for every key type", async () => {
    for (const key of Object.values(pairs)) {
      const signer = signerOf(key);
      // OpenSSH's PROTOCOL.sshsig.
      const body = (hash: Buffer): Writer => new Writer().string("file").string("").string("sha512").string(hash);
      const hash = createHash("sha512").update(data).digest();
      const signature = signer.sign(Buffer.concat([Buffer.from("SSHSIG"), body(hash).done()]));
      const blob = new Writer().raw(Buffer.from("SSHSIG")).uint32(1).string(signer.blob);
      blob.string("file").string("").string("sha512").string(signature);
      const base64 = blob.done().toString("base64").replaceAll(/.{70}/g, "$&\n");
      await writeFile(join(dir, "sig"), `-----BEGIN SSH SIGNATURE-----\n${base64}\n-----END SSH SIGNATURE-----\n`);
      await writeFile(join(dir, "signers"), `ann ${publicKeyLine(signer.blob)}\n`);
      const args = ["-Y", "verify", "-f", join(dir, "signers"), "-I", "ann", "-n", "file", "-s", join(dir, "sig")];
      expect(execFileSync("ssh-keygen", args, { input: data, encoding: "utf8" })).toContain("Good");
    }
  });

  test("a private key file of its own, in PEM, signs here", async () => {
    const file = join(dir, "pem");
    execFileSync("ssh-keygen", ["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", file]);
    const signer = signerOf(createPrivateKey(await readFile(file)));
    expect(publicKeyLine(signer.blob)).toBe((await readFile(`${file}.pub`, "utf8")).split(" ", 2).join(" "));
  });
});
