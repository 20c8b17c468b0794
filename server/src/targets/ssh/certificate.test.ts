import { execFileSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  issueCertificate,
  parseCertificate,
  verifyCertificate,
  type CertificateFields,
  type Wanted,
} from "./certificate.ts";
import { parseKeyLine, parsePublicKeyLine, publicKeyLine, signerFromSeed, signerOf } from "./keys.ts";
import { missingSshd } from "./fixtures/sshd.ts";
import type { Signer } from "./types.ts";
import { Writer } from "./wire.ts";

const AT = new Date("2026-03-01T12:00:00Z");
const subject = signerFromSeed(Buffer.alloc(32, 1));
const authority = signerFromSeed(Buffer.alloc(32, 2));
const FIELDS: CertificateFields = {
  ...{ key: subject.blob, type: "user", serial: 0x0102030405060708n, keyId: "gk_ab12cd_7kq2m9x4tbzc" },
  ...{
    principals: ["deploy"],
    validAfter: new Date(AT.getTime() - 60_000),
    validBefore: new Date(AT.getTime() + 60_000),
  },
  criticalOptions: { "source-address": "10.0.0.7,2001:db8::7" },
  extensions: { "permit-pty": "", "permit-X11-forwarding": "" },
  nonce: Buffer.alloc(32, 3),
};
const WANTED: Wanted = {
  ...{ type: "user", authorities: [authority.blob], principal: "deploy", now: AT, understood: ["source-address"] },
};

function verify(change: Partial<CertificateFields>, wanted: Partial<Wanted> = {}, by: Signer = authority): void {
  verifyCertificate(parseCertificate(issueCertificate({ ...FIELDS, ...change }, by)), { ...WANTED, ...wanted });
}

let dir = "";
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "glasskey-certificate-"));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function keygen(...args: string[]): string {
  return execFileSync("ssh-keygen", args, { encoding: "utf8", cwd: dir, env: { ...process.env, TZ: "UTC" } });
}

/** By hand, for what the encoder refuses to make. */
function crooked(change: {
  type?: number;
  format?: string;
  principals?: Buffer;
  critical?: Buffer;
  extensions?: Buffer;
  reserved?: string;
  nonce?: Buffer;
  authority?: Uint8Array;
  signature?: (signed: Buffer) => Uint8Array;
  after?: Buffer;
}): Buffer {
  const signed = new Writer()
    .string(change.format ?? "ssh-ed25519-cert-v01@openssh.com")
    .string(change.nonce ?? Buffer.alloc(32))
    .raw(subject.blob.subarray(15))
    .uint64(1n)
    .uint32(change.type ?? 1)
    .string("id")
    .string(change.principals ?? new Writer().string("deploy").done())
    .uint64(0n)
    .uint64(0xffffffffffffffffn)
    .string(change.critical ?? "")
    .string(change.extensions ?? "")
    .string(change.reserved ?? "")
    .string(change.authority ?? authority.blob)
    .done();
  const signature = change.signature?.(signed) ?? authority.sign(signed);
  return new Writer()
    .raw(signed)
    .string(signature)
    .raw(change.after ?? Buffer.alloc(0))
    .done();
}

const judge = (blob: Buffer, wanted: Partial<Wanted> = {}): void =>
  verifyCertificate(parseCertificate(blob), { ...WANTED, ...wanted });

