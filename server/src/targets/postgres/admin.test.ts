import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { TLSSocket } from "node:tls";
import fc from "fast-check";
import pg from "pg";
import { beforeAll, expect, inject, test } from "vitest";
import { createAuthority, issueServerCertificate, type Identity } from "../../core/certificates.ts";
import { Secret } from "../../core/secret.ts";
import { createLanes, quoteIdentifier, quoteLiteral, withConnection } from "./admin.ts";

const { signal } = new AbortController();
const PASSWORD = "the-plain-password";
const login = { user: "glasskey", password: new Secret(PASSWORD), database: "postgres", application: "test" };
let authority: Identity;
let identity: Identity;

beforeAll(async () => {
  authority = await createAuthority("test CA", 1);
  identity = await issueServerCertificate(authority, ["localhost"], 1);
});

test("any text comes back from the server as it was quoted", async () => {
  const { port, superuser, password } = inject("pg18");
  const client = new pg.Client({ host: "127.0.0.1", port, user: superuser, password, database: "postgres" });
  await client.connect();
  for (const strings of ["on", "off"]) {
    await client.query(
      `set standard_conforming_strings = ${strings}; set backslash_quote = off; set escape_string_warning = off`,
    );
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: fc.constantFrom("'", '"', "\\", "$", "\n", "a", "é", ";", "-", "😀", "%") }),
        async (text) => {
          const name = Buffer.from(text).subarray(0, 40).toString().replaceAll("\ufffd", "") || "x";
          const result = await client.query(`select ${quoteLiteral(text)}::text as ${quoteIdentifier(name)}`);
          expect(result.rows[0]).toEqual({ [name]: text });
        },
      ),
      { numRuns: 200 },
    );
  }
  await client.end();
});

/** A server that speaks just enough to ask for a password in a way of its choice; remembers all it was told. */
async function startImpostor(
  authentication: Buffer,
  tls = true,
): Promise<{ port: number; heard: () => string; close(): void }> {
  let heard = "";
  const sockets = new Set<Socket>();
  const server: Server = createServer((raw) => {
    sockets.add(raw.on("error", () => {}));
    raw.once("data", () => {
      raw.write(tls ? "S" : "N");
      if (!tls) {
        raw.on("data", (bytes) => (heard += bytes.toString("latin1")));
        return;
      }
      const socket = new TLSSocket(raw, { isServer: true, cert: identity.cert, key: identity.key });
      socket.on("error", () => {});
      socket.on("data", (bytes) => {
        heard += bytes.toString("latin1");
        if (heard.includes("glasskey")) socket.write(authentication);
      });
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const close = (): void => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  return { port: typeof address === "object" && address !== null ? address.port : 0, heard: () => heard, close };
}

const endpoint = (port: number, ca = authority.cert, servername = "localhost") => ({
  ...{ host: "127.0.0.1", port, tls: { ca, servername } },
});
const enter = (at: ReturnType<typeof endpoint>): Promise<unknown> =>
  withConnection(at, login, signal, () => Promise.resolve("in"));
const OK_READY = Buffer.from("5200000008000000005a0000000549", "hex");

test.for([
  ["in clear text", Buffer.from("520000000800000003", "hex")],
  ["as MD5", Buffer.from("520000000c0000000501020304", "hex")],
] as const)("a target that asks for the password %s does not get it", async ([, message]) => {
  const impostor = await startImpostor(message);
  await expect(enter(endpoint(impostor.port))).rejects.toThrow("without SCRAM-SHA-256");
  expect(impostor.heard()).toContain("glasskey");
  expect(impostor.heard()).not.toContain(PASSWORD);
  expect(impostor.heard()).not.toContain("md5");
  impostor.close();
});

test("a target that lets us in without any proof is not believed", async () => {
  const impostor = await startImpostor(OK_READY);
  await expect(enter(endpoint(impostor.port))).rejects.toThrow("without SCRAM-SHA-256");
  impostor.close();
});

test("neither is one without TLS, of another authority, or of another name; nothing is told to it", async () => {
  const plain = await startImpostor(OK_READY, false);
  await expect(enter(endpoint(plain.port))).rejects.toThrow(/SSL/);
  expect(plain.heard()).toBe("");
  plain.close();
  const impostor = await startImpostor(OK_READY);
  const other = await createAuthority("another CA", 1);
  await expect(enter(endpoint(impostor.port, other.cert))).rejects.toThrow(/certificate|signature|issuer/i);
  await expect(enter(endpoint(impostor.port, authority.cert, "db.example.com"))).rejects.toThrow(/altnames/);
  expect(impostor.heard()).toBe("");
  impostor.close();
});

test("an abort closes the connection at once", async () => {
  const impostor = await startImpostor(Buffer.alloc(0));
  const abort = new AbortController();
  const pending = expect(
    withConnection(endpoint(impostor.port), login, abort.signal, () => Promise.resolve()),
  ).rejects.toThrow("enough");
  await expect.poll(() => impostor.heard()).toContain("glasskey");
  abort.abort(new Error("enough"));
  await pending;
  impostor.close();
});

test("lanes let so many in at once, keep the order, and forget those who left", async () => {
  const lane = createLanes(2);
  const order: number[] = [];
  let [running, most] = [0, 0];
  const work = (n: number) => async (): Promise<void> => {
    running += 1;
    most = Math.max(most, running);
    await new Promise((done) => setTimeout(done, 1));
    order.push(n);
    running -= 1;
  };
  const abort = new AbortController();
  const jobs = [0, 1, 2, 3, 4].map((n) =>
    lane("a", n === 2 ? abort.signal : signal, work(n)).catch(() => order.push(-n)),
  );
  const other = lane("b", signal, work(9)); // another target does not wait
  abort.abort(new Error("left"));
  await Promise.all([...jobs, other]);
  expect(order.filter((n) => n !== 9 && n >= 0)).toEqual([0, 1, 3, 4]);
  expect(order).toContain(-2);
  expect(most).toBeLessThanOrEqual(3);
  await expect(lane("a", signal, () => Promise.reject(new Error("x")))).rejects.toThrow("x");
  expect(await lane("a", signal, () => Promise.resolve(7))).toBe(7);
});
