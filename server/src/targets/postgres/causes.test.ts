import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TLSSocket } from "node:tls";
import { afterAll, beforeAll, expect, test } from "vitest";
import { resolveSecret } from "../../config.ts";
import { createAuthority, issueServerCertificate, type Identity } from "../../core/certificates.ts";
import type { Check } from "../target.ts";
import { targetError } from "./admin.ts";
import { causeOnTheWay } from "./causes.ts";
import { createDriver } from "./credentials.ts";

const folder = mkdtempSync(join(tmpdir(), "glasskey-causes-"));
const passwordFile = join(folder, "password");
const servers: Server[] = [];
let authority: Identity;
let identity: Identity;

beforeAll(async () => {
  writeFileSync(passwordFile, "the-plain-password\n");
  authority = await createAuthority("test CA", 1);
  identity = await issueServerCertificate(authority, ["localhost"], 1);
});
afterAll(() => {
  for (const server of servers) server.close();
  rmSync(folder, { recursive: true });
});

async function listen(server: Server): Promise<number> {
  servers.push(server.listen(0, "127.0.0.1"));
  await once(server, "listening");
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

/** A target that answers each login over TLS with one error, or does not speak TLS. @returns its port. */
async function startRefuser(sqlstate: string, message: string, tls = true): Promise<number> {
  const body = Buffer.from(`SFATAL\0C${sqlstate}\0M${message}\0\0`);
  const head = Buffer.from([0x45, 0, 0, 0, body.length + 4]);
  const answer = (raw: Socket): void => {
    raw.write(tls ? "S" : "N");
    if (!tls) return;
    const socket = new TLSSocket(raw, { isServer: true, cert: identity.cert, key: identity.key });
    socket.on("error", () => {});
    socket.once("data", () => socket.end(Buffer.concat([head, body])));
  };
  return listen(createServer((raw) => void raw.on("error", () => {}).once("data", () => answer(raw))));
}

interface Asked {
  port: number;
  ca?: string;
  servername?: string;
  password?: string;
  signal?: AbortSignal;
}

/** The one check that `glass target check` shows when nobody gets in. */
async function check(asked: Asked): Promise<Check> {
  const config = {
    ...{ host: "127.0.0.1", port: asked.port, databases: ["orders"] },
    tls: { ca: asked.ca ?? authority.cert, servername: asked.servername ?? "localhost" },
    admin: { user: "glasskey", password: asked.password ?? `\${file:${passwordFile}}`, database: "postgres" },
  };
  const signal = asked.signal ?? new AbortController().signal;
  const checks = await createDriver({ resolve: resolveSecret }).preflight(config, { role: "orders_rw" }, signal);
  const [only] = checks;
  if (only === undefined || checks.length !== 1) throw new Error(`${checks.length} checks`);
  expect(only).toMatchObject({ check: "login", ok: false });
  expect(only.fix?.length).toBeGreaterThan(10);
  expect(`${only.detail} ${only.fix}`).not.toMatch(/preflight|--use-system-ca|Node|plain-password/i);
  return only;
}

test("a wrong password and a missing role are one refusal, and the statement that makes the role is given", async () => {
  const port = await startRefuser("28P01", 'password authentication failed for user "glasskey"');
  expect(await check({ port })).toMatchObject({
    detail: 'wrong password, or there is no role "glasskey"',
    fix: expect.stringContaining(`CREATE ROLE "glasskey" LOGIN CREATEROLE PASSWORD '…';`),
  });
});

test.for([
  ["28000", /does not let "glasskey" in: no pg_hba/, /hostssl "postgres" "glasskey" ADDRESS scram-sha-256/],
  ["3D000", /no database "postgres"/, /admin\.database/],
  ["42501", /may not connect to "postgres"/, /^GRANT CONNECT ON DATABASE "postgres" TO "glasskey";$/],
  ["53300", /no connection left/, /max_connections/],
  ["57P03", /starting up/, /again/],
] as const)("a login that ends with %s has its own sentence and its own remedy", async ([state, detail, fix]) => {
  const port = await startRefuser(state, "no pg_hba.conf entry for host");
  expect(await check({ port })).toMatchObject({
    detail: expect.stringMatching(detail),
    fix: expect.stringMatching(fix),
  });
});

test("a certificate of another authority, for another name, and none at all are told apart", async () => {
  const port = await startRefuser("28P01", "never said");
  const other = await createAuthority("another CA", 1);
  const own = await createAuthority("test CA", 1); // the same name, another key
  for (const ca of [other.cert, own.cert]) {
    expect((await check({ port, ca })).detail).toBe("the certificate of 127.0.0.1 is not signed by tls.ca");
  }
  expect((await check({ port, ca: "system" })).detail).toMatch(/not signed by an authority that this machine trusts/);
  expect(await check({ port, servername: "db.example.com" })).toMatchObject({
    detail: "the certificate of 127.0.0.1 is for another name than db.example.com; it has localhost",
    fix: expect.stringMatching(/^Set tls\.servername/),
  });
  expect((await check({ port: await startRefuser("", "", false) })).detail).toMatch(/does not speak TLS$/);
});

test("nobody there, no such host, no way and no answer are told apart", async () => {
  const port = await startRefuser("28P01", "never said");
  servers.pop()?.close();
  expect((await check({ port })).detail).toBe(`nothing listens on 127.0.0.1:${port}: the connection was refused`);
  const endpoint = { host: "db.example.com", port: 5432, tls: { ca: null, servername: "db.example.com" } };
  const said = (code: string, message = ""): string | undefined =>
    causeOnTheWay(endpoint, Object.assign(new Error(message), code === "" ? {} : { code }))?.detail;
  expect(said("ENOTFOUND")).toBe("there is no host named db.example.com");
  expect(said("EHOSTUNREACH")).toBe("there is no way to db.example.com:5432");
  expect(said("ETIMEDOUT")).toBe("db.example.com:5432 does not answer");
  expect(said("", "timeout expired")).toBe("db.example.com:5432 does not answer");
  expect(said("CERT_HAS_EXPIRED", "certificate has expired")).toMatch(/has expired$/);
  expect(said("SOMETHING", "bad certificate; try running Node.js with --use-system-ca")).toBe(
    "the certificate of db.example.com cannot be verified (SOMETHING)",
  );
  expect(said("", "syntax error")).toBeUndefined();
  const leaf = Object.assign(new Error("try --use-system-ca"), { code: "UNABLE_TO_VERIFY_LEAF_SIGNATURE" });
  expect(targetError(endpoint, "mint gk_x", leaf).message).toMatch(
    /^mint gk_x: the certificate of db\.example\.com is/,
  );
});

test("a check that runs out of time is a finding; one that was called off is not", async () => {
  const accepted: Socket[] = [];
  const port = await listen(createServer((socket) => void accepted.push(socket.on("error", () => {}))));
  expect((await check({ port, signal: AbortSignal.timeout(50) })).detail).toBe(`127.0.0.1:${port} does not answer`);
  await expect(check({ port, signal: AbortSignal.abort(new Error("called off")) })).rejects.toThrow("called off");
  for (const socket of accepted) socket.destroy();
});

test("a password file that is missing, empty or closed is named, and so is a variable that is not set", async () => {
  const missing = join(folder, "nothing-here");
  expect(await check({ port: 1, password: `\${file:${missing}}` })).toMatchObject({
    detail: `the password file ${missing} is missing`,
    fix: expect.stringContaining("on one line"),
  });
  const empty = join(folder, "empty");
  writeFileSync(empty, "\n");
  expect((await check({ port: 1, password: `\${file:${empty}}` })).detail).toBe(`the password file ${empty} is empty`);
  expect((await check({ port: 1, password: `\${file:${folder}}` })).detail).toBe(
    `the password file ${folder} cannot be read (EISDIR)`,
  );
  expect((await check({ port: 1, password: "${env:GLASSKEY_TEST_UNSET}" })).detail).toBe(
    "environment variable GLASSKEY_TEST_UNSET is not set",
  );
});
