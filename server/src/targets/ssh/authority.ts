import { generateKeyPairSync, randomBytes, createPrivateKey } from "node:crypto";
import { GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { DriverTools } from "../target.ts";
import { issueCertificate } from "./certificate.ts";
import { BACKDATE_MS, CERTIFICATE_MS } from "./config.ts";
import { seedOf } from "./entry.ts";
import { certifiedSigner, publicKeyLine, signerFromSeed, signerOf } from "./keys.ts";
import type { Signer } from "./types.ts";

/** What a certificate for a target says; the rest is the same in all. */
export interface Pass {
  readonly keyId: string;
  readonly principal: string;
  /** Addresses and networks that it may be used from; never empty. */
  readonly from: readonly string[];
  readonly extensions: readonly string[];
  readonly validAfter: Date;
  readonly validBefore: Date;
}

/** The installation's authority for targets: hosts trust its public key by TrustedUserCAKeys. Control plane only. */
export function targetAuthority(tools: Pick<DriverTools, "derive">): Signer {
  return signerFromSeed(seedOf(tools.derive("ca")));
}

/** The line for TrustedUserCAKeys. Public. */
export function authorityLine(tools: Pick<DriverTools, "derive" | "install">): string {
  return publicKeyLine(targetAuthority(tools).blob, `glasskey-${tools.install}`);
}

/** A fresh key with a certificate: lives in memory, for one session. PKCS#8 and the certificate's blob, both base64. */
export function issuePass(pass: Pass, authority: Signer): { key: string; certificate: string } {
  if (pass.from.length === 0) throw new GlassError("internal", "a certificate must say where it may be used from");
  const { privateKey } = generateKeyPairSync("ed25519");
  const certificate = issueCertificate(
    {
      ...{ key: signerOf(privateKey).blob, type: "user", serial: randomBytes(8).readBigUInt64BE() },
      ...{ keyId: pass.keyId, principals: [pass.principal] },
      ...{ validAfter: pass.validAfter, validBefore: pass.validBefore },
      criticalOptions: { "source-address": pass.from.join(",") },
      extensions: Object.fromEntries(pass.extensions.map((name) => [name, ""])),
    },
    authority,
  );
  const key = privateKey.export({ format: "der", type: "pkcs8" }).toString("base64");
  return { key, certificate: certificate.toString("base64") };
}

/** Validity around an instant, at most to `endsAt`. */
export function validity(at: Date, endsAt?: Date): { validAfter: Date; validBefore: Date } {
  const latest = at.getTime() + CERTIFICATE_MS;
  return {
    validAfter: new Date(at.getTime() - BACKDATE_MS),
    validBefore: new Date(Math.min(latest, endsAt?.getTime() ?? latest)),
  };
}

/** What the data plane logs in with, from {@link OpenSession.credential}. @throws GlassError `internal` when it is none */
export function credentialSigner(credential: JsonObject): Signer {
  const { key, certificate } = credential;
  if (typeof key !== "string" || typeof certificate !== "string") {
    throw new GlassError("internal", "this session has no SSH credential");
  }
  const privateKey = createPrivateKey({ key: Buffer.from(key, "base64"), format: "der", type: "pkcs8" });
  return certifiedSigner(signerOf(privateKey), Buffer.from(certificate, "base64"));
}