test(
  "a certificate says what was asked for, and ssh-keygen reads the same",
  { skip: missingSshd() !== undefined },
  () => {
    const blob = issueCertificate(FIELDS, authority);
    expect(parseCertificate(blob)).toMatchObject({
      ...{ serial: 0x0102030405060708n, type: "user", keyId: "gk_ab12cd_7kq2m9x4tbzc", principals: ["deploy"] },
      criticalOptions: new Map([["source-address", "10.0.0.7,2001:db8::7"]]),
      extensions: new Map([
        ["permit-X11-forwarding", ""],
        ["permit-pty", ""],
      ]),
    });
    writeFileSync(join(dir, "golden-cert.pub"), `${publicKeyLine(blob, "golden")}\n`);
    const golden = [
      "golden-cert.pub:",
      "        Type: ssh-ed25519-cert-v01@openssh.com user certificate",
      "        Public key: ED25519-CERT SHA256:fe85JkIjo8VPe+XqXJGH5Mau1EMFdK1OdKvJUFicyA8",
      "        Signing CA: ED25519 SHA256:4A9jyZBOhnKZvcGQ6TRFbf5Gymb41AfYvYaVmWHD+G4 (using ssh-ed25519)",
      '        Key ID: "gk_ab12cd_7kq2m9x4tbzc"',
      "        Serial: 72623859790382856",
      "        Valid: from 2026-03-01T11:59:00 to 2026-03-01T12:01:00",
      "        Principals: ",
      "                deploy",
      "        Critical Options: ",
      "                source-address 10.0.0.7,2001:db8::7",
      "        Extensions: ",
      "                permit-X11-forwarding",
      "                permit-pty",
    ];
    expect(keygen("-L", "-f", "golden-cert.pub").trimEnd().split("\n")).toEqual(golden);
    // Ed25519 and a fixed nonce: the bytes themselves are golden.
    expect(parseKeyLine(readFileSync(join(dir, "golden-cert.pub"), "utf8")).blob).toEqual(
      issueCertificate(FIELDS, authority),
    );
  },
);

describe("certificates by ssh-keygen, of every key type and authority", { skip: missingSshd() !== undefined }, () => {
  const types = [
    ["ed25519", []],
    ["ecdsa", ["-b", "256"]],
    ["ecdsa", ["-b", "384"]],
    ["ecdsa", ["-b", "521"]],
    ["rsa", ["-b", "2048"]],
  ] as const;
  beforeAll(() => {
    for (const [type, bits] of types) keygen("-q", "-t", type, ...bits, "-N", "", "-f", `k${type}${bits[1] ?? ""}`);
  });

  test.for(types.map(([type, bits]) => `k${type}${bits[1] ?? ""}`))("%s", (name) => {
    for (const by of types.map(([type, bits]) => `k${type}${bits[1] ?? ""}`)) {
      keygen(
        "-q",
        "-s",
        by,
        "-I",
        "id of it",
        "-n",
        "deploy,root",
        "-V",
        "-1m:+1h",
        "-O",
        "no-pty",
        "-z",
        "77",
        `${name}.pub`,
      );
      const certificate = parseCertificate(parseKeyLine(readFileSync(join(dir, `${name}-cert.pub`), "utf8")).blob);
      const trusted = parsePublicKeyLine(readFileSync(join(dir, `${by}.pub`), "utf8")).key.blob;
      verifyCertificate(certificate, { ...WANTED, authorities: [trusted], now: new Date() });
      expect(certificate).toMatchObject({ keyId: "id of it", serial: 77n, principals: ["deploy", "root"] });
      expect(certificate.key.blob).toEqual(parsePublicKeyLine(readFileSync(join(dir, `${name}.pub`), "utf8")).key.blob);
      // One that we make for the same key is read by ssh-keygen too.
      const ours = issueCertificate({ ...FIELDS, key: certificate.key.blob }, authority);
      writeFileSync(join(dir, "ours-cert.pub"), publicKeyLine(ours));
      expect(keygen("-L", "-f", "ours-cert.pub")).toContain('Key ID: "gk_ab12cd_7kq2m9x4tbzc"');
    }
  });

  test("an authority's RSA signature with SHA-1 is refused", () => {
    keygen("-q", "-t", "ssh-rsa", "-s", "krsa2048", "-I", "old", "-n", "deploy", "ked25519.pub");
    const certificate = parseCertificate(parseKeyLine(readFileSync(join(dir, "ked25519-cert.pub"), "utf8")).blob);
    const trusted = parsePublicKeyLine(readFileSync(join(dir, "krsa2048.pub"), "utf8")).key.blob;
    expect(() => verifyCertificate(certificate, { ...WANTED, authorities: [trusted], now: new Date() })).toThrow(
      "signature is wrong",
    );
  });
});

