import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { z } from "zod";
import { createAuthority, issueServerCertificate } from "../core/certificates.ts";
import { Secret } from "../core/secret.ts";
import { createJsonClient, tokenHeader } from "./http.ts";
import { startFake } from "./testing/fake-server.ts";

const undo: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});

const signal = new AbortController().signal;
const answer = z.object({ ok: z.literal(true) });

/** An HTTPS server for 127.0.0.1, the file of its CA, and the file of another CA. */
async function startTls(): Promise<{ base: URL; ca: string; otherCa: string; seen: (string | undefined)[] }> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-evidence-"));
  undo.push(() => rm(folder, { recursive: true, force: true }));
  const authority = await createAuthority("tests", 1);
  const other = await createAuthority("tests", 1);
  await writeFile(join(folder, "ca.pem"), authority.cert);
  await writeFile(join(folder, "other.pem"), other.cert);
  const seen: (string | undefined)[] = [];
  const server = createServer(await issueServerCertificate(authority, ["127.0.0.1"], 1), (request, response) => {
    seen.push(request.headers.authorization);
    response.end('{"ok":true}');
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  undo.push(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, "close");
  });
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  return {
    base: new URL(`https://127.0.0.1:${port}`),
    ca: join(folder, "ca.pem"),
    otherCa: join(folder, "other.pem"),
    seen,
  };
}

test("a certificate must chain to the named CA; to whoever has another, the token is not sent", async () => {
  const { base, ca, otherCa, seen } = await startTls();
  const headers = () => tokenHeader("Bearer ", () => new Secret("secret-token"));
  const ask = (options: { ca?: string }) =>
    createJsonClient({ base, headers, ...options }).ask({ path: ["facts"], answer, signal });
  expect(await ask({ ca })).toEqual({ ok: true });
  for (const options of [{}, { ca: otherCa }]) await expect(ask(options)).rejects.toThrow("certificate does not hold");
  expect(seen).toEqual(["Bearer secret-token"]);
});

test("the environment cannot switch the check of certificates off", async () => {
  const { base } = await startTls();
  const before = process.env["NODE_TLS_REJECT_UNAUTHORIZED"];
  process.env["NODE_TLS_REJECT_UNAUTHORIZED"] = "0";
  try {
    const client = createJsonClient({ base, headers: () => ({}) });
    await expect(client.ask({ path: [], answer, signal })).rejects.toThrow("certificate does not hold");
  } finally {
    if (before === undefined) delete process.env["NODE_TLS_REJECT_UNAUTHORIZED"];
    else process.env["NODE_TLS_REJECT_UNAUTHORIZED"] = before;
  }
});

test("what is asked about cannot leave its place in the path or in the query", async () => {
  const fake = await startFake(() => ({ status: 200, body: { ok: true } }));
  undo.push(() => fake.stop());
  const client = createJsonClient({ base: new URL(`${fake.url}/base/`), headers: () => ({}) });
  await client.ask({ path: ["incidents", "../../users?x=#"], query: [["q", "a&b=c d"]], answer, signal });
  expect(fake.asked).toEqual(["GET /base/incidents/..%2F..%2Fusers%3Fx%3D%23?q=a&b=c+d"]);
});

test("a token with a line break in it is not sent, and not shown", async () => {
  const fake = await startFake(() => ({ status: 200, body: { ok: true } }));
  undo.push(() => fake.stop());
  const headers = () => tokenHeader("Bearer ", () => new Secret("secret\r\nx-evil: 1"));
  const client = createJsonClient({ base: new URL(fake.url), headers });
  await expect(client.ask({ path: [], answer, signal })).rejects.toThrow("its token has characters that no token has");
  expect(fake.asked).toEqual([]);
});

test("a 404 means that there is no such thing only in the words of the API; a proxy's 404 is a fault", async () => {
  let body: unknown = { error: { code: 2100 } };
  const fake = await startFake(() => ({ status: 404, body }));
  undo.push(() => fake.stop());
  const client = createJsonClient({ base: new URL(fake.url), headers: () => ({}) });
  const ask = () => client.ask({ path: [], answer, missing: z.object({ error: z.object({}) }), signal });
  expect(await ask()).toBeUndefined();
  body = "no such page";
  await expect(ask()).rejects.toThrow("it answered 404");
});

test("a CA that cannot be read stops the start", () => {
  const options = { base: new URL("https://127.0.0.1"), ca: "/nowhere/ca.pem", headers: () => ({}) };
  expect(() => createJsonClient(options)).toThrow("the CA of a source of evidence cannot be read");
});
