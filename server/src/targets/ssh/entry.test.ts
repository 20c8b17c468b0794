import { generateKeyPairSync } from "node:crypto";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { newId } from "../../core/ids.ts";
import { Secret } from "../../core/secret.ts";
import { secretsFrom } from "../conformance-child.ts";
import { issueCertificate, parseCertificate, verifyCertificate } from "./certificate.ts";
import { checkUserCertificate, clientCertificate, gatewayKeys, grantAuthority, identity } from "./entry.ts";
import { missingSshd } from "./fixtures/sshd.ts";
import { parseKeyLine, publicKeyLine, publicKeyOf, signerFromSeed } from "./keys.ts";

const NOW = new Date("2026-03-01T12:00:00Z");
const ENDS = new Date("2026-03-01T12:30:00.700Z");
const grant = newId("grant");
const connectSecret = new Secret(Buffer.alloc(32, 1).toString("base64url"));
const client = signerFromSeed(Buffer.alloc(32, 2));
const request = { connectSecret, grant, publicKey: `${publicKeyLine(client.blob)} ann@laptop`, now: NOW, endsAt: ENDS };

const check = (line: string, change: { grant?: string; secret?: Secret; now?: Date } = {}): void =>
  checkUserCertificate(
    change.grant ?? grant,
    parseKeyLine(line).blob,
    change.secret ?? connectSecret,
    change.now ?? NOW,
  );

describe("into the gateway", () => {
  test("a certificate for the client's own key opens its grant, until the grant's end, and nothing else", () => {
    const { certificate, validUntil } = clientCertificate(request);
    check(certificate);
    expect(parseCertificate(parseKeyLine(certificate).blob)).toMatchObject({
      principals: [grant],
      keyId: grant,
      key: { blob: client.blob },
    });
    expect(validUntil).toEqual(new Date("2026-03-01T12:30:00Z"));
    check(certificate, { now: new Date("2026-03-01T12:29:59.999Z") });
    expect(() => check(certificate, { now: validUntil })).toThrow("expired");
    expect(() => check(certificate, { grant: newId("grant") })).toThrow("another name");
  });

  test("no authority opens more than one grant: another connect secret is another one, and a decoy too", () => {
    const { certificate } = clientCertificate(request);
    const decoy = new Secret(Buffer.alloc(32, 9).toString("base64url"));
    expect(() => check(certificate, { secret: decoy })).toThrow("not signed by an authority that is trusted");
    expect(grantAuthority(connectSecret).blob).toEqual(grantAuthority(new Secret(connectSecret.reveal())).blob);
    expect(grantAuthority(decoy).blob).not.toEqual(grantAuthority(connectSecret).blob);
  });

  test("what the grant's authority signed for more than this grant is refused", () => {
    const fields = { key: client.blob, type: "user", serial: 0n, validAfter: NOW, validBefore: ENDS } as const;
    const by = grantAuthority(connectSecret);
    const line = (change: object): string =>
      publicKeyLine(issueCertificate({ ...fields, keyId: grant, principals: [grant], ...change }, by));
    check(line({}));
    expect(() => check(line({ principals: [grant, "root"] }))).toThrow("not one of this grant's");
    expect(() => check(line({ keyId: "other" }))).toThrow("not one of this grant's");
    expect(() => check(line({ type: "host" }))).toThrow("host certificate");
    expect(() => check(line({ criticalOptions: { "force-command": "id" } }))).toThrow("critical option");
    expect(() => check(publicKeyLine(client.blob))).toThrow("no certificate");
  });

  test("a public key that is none, or weak, is refused with words for the person", () => {
    const weak = generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.export({ format: "jwk" });
    const field = (text = ""): Buffer => {
      const bytes = Buffer.from(text, "base64url");
      const number = Buffer.concat([Buffer.from([0]).subarray(0, (bytes[0] ?? 0) >= 0x80 ? 1 : 0), bytes]);
      return Buffer.concat([Buffer.from([0, 0, number.length >> 8, number.length & 255]), number]);
    };
    const rsa = Buffer.concat([Buffer.from([0, 0, 0, 7]), Buffer.from("ssh-rsa"), field(weak.e), field(weak.n)]);
    const lines = [
      "",
      "ssh-ed25519",
      "ssh-ed25519 AAAA",
      "x".repeat(1 << 20),
      `ssh-rsa ${rsa.toString("base64")}`,
      `${publicKeyLine(client.blob)}\nssh-ed25519 AAAA`,
      clientCertificate(request).certificate,
    ];
    for (const publicKey of lines) {
      expect(() => clientCertificate({ ...request, publicKey }), publicKey.slice(0, 60)).toThrow(
        expect.objectContaining({ code: "usage", next: expect.stringContaining(".pub file") }),
      );
    }
    expect(() => clientCertificate({ ...request, now: ENDS })).toThrow(expect.objectContaining({ code: "grant_over" }));
  });

  test("keys of every type that clients have can be certified", () => {
    const pairs = [
      generateKeyPairSync("rsa", { modulusLength: 2048 }),
      ...["P-256", "P-384", "P-521"].map((namedCurve) => generateKeyPairSync("ec", { namedCurve })),
    ];
    for (const { privateKey } of pairs) {
      const { certificate } = clientCertificate({ ...request, publicKey: publicKeyLine(publicKeyOf(privateKey).blob) });
      expect(() => check(certificate)).not.toThrow();
    }
  });
});