describe("lesson 21: what must not be let in is not", () => {
  test("the one that is right", () => {
    expect(() => verify({})).not.toThrow();
    expect(() => judge(crooked({}))).not.toThrow();
  });

  test("an empty list of principals, which sshd takes for everybody", () => {
    expect(() => issueCertificate({ ...FIELDS, principals: [] }, authority)).toThrow("without principals");
    expect(() => issueCertificate({ ...FIELDS, principals: [""] }, authority)).toThrow("empty principal");
    expect(() => judge(crooked({ principals: Buffer.alloc(0) }))).toThrow("names nobody");
    expect(() => judge(crooked({ principals: new Writer().string("").done() }))).toThrow("empty principal");
    expect(() => judge(crooked({}), { principal: "" })).toThrow("another name");
  });

  test("another principal, also one that only begins or ends alike", () => {
    for (const principals of [["deploy2"], ["Deploy"], ["deploy "], ["xdeploy"], ["deploy\u00ad"], ["*"]]) {
      expect(() => verify({ principals }), principals[0]).toThrow("another name");
    }
    expect(() => parseCertificate(crooked({ principals: new Writer().string("deploy\0").done() }))).toThrow("NUL");
  });

  test("a host certificate for a user, and the other way about", () => {
    expect(() => verify({ type: "host" })).toThrow("a host certificate where a user certificate is wanted");
    expect(() => verify({}, { type: "host" })).toThrow("a user certificate where");
    for (const type of [0, 3, 0xffffffff]) expect(() => judge(crooked({ type }))).toThrow("for nothing known");
  });

  test("expired, and not valid yet, to the second; milliseconds are not taken for seconds", () => {
    const end = FIELDS.validBefore.getTime();
    verify({}, { now: new Date(end - 1) });
    expect(() => verify({}, { now: new Date(end) })).toThrow("expired");
    verify({}, { now: FIELDS.validAfter });
    expect(() => verify({}, { now: new Date(FIELDS.validAfter.getTime() - 1) })).toThrow("not valid yet");
    expect(parseCertificate(issueCertificate(FIELDS, authority)).validBefore).toBe(BigInt(end / 1000));
    expect(() => issueCertificate({ ...FIELDS, validBefore: FIELDS.validAfter }, authority)).toThrow("never valid");
    expect(() => issueCertificate({ ...FIELDS, validAfter: new Date(Number.NaN) }, authority)).toThrow(
      "a time that is none",
    );
  });

  test("an authority that is not trusted, and an empty list of authorities", () => {
    expect(() => verify({}, { authorities: [] })).toThrow("not signed by an authority that is trusted");
    expect(() => verify({}, {}, signerFromSeed(Buffer.alloc(32, 9)))).toThrow("not signed by an authority");
    // Signed by a stranger who names the right authority.
    expect(() => judge(crooked({ signature: (signed) => signerFromSeed(Buffer.alloc(32, 9)).sign(signed) }))).toThrow(
      "signature is wrong",
    );
  });

  test("a nested certificate: as the authority, and as the key", () => {
    const nested = issueCertificate(FIELDS, authority);
    expect(() => parseCertificate(crooked({ authority: nested }))).toThrow(/./);
    expect(() => issueCertificate({ ...FIELDS, key: nested }, authority)).toThrow(/./);
  });

  test("a critical option that nobody here enforces", () => {
    for (const name of ["force-command", "verify-required", "x@example.com"]) {
      expect(() => verify({ criticalOptions: { [name]: "x" } }), name).toThrow("critical option");
    }
    expect(() => verify({}, { understood: [] })).toThrow("critical option");
    verify({ extensions: { "unknown@example.com": "value" } }); // an extension may be ignored
  });

  test("options named twice, unsorted, or cut short", () => {
    const twice = new Writer().string("a").string("").string("a").string("").done();
    const unsorted = new Writer().string("b").string("").string("a").string("").done();
    for (const extensions of [twice, unsorted, unsorted.subarray(0, -1), Buffer.from([0, 0, 0, 1])]) {
      expect(() => parseCertificate(crooked({ extensions }))).toThrow(/./);
      expect(() => parseCertificate(crooked({ critical: extensions }))).toThrow(/./);
    }
    const trailing = new Writer().string("a").string(new Writer().string("x").string("y").done()).done();
    expect(() => parseCertificate(crooked({ critical: trailing }))).toThrow("too many");
  });

  test("10,000 principals, 10,000 options, and megabytes of anything", () => {
    const many = (count: number, each: (writer: Writer, n: number) => void): Buffer => {
      const writer = new Writer();
      for (let n = 0; n < count; n += 1) each(writer, n);
      return writer.done();
    };
    const principals = many(10_000, (writer, n) => writer.string(n === 9_999 ? "deploy" : `u${n}`));
    expect(() => parseCertificate(crooked({ principals }))).toThrow(/principals|too long/);
    expect(() => parseCertificate(crooked({ principals: many(257, (writer) => writer.string("x")) }))).toThrow(
      "more than 256 principals",
    );
    const extensions = many(65, (writer, n) => writer.string(`a${String(n).padStart(3, "0")}`).string(""));
    expect(() => parseCertificate(crooked({ extensions }))).toThrow("more than 64 options");
    expect(() => parseCertificate(crooked({ after: Buffer.alloc(1 << 20) }))).toThrow("too long");
    expect(() =>
      issueCertificate({ ...FIELDS, principals: Array.from({ length: 257 }, (_, n) => `u${n}`) }, authority),
    ).toThrow("256");
  });

  test("trailing bytes, a reserved field in use, a short nonce, an algorithm that does not fit", () => {
    expect(() => parseCertificate(crooked({ after: Buffer.alloc(1) }))).toThrow("too many");
    expect(() => parseCertificate(crooked({ reserved: "x" }))).toThrow("reserved");
    expect(() => parseCertificate(crooked({ nonce: Buffer.alloc(8) }))).toThrow("nonce");
    for (const format of [
      "ssh-ed25519",
      "ssh-rsa-cert-v01@openssh.com",
      "ssh-dss-cert-v01@openssh.com",
      "ssh-ed25519-cert-v00@openssh.com",
    ]) {
      expect(() => parseCertificate(crooked({ format })), format).toThrow(/./);
    }
    const rsa = signerOf(generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey);
    expect(() => judge(crooked({ signature: (signed) => rsa.sign(signed) }))).toThrow("signature is wrong");
    const renamed = (signed: Buffer): Buffer =>
      new Writer().string("ssh-rsa").string(rsa.sign(signed).subarray(20)).done();
    expect(() => judge(crooked({ authority: rsa.blob, signature: renamed }), { authorities: [rsa.blob] })).toThrow(
      "signature is wrong",
    );
  });

  test("any single bit changed anywhere", () => {
    const genuine = issueCertificate(FIELDS, authority);
    fc.assert(
      fc.property(fc.nat(genuine.length * 8 - 1), (bit) => {
        const changed = Buffer.from(genuine);
        changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        expect(() => judge(changed)).toThrow(/./);
      }),
      { numRuns: 300 },
    );
  });

  test("a certificate cut off anywhere", () => {
    const genuine = issueCertificate(FIELDS, authority);
    for (let length = 0; length < genuine.length; length += 1) {
      expect(() => parseCertificate(genuine.subarray(0, length))).toThrow(/./);
    }
  });
});
