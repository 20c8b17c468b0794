import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";
import { hashSecret, newPersonSecret, verifySecret } from "./secrets.ts";
import { createThrottle } from "./throttle.ts";
import { createTurnstile } from "./turnstile.ts";

let system: TestSystem;
beforeAll(async () => {
  system = await startTestSystem(inject("pg18"));
});
afterAll(() => system.dispose());

test("a secret verifies against its own hash only; hashes of one secret differ", async () => {
  const secret = newPersonSecret();
  expect(secret).toMatch(/^([0-9a-hjkmnp-tv-z]{6}-){3}[0-9a-hjkmnp-tv-z]{6}$/);
  const [one, two] = await Promise.all([hashSecret(secret), hashSecret(secret)]);
  expect(one).not.toBe(two);
  expect(await verifySecret(secret, one)).toBe(true);
  expect(await verifySecret(`${secret} `, one)).toBe(false);
  expect(await verifySecret(secret, undefined)).toBe(false);
});

test("a hash that would eat the server, or is too cheap, is refused", async () => {
  const [, , , , salt, key] = (await hashSecret("x")).split("$");
  for (const cost of ["1048576$64$1", "1024$8$1", "32767$8$1", "32768$8$0"]) {
    await expect(verifySecret("x", `scrypt$${cost}$${salt}$${key}`), cost).rejects.toThrow(
      /not a hash that Glasskey made/,
    );
  }
});

test("failures of one address make it wait longer and longer, concern no other address, and are forgotten in the end", () => {
  let nowMs = 0;
  const throttle = createThrottle(
    { now: () => new Date(nowMs), monotonicMs: () => nowMs },
    { free: 3, maxWaitMs: 60_000, maxKeys: 100 },
  );
  const waits = Array.from({ length: 12 }, () => {
    throttle.failed("a");
    return throttle.waitMs("a");
  });
  expect(waits.slice(0, 5)).toEqual([0, 0, 1000, 2000, 4000]);
  expect(Math.max(...waits)).toBe(60_000);
  expect(throttle.waitMs("b")).toBe(0);
  nowMs += 60_000;
  expect(throttle.waitMs("a")).toBe(0);
  throttle.succeeded("a");
  throttle.failed("a");
  expect(throttle.waitMs("a")).toBe(0);
  for (let i = 0; i < 1_000; i += 1) throttle.failed(`attacker ${i}`);
  expect(throttle.waitMs("a")).toBe(0); // bounded: the oldest went
});

test("an unknown name and a wrong secret get the same answer; neither the name nor the secret is logged", async () => {
  const nobody = await system.as("");
  const wrong = await nobody.refused("POST", "/v1/login", { name: "ann", secret: "not-her-secret" });
  const unknown = await nobody.refused("POST", "/v1/login", { name: "my-secret-by-mistake", secret: "x" });
  expect(unknown).toEqual(wrong);
  expect(wrong).toMatchObject({ status: 401, code: "unauthenticated" });
  const rows = await system.storeQuery<{ text: string }>(
    "select convert_from(entry, 'UTF8') as text from log_entries union all select convert_from(entry, 'UTF8') from log_queue",
  );
  const all = rows.map(({ text }) => text).join("");
  expect(all).toContain("login.failed");
  expect(all).not.toMatch(/not-her-secret|my-secret-by-mistake/);
});

test("without a token, with a wrong one, with an old one and after logout every verb is refused", async () => {
  const nobody = await system.as("");
  const routes = [
    "/v1/whoami",
    "/v1/playbooks",
    "/v1/grants",
    "/v1/sessions",
    "/v1/log",
    "/v1/alarms",
    "/log/tile/entries/000.p/1",
    "/v1/log/proof/0",
  ];
  for (const route of routes) expect(await nobody.refused("GET", route), route).toMatchObject({ status: 401 });
  const ann = await system.as("ann");
  await ann.call("POST", "/v1/logout");
  for (const route of routes.slice(0, 4)) expect(await ann.refused("GET", route), route).toMatchObject({ status: 401 });
  const late = await system.as("ann");
  await system.storeQuery("update tokens set expires_at = clock_timestamp() where person = 'ann'");
  expect(await late.refused("GET", "/v1/whoami")).toMatchObject({ status: 401 });
});