describe("the gateway's own identity", () => {
  const { derive } = secretsFrom("identity");
  const asked = { derive, hosts: ["gate.example.com", "10.0.0.5", "2001:db8::5"], port: 7422, now: NOW };

  test("one line for known_hosts, for every name, and the same host whoever derives it", () => {
    const { listener, trust, renewAt } = identity(asked);
    expect(trust).toMatch(
      /^@cert-authority \[gate\.example\.com\]:7422,\[10\.0\.0\.5\]:7422,\[2001:db8::5\]:7422 ssh-ed25519 [A-Za-z0-9+/]+={0,2}$/,
    );
    expect(identity({ ...asked, port: 22 }).trust).toContain(
      "@cert-authority gate.example.com,10.0.0.5,2001:db8::5 ssh-ed25519",
    );
    expect(identity(asked)).toEqual({ listener, trust, renewAt });
    const later = identity({ ...asked, now: renewAt });
    expect(later.trust).toBe(trust);
    expect(later.listener["key"]).toBe(listener["key"]);
    expect(later.listener["certificate"]).not.toBe(listener["certificate"]);
  });

  test("the host certificate is for those names, for a year, and renewed in half of one", () => {
    const { listener, trust, renewAt } = identity(asked);
    const [certified, plain] = gatewayKeys(listener);
    const certificate = parseCertificate(certified?.blob ?? new Uint8Array());
    const authorities = [parseKeyLine(trust.split(" ").slice(2).join(" ")).blob];
    for (const principal of asked.hosts)
      verifyCertificate(certificate, { type: "host", authorities, principal, now: NOW });
    const verifyAt = (days: number): void =>
      verifyCertificate(certificate, {
        type: "host",
        authorities,
        principal: "10.0.0.5",
        now: new Date(NOW.getTime() + days * 86_400_000),
      });
    verifyAt(364);
    expect(() => verifyAt(366)).toThrow("expired");
    expect(renewAt.getTime()).toBeLessThan(NOW.getTime() + 181 * 86_400_000);
    expect(certified?.algorithm).toBe("ssh-ed25519-cert-v01@openssh.com");
    expect(plain?.blob).toEqual(certificate.key.blob);
  });

  test("without names there is none: a host certificate without principals is valid for every host", () => {
    for (const hosts of [[], [""], ["*"], ["a b"], ["a,b"], ["[x]:22"], ["fe80::1%eth0"]]) {
      expect(() => identity({ ...asked, hosts }), hosts.join()).toThrow(
        expect.objectContaining({ code: "config_invalid" }),
      );
    }
  });

  test("ssh-keygen finds the gateway in known_hosts by that line", { skip: missingSshd() !== undefined }, () => {
    const dir = mkdtempSync(join(tmpdir(), "glasskey-known-"));
    try {
      writeFileSync(join(dir, "known_hosts"), `${identity(asked).trust}\n`);
      for (const host of asked.hosts) {
        const found = execFileSync("ssh-keygen", ["-F", `[${host}]:7422`, "-f", join(dir, "known_hosts")], {
          encoding: "utf8",
        });
        expect(found, host).toContain("CA");
      }
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});
