import { createHmac, hkdfSync } from "node:crypto";
import { isIP } from "node:net";
import { GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { Secret } from "../../core/secret.ts";
import type { ClientCertificate, ClientCertificateRequest, GatewayIdentity, IdentityRequest } from "../target.ts";
import { issueCertificate, parseCertificate, verifyCertificate } from "./certificate.ts";
import { certifiedSigner, parsePublicKeyLine, publicKeyLine, signerFromSeed } from "./keys.ts";
import { SshError, type Signer } from "./types.ts";

const DAY_MS = 86_400_000;
const HOST_CERTIFICATE_MS = 365 * DAY_MS;
const RENEW_MS = 180 * DAY_MS;
/** A client's clock or ours may be behind. */
const BACKDATE_MS = 5 * 60_000;

/**
 * The authority of one grant: an Ed25519 key whose seed is HKDF-SHA256 (RFC 5869) of the connect secret. Who knows the
 * secret could sign in anyway, so nothing is gained by the key; and no key exists that opens more than one grant.
 */
export function grantAuthority(connectSecret: Secret): Signer {
  const seed = hkdfSync("sha256", connectSecret.reveal(), new Uint8Array(0), "glasskey ssh user ca", 32);
  return signerFromSeed(new Uint8Array(seed));
}

/**
 * Whether a certificate lets its key in as this grant. Whether the client *has* the key is the signature's to show.
 * Takes the same steps for a grant that does not exist, whose secret is a decoy.
 * @param blob untrusted
 * @throws SshError that says why not; not for the client's eyes
 */
export function checkUserCertificate(grant: string, blob: Uint8Array, connectSecret: Secret, now: Date): void {
  const certificate = parseCertificate(blob);
  const authorities = [grantAuthority(connectSecret).blob];
  verifyCertificate(certificate, { type: "user", authorities, principal: grant, now });
  if (certificate.principals.length !== 1 || certificate.keyId !== grant) {
    throw new SshError(2, "the certificate is not one of this grant's");
  }
}

/** A certificate for the client's own key, for one grant, until its end. */
export function clientCertificate(request: ClientCertificateRequest): ClientCertificate {
  const { grant, now, endsAt } = request;
  const key = readClientKey(request.publicKey);
  if (endsAt <= now) throw new GlassError("grant_over", "the grant has ended", { next: "Break the glass again." });
  const blob = issueCertificate(
    {
      ...{ key, type: "user", serial: 0n, keyId: grant, principals: [grant] },
      ...{ validAfter: new Date(now.getTime() - BACKDATE_MS), validBefore: endsAt },
    },
    grantAuthority(request.connectSecret),
  );
  return { certificate: publicKeyLine(blob, grant), validUntil: new Date(Math.floor(endsAt.getTime() / 1000) * 1000) };
}

function readClientKey(line: string): Buffer {
  try {
    return parsePublicKeyLine(line.trim()).key.blob;
  } catch (error) {
    if (!(error instanceof SshError)) throw error;
    throw new GlassError("usage", `the public key cannot be used: ${error.message}`, {
      next: "Give the one line of a .pub file: ssh-ed25519, ecdsa-sha2-nistp256, ssh-rsa with 2048 bits or more, or a security key.",
      cause: error,
    });
  }
}

/**
 * The gateway's host key, and a certificate for it from the installation's host authority. Both keys come from the keyring,
 * so every gateway of the installation is the same host, and a client needs one line of known_hosts for all of them.
 * @throws GlassError `config_invalid` without hosts: a certificate without principals would be valid for every host
 */
export function identity(request: IdentityRequest): GatewayIdentity {
  const hosts = [...new Set(request.hosts.map((host) => host.toLowerCase()))];
  if (hosts.length === 0 || !hosts.every(isHost)) {
    throw new GlassError("config_invalid", "the SSH gateway needs the names or addresses that people reach it by", {
      next: "Write them without port, spaces or wildcards.",
    });
  }
  const seed = seedOf(request.derive("host key"));
  const [host, authority] = [signerFromSeed(seed), signerFromSeed(seedOf(request.derive("host ca")))];
  const day = Math.floor(request.now.getTime() / DAY_MS) * DAY_MS; // so that a restart does not make a new one
  const validAfter = new Date(day - DAY_MS);
  const validBefore = new Date(day + HOST_CERTIFICATE_MS);
  const said = JSON.stringify([hosts, validAfter.getTime(), validBefore.getTime()]);
  const certificate = issueCertificate(
    {
      ...{
        key: host.blob,
        type: "host",
        serial: 0n,
        keyId: "glasskey gateway",
        principals: hosts,
        validAfter,
        validBefore,
      },
      nonce: createHmac("sha256", seed).update(`nonce ${said}`).digest(),
    },
    authority,
  );
  const names = hosts.map((name) => knownHost(name, request.port)).join(",");
  return {
    listener: { key: Buffer.from(seed).toString("base64"), certificate: certificate.toString("base64") },
    trust: `@cert-authority ${names} ${publicKeyLine(authority.blob)}`,
    renewAt: new Date(day + RENEW_MS),
  };
}

/**
 * The keys that a listener shows, from {@link GatewayIdentity.listener}: the certificate, then the plain key for clients that
 * know no certificates. @throws GlassError `internal` when it is none of ours
 */
export function gatewayKeys(listener: JsonObject): readonly Signer[] {
  const { key, certificate } = listener;
  if (typeof key !== "string" || typeof certificate !== "string") {
    throw new GlassError("internal", "the SSH listener was started without its identity");
  }
  const plain = signerFromSeed(Buffer.from(key, "base64"));
  return [certifiedSigner(plain, Buffer.from(certificate, "base64")), plain];
}

/** The 32 bytes of a derived secret. */
export function seedOf(secret: Secret): Buffer {
  const seed = Buffer.from(secret.reveal(), "base64url");
  if (seed.length !== 32) throw new GlassError("internal", "a derived secret must be 32 bytes");
  return seed;
}

/** As known_hosts has it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). */
function knownHost(name: string, port: number): string {
  return port === 22 ? name : `[${name}]:${port}`;
}

function isHost(text: string): boolean {
  return isIP(text) !== 0 ? !text.includes("%") : /^[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?$/.test(text);
}