test("no role implies another: what each role may do over the API, and nothing else", async () => {
  const may: Record<string, Record<string, boolean>> = {};
  const verbs: Record<string, ["GET" | "POST", string, unknown?]> = {
    log: ["GET", "/v1/log"],
    alarms: ["GET", "/v1/alarms"],
    reload: ["POST", "/v1/policy/reload"],
    check: ["POST", "/v1/targets/check", {}],
    break: ["POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "who may do this" }],
  };
  for (const person of ["ann", "bob", "sam", "ida"]) {
    const client = await system.as(person);
    for (const [verb, [method, path, body]] of Object.entries(verbs)) {
      const denied = await client.call(method, path, body).then(
        () => false,
        () => true,
      );
      (may[person] ??= {})[verb] = !denied;
    }
  }
  expect(may).toEqual({
    ann: { log: false, alarms: false, reload: false, check: false, break: true }, // requester
    bob: { log: false, alarms: false, reload: false, check: false, break: false }, // approver
    sam: { log: true, alarms: true, reload: false, check: false, break: false }, // security officer
    ida: { log: true, alarms: true, reload: true, check: true, break: false }, // auditor and admin
  });
});

test("lesson 21: an address in a header is nobody's address: failures count for the peer, whatever it claims", async () => {
  const { url, caFile } = system.server();
  const { readFile } = await import("node:fs/promises");
  const { request } = await import("node:https");
  const ca = await readFile(caFile, "utf8");
  const attempt = (n: number): Promise<number> =>
    new Promise((resolve, reject) => {
      const headers = {
        "content-type": "application/json",
        "x-forwarded-for": `10.0.0.${n}`,
        forwarded: `for=10.0.0.${n}`,
        "x-real-ip": `10.0.0.${n}`,
      };
      const sent = request(new URL("/v1/login", url), { method: "POST", ca, headers }, (response) => {
        response.resume();
        resolve(response.statusCode ?? 0);
      });
      sent.once("error", reject);
      sent.end(JSON.stringify({ name: "ann", secret: "wrong" }));
    });
  const statuses: number[] = [];
  for (let n = 0; n < 12 && statuses.at(-1) !== 429; n += 1) statuses.push(await attempt(n));
  expect(statuses[0]).toBe(401);
  expect(statuses.at(-1)).toBe(429);
});

test("a flood of logins from ever new addresses keeps nobody out: turns are taken by address, known ones first", async () => {
  const turnstile = createTurnstile({ atOnce: 2, waiting: 64, waitingPerAddress: 8, trusted: 10 });
  const done: string[] = [];
  const slow = (who: string) => async (): Promise<void> => {
    await new Promise((resolve) => setImmediate(resolve));
    done.push(who);
  };
  // One address fills its own share only; the rest of the room is for others.
  const greedy = Array.from({ length: 30 }, () => turnstile.pass("greedy", slow("greedy")));
  const many = Array.from({ length: 40 }, (_, n) => turnstile.pass(`attacker ${n}`, slow("attacker")));
  const stranger = turnstile.pass("ann's phone", slow("ann"));
  turnstile.trust("bob's desk");
  const full = await Promise.all(
    Array.from({ length: 40 }, (_, n) => turnstile.pass(`more ${n}`, slow("more"))).slice(30),
  );
  expect(full).toContain(undefined); // the room is bounded
  const known = turnstile.pass("bob's desk", slow("bob"));
  await Promise.all([...greedy, ...many, stranger, known]);
  expect(done.filter((who) => who === "greedy").length).toBeLessThanOrEqual(10);
  expect(done).toEqual(expect.arrayContaining(["ann", "bob"]));
  expect((await turnstile.pass("later", async () => "in"))?.value).toBe("in");
});
