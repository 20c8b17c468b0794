import { createPrivateKey, randomBytes, X509Certificate } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createSigner, type NoteSigner } from "@glasskey/verify";
import { createAuthority, issueServerCertificate, type Identity } from "./core/certificates.ts";
import { GlassError } from "./core/errors.ts";
import { randomBase32 } from "./core/ids.ts";
import type { ServerConfig } from "./config.ts";
import { resolveSecret } from "./config.ts";
import type { Store } from "./store/database.ts";
import type { Keyring } from "./store/keyring.ts";

const CA_DAYS = 3650;
const CERTIFICATE_DAYS = 397; // what clients accept at most; renewed at a start within the last month
const RENEW_BEFORE_MS = 30 * 86_400_000;

/** The folder that holds what only this process may read. */
export async function makePrivateDir(dir: string): Promise<void> {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await chmod(dir, 0o700);
}

/**
 * The data folder. As root, others may pass through it, and no more: the embedded PostgreSQL runs as another user and has
 * its folder inside. Everything else in it is closed by its own mode.
 */
export async function makeDataDir(dir: string): Promise<void> {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await chmod(dir, process.getuid?.() === 0 ? 0o711 : 0o700);
}

/** The 32-byte root key: from the configured reference, else from `root.key` in the data folder, made when there is none. */
export async function rootKey(config: ServerConfig): Promise<Buffer> {
  const file = join(config.dataDir, "root.key");
  if (config.rootKey === undefined && !existsSync(file))
    await writeOnce(file, `${randomBytes(32).toString("base64")}\n`);
  const text = resolveSecret(config.rootKey ?? `\${file:${file}}`).reveal();
  const key = Buffer.from(text, "base64");
  if (key.length !== 32 || key.toString("base64") !== text) {
    throw new GlassError("config_invalid", "the root key is not 32 bytes of base64", {
      next: "Make one with: head -c 32 /dev/urandom | base64",
    });
  }
  return key;
}

/** A name for this process that stays the same over restarts on this data folder. */
export async function nodeId(dataDir: string): Promise<string> {
  const file = join(dataDir, "node");
  if (!existsSync(file)) await writeOnce(file, `nd_${randomBase32(8)}\n`);
  return (await readFile(file, "utf8")).trim();
}

/** This installation's id, made with its store. */
export async function installationId(store: Store): Promise<string> {
  await store
    .insertInto("installation")
    .values({ install: randomBase32(6) })
    .onConflict((c) => c.doNothing())
    .execute();
  return (await store.selectFrom("installation").select("install").executeTakeFirstOrThrow()).install;
}

/**
 * The log's signing key of that generation: Ed25519, its seed derived from the keyring, so that every process of an
 * installation has it.
 */
export function logSigner(keyring: Keyring, origin: string, generation = 1): NoteSigner {
  const pkcs8 = Buffer.concat([
    Buffer.from("302e020100300506032b657004220420", "hex"),
    keyring.derive("log", `ed25519 ${generation}`),
  ]); // RFC 8410
  return createSigner(origin, createPrivateKey({ key: pkcs8, format: "der", type: "pkcs8" }));
}

export interface ServerTls extends Identity {
  /** PEM of the CA that clients must trust. */
  ca: string;
}

/**
 * The certificate that gateway and API show: the configured one, else one from Glasskey's own CA in `DATA/tls`, made at the
 * first start and renewed when its names change or its end comes near.
 */
export async function serverTls(config: ServerConfig): Promise<ServerTls> {
  if (config.tls !== undefined) {
    const [cert, key, ca] = await Promise.all(
      [config.tls.cert, config.tls.key, config.tls.ca].map((file) => readFile(file, "utf8")),
    );
    return { cert: cert ?? "", key: key ?? "", ca: ca ?? "" };
  }
  const dir = join(config.dataDir, "tls");
  await makePrivateDir(dir);
  const file = (name: string): string => join(dir, name);
  if (!existsSync(file("ca.pem"))) {
    const authority = await createAuthority("Glasskey CA", CA_DAYS);
    await writeOnce(file("ca.key"), authority.key);
    await writeOnce(file("ca.pem"), authority.cert);
  }
  const authority = { cert: await readFile(file("ca.pem"), "utf8"), key: await readFile(file("ca.key"), "utf8") };
  if (!existsSync(file("server.pem")) || !fits(await readFile(file("server.pem"), "utf8"), config.hosts)) {
    const identity = await issueServerCertificate(authority, config.hosts, CERTIFICATE_DAYS);
    await writeOnce(file("server.key"), identity.key);
    await writeOnce(file("server.pem"), identity.cert);
  }
  return {
    cert: await readFile(file("server.pem"), "utf8"),
    key: await readFile(file("server.key"), "utf8"),
    ca: authority.cert,
  };
}

function fits(pem: string, hosts: readonly string[]): boolean {
  const certificate = new X509Certificate(pem);
  const named = hosts.every(
    (host) => certificate.checkHost(host) !== undefined || certificate.checkIP(host) !== undefined,
  );
  return named && new Date(certificate.validTo).getTime() - Date.now() > RENEW_BEFORE_MS;
}

/** Writes beside and renames: a crash leaves the old file or the new one. */
async function writeOnce(path: string, text: string): Promise<void> {
  await writeFile(`${path}.new`, text, { mode: 0o600, flush: true });
  await rename(`${path}.new`, path);
}
