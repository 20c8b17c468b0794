import fastify from "fastify";
import { serializerCompiler, validatorCompiler, type ZodTypeProvider } from "fastify-type-provider-zod";
import pg from "pg";
import { afterAll, beforeAll, beforeEach, expect, inject, test } from "vitest";
import { evidenceRoutes } from "../api/evidence.ts";
import type { Api } from "../api/services.ts";
import { GlassError } from "../core/errors.ts";
import { randomBase32 } from "../core/ids.ts";
import { Secret } from "../core/secret.ts";
import type { Policy } from "../playbooks/policy.ts";
import { openStore, type Store } from "../store/database.ts";
import { migrate } from "../store/migrate.ts";
import { evidenceConfig } from "./config.ts";
import { keyOf, macOf } from "./push.ts";
import { createEvidence } from "./service.ts";
import { policyWith } from "./testing/policy.ts";
import { heldClock } from "./testing/time.ts";

const SECRET = `whsec_${Buffer.alloc(32, 1).toString("base64")}`;
const NEXT_SECRET = `whsec_${Buffer.alloc(32, 2).toString("base64")}`;
const OTHER_SECRET = `whsec_${Buffer.alloc(32, 3).toString("base64")}`;

let store: Store;
let policy: Policy;
let dropDatabase: () => Promise<void>;

beforeAll(async () => {
  const { port, superuser: user, password } = inject("pg18");
  const database = `gk_${randomBase32(10)}`;
  const admin = async (sql: string): Promise<void> => {
    const client = new pg.Client({ host: "127.0.0.1", port, user, password, database: "postgres" });
    await client.connect();
    try {
      await client.query(sql);
    } finally {
      await client.end();
    }
  };
  await admin(`create database ${database}`);
  const address = { host: "127.0.0.1", port, user, password, database };
  await migrate(address);
  store = openStore(address);
  dropDatabase = () => admin(`drop database ${database} with (force)`);
  policy = await policyWith(`payments: { source: "webhook:pager", schedule: payments }\n`);
});
afterAll(async () => {
  await store.destroy();
  await dropDatabase();
});
beforeEach(async () => {
  await store.deleteFrom("evidence_facts").execute();
  await store.deleteFrom("evidence_pushes").execute();
  await store.deleteFrom("log_queue").execute();
});

/** One process of Glasskey, with its API; the store's own clock says how old a fact is, so this one stands at the present. */
function startProcess() {
  const clock = heldClock(new Date().toISOString());
  const secrets: Record<string, string> = {
    "${env:OLD}": SECRET,
    "${env:NEW}": NEXT_SECRET,
    "${env:OTHER}": OTHER_SECRET,
  };
  const evidence = createEvidence({
    ...{ store, clock, warn: () => {} },
    sources: evidenceConfig.parse({
      "webhook:pager": { secret: ["${env:OLD}", "${env:NEW}"], severity: { critical: "SEV1" } },
      "webhook:other": { secret: "${env:OTHER}", knows: ["oncall"] },
      "pagerduty:main": { token: "${env:OLD}", url: "http://127.0.0.1:9", knows: ["oncall"] },
    }),
    resolveSecret: (reference) => new Secret(secrets[reference] ?? ""),
  });
  const app = fastify().withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler(async (error, _request, reply) => {
    const status = error instanceof GlassError ? error.status : ((error as { statusCode?: number }).statusCode ?? 500);
    const code = error instanceof GlassError ? error.code : "http";
    await reply
      .status(status)
      .serializer(JSON.stringify)
      .send({ code, message: (error as Error).message });
  });
  const personOfToken = async (token: string) =>
    token === "anns-token" ? { person: "ann", expiresAt: new Date() } : undefined;
  evidenceRoutes(app, { personOfToken, access: { policy: () => policy } } as unknown as Api, evidence);
  const push = async (
    body: unknown,
    more: PushOptions = {},
  ): Promise<{ status: number; body: Record<string, unknown> }> => {
    const payload = typeof body === "string" ? body : JSON.stringify(body);
    const { source = "pager", secret = SECRET, id = `msg_${randomBase32(12)}`, ageS = 0, headers = {} } = more;
    const timestamp = String(Math.floor(clock.now().getTime() / 1000) - ageS);
    const mac = macOf(keyOf(new Secret(secret)), id, timestamp, Buffer.from(more.signed ?? payload)).toString("base64");
    const response = await app.inject({
      ...{ method: "POST", url: `/v1/evidence/${source}`, payload },
      headers: {
        ...{ "content-type": "application/json", "webhook-id": id, "webhook-timestamp": timestamp },
        ...{ "webhook-signature": `v1,${mac}`, ...headers },
      },
    });
    return { status: response.statusCode, body: response.json() };
  };
  const observe = (person: string, incident?: string) =>
    evidence.observe({ policy, person, rotas: ["payments"], incident });
  const facts = (seconds = 0, more: Record<string, unknown> = {}) => ({
    observedAt: new Date(clock.now().getTime() - seconds * 1000).toISOString(),
    ...{ ttl: "15m", ...more },
  });
  return { app, clock, evidence, push, observe, facts };
}

interface PushOptions {
  source?: string;
  secret?: string;
  id?: string;
  ageS?: number;
  /** What was signed, where that is not the body. */
  signed?: string;
  headers?: Record<string, string>;
}

async function logged(): Promise<readonly { type: string; data: unknown }[]> {
  const rows = await store.selectFrom("log_queue").select("entry").orderBy("id").execute();
  return rows.map(({ entry }) => JSON.parse(entry.toString("utf8")) as { type: string; data: unknown });
}

const OPEN = { incidents: { "INC-7": { state: "open", severity: "critical" } } } as const;

test("what a source pushes is known to every process, with its age, until its time is over or it says otherwise", async () => {
  const [one, two] = [startProcess(), startProcess()];
  const pushed = await one.push(one.facts(30, { oncall: { payments: ["ann@shop.example"] }, ...OPEN }));
  expect(pushed).toEqual({ status: 200, body: { taken: 2, outdated: 0 } });
  const seen = await two.observe("ann", "INC-7");
  expect(seen).toMatchObject({ oncall: { payments: "true" }, incident: { state: "open", severity: "SEV1" } });
  expect(seen.observations[0]).toMatchObject({ source: "webhook:pager", value: "true" });
  expect(seen.observations[0]?.ageMs).toBeGreaterThanOrEqual(29_000);
  expect((await two.observe("bob")).oncall).toEqual({ payments: "false" });
  expect(await two.evidence.openIncidents()).toEqual([
    { ref: "INC-7", severity: "SEV1", summary: "", source: "webhook:pager" },
  ]);
  await two.push(two.facts(0, { oncall: { payments: [] }, incidents: { "INC-7": { state: "closed" } } }));
  expect(await one.observe("ann", "INC-7")).toMatchObject({
    oncall: { payments: "false" },
    incident: { state: "none" },
  });
  const entries = await logged();
  expect(entries.map(({ type }) => type)).toEqual(["evidence.received", "evidence.received"]);
  expect(JSON.stringify(entries)).toContain("oncall:payments");
  expect(JSON.stringify(entries)).not.toContain("ann");
});

test("what was never pushed, or holds no longer, is unknown: silence is neither a yes nor a no", async () => {
  const { push, observe, facts } = startProcess();
  const silent = { oncall: { payments: "unknown" }, incident: { state: "unknown" } };
  expect(await observe("ann", "INC-7")).toMatchObject(silent);
  await push(facts(50, { ttl: "1m", oncall: { payments: ["ann"] }, ...OPEN }));
  await store
    .updateTable("evidence_facts")
    .set({ expires_at: new Date(Date.now() - 1000) })
    .execute(); // time passes
  const over = await observe("ann", "INC-7");
  expect(over).toMatchObject(silent);
  expect(over.observations[0]?.detail).toContain("no longer holds");
});

test("an older observation never overwrites a newer one, however late or often it comes", async () => {
  const { push, observe, facts } = startProcess();
  const older = facts(60, { oncall: { payments: ["ann"] } });
  await push(facts(10, { oncall: { payments: ["bob"] } }));
  expect(await push(older)).toEqual({ status: 200, body: { taken: 0, outdated: 1 } });
  expect((await observe("ann")).oncall).toEqual({ payments: "false" });
});

test("a hundred pushes at once leave the newest observation", async () => {
  const processes = [startProcess(), startProcess()];
  const pushes = Array.from({ length: 100 }, async (_, index) => {
    const { push, facts } = processes[index % 2] ?? startProcess();
    const [person] = index === 37 ? ["ann"] : ["bob"];
    const incidents = Object.fromEntries(["INC-1", "INC-2", "INC-3"].map((ref) => [ref, { state: "closed" }]));
    return push(facts(index === 37 ? 1 : 5 + index, { oncall: { payments: [person] }, incidents }));
  });
  const answers = await Promise.all(pushes);
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
  expect((await processes[0]?.observe("ann"))?.oncall).toEqual({ payments: "true" });
});

test("a push with a wrong MAC, of another source's key, or to a source that does not exist is refused in the same words", async () => {
  const { push, facts, observe } = startProcess();
  const body = facts(0, { oncall: { payments: ["ann"] } });
  const refused = await Promise.all([
    push(body, { secret: OTHER_SECRET }),
    push(body, { signed: JSON.stringify(facts(0, { oncall: { payments: ["bob"] } })) }),
    push(body, { source: "nobody" }),
    push(body, { source: "nobody", secret: `whsec_${Buffer.alloc(32, 0x5a).toString("base64")}` }),
    push(body, { source: "constructor" }),
    push(body, { source: "__proto__" }),
    push(body, { source: "main" }), // of another kind: webhook:main does not exist
    push(body, { headers: { "webhook-signature": "" } }),
    push(body, { headers: { "webhook-signature": "v1," } }),
    push(body, { headers: { "webhook-signature": `v1a,${Buffer.alloc(32).toString("base64")}` } }),
    push(body, { headers: { "webhook-id": "" } }),
    push(body, { headers: { "webhook-timestamp": "now" } }),
    push(body, { id: "a.b" }),
    push("{}", { secret: OTHER_SECRET, headers: { "content-type": "text/plain" } }),
  ]);
  for (const answer of refused) expect(answer).toEqual(refused[0]);
  expect(refused[0]?.status).toBe(401);
  expect((await observe("ann")).oncall).toEqual({ payments: "unknown" });
});

test("refusals are in the log with their cause, once a minute for each: rubbish does not fill it", async () => {
  const { push, facts, clock } = startProcess();
  for (let time = 0; time < 5; time += 1) {
    await push(facts(), { secret: OTHER_SECRET });
    await push(facts(), { source: `evil-${time}` });
  }
  const entries = await logged();
  expect(entries.map(({ type, data }) => [type, data])).toEqual([
    ["evidence.refused", { source: "webhook:pager", why: "signature" }],
    ["evidence.refused", { source: "unknown", why: "signature" }],
  ]);
  clock.advance(60_000);
  await push(facts(), { secret: OTHER_SECRET });
  expect(await logged()).toHaveLength(3);
});

test("a push that was taken is not taken again, by any process", async () => {
  const [one, two] = [startProcess(), startProcess()];
  const id = "msg_replayed";
  const body = one.facts(5, { oncall: { payments: ["ann"] } });
  expect((await one.push(body, { id })).status).toBe(200);
  const repeated = await Promise.all([
    one.push(body, { id }),
    two.push(body, { id }),
    two.push(body, { id, ageS: 60 }),
  ]);
  for (const { status, body: answer } of repeated) expect([status, answer["code"]]).toEqual([409, "conflict"]);
  // Another source has ids of its own.
  expect((await one.push(body, { id, source: "other", secret: OTHER_SECRET })).status).toBe(200);
});

test("a push whose timestamp is more than five minutes off is refused, with and without a good signature", async () => {
  const { push, facts, observe } = startProcess();
  for (const ageS of [301, -302, 86_400])
    expect(await push(facts(0, { oncall: { payments: ["ann"] } }), { ageS })).toMatchObject({ status: 400 });
  expect((await observe("ann")).oncall).toEqual({ payments: "unknown" });
  expect((await push(facts(0, { oncall: { payments: ["ann"] } }), { ageS: 290 })).status).toBe(200);
});

test("during a change of secrets both are good, and several signatures may come along", async () => {
  const { push, facts } = startProcess();
  expect((await push(facts(), { secret: NEXT_SECRET })).status).toBe(200);
  const [id, body] = ["msg_two", JSON.stringify(facts())];
  const timestamp = String(Math.floor(Date.now() / 1000));
  const mac = macOf(keyOf(new Secret(SECRET)), id, timestamp, Buffer.from(body)).toString("base64");
  const signature = `v1a,AAAA v1,${Buffer.alloc(32).toString("base64")} v1,${mac}`;
  const headers = { "webhook-signature": signature, "webhook-timestamp": timestamp };
  expect((await push(body, { id, headers })).status).toBe(200);
});

test("the signature is the one that Standard Webhooks publishes for its example", () => {
  // standardwebhooks.com, and the test vectors of its libraries
  const key = keyOf(new Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
  const mac = macOf(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", Buffer.from('{"test": 2432232314}'));
  expect(mac.toString("base64")).toBe("g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
});

test("a secret that is too short, or not of the published form, is refused at the start", () => {
  for (const text of [
    "",
    "secret",
    "whsec_",
    "whsec_c2hvcnQ=",
    SECRET.slice(6),
    `whsec_${"A".repeat(200)}`,
    `${SECRET}\n`,
  ])
    expect(() => keyOf(new Secret(text)), text).toThrow("not of the form");
});

test("a body that is not exactly what is documented is refused, and what is wrong is named without repeating it", async () => {
  const { push, facts, observe } = startProcess();
  const long = Object.fromEntries(Array.from({ length: 101 }, (_, index) => [`r${index}`, []]));
  const wrong = [
    "",
    "not json",
    "[]",
    "null",
    "{}",
    '{"observedAt":"2026-11-20T02:14:00Z","ttl":"1m","__proto__":{"oncall":{"payments":["ann"]}}}',
    JSON.stringify(facts()).replace("}", ',"oncall":{"__proto__":["ann"]}}'),
    facts(0, { admin: true }),
    facts(0, { oncall: { constructor: "ann" } }),
    facts(0, { oncall: { Payments: ["ann"] } }),
    facts(0, { oncall: { payments: ["a".repeat(200)] } }),
    facts(0, { oncall: { payments: Array.from({ length: 51 }, () => "ann") } }),
    facts(0, { oncall: long }),
    facts(0, { incidents: { "INC 7": { state: "open", severity: "SEV1" } } }),
    facts(0, { incidents: { "INC-7": { state: "open" } } }),
    facts(0, { incidents: { "INC-7": { state: "open", severity: "<script>" } } }),
    facts(0, { incidents: { "INC-7": { state: "maybe", severity: "SEV1" } } }),
    facts(0, { ttl: "0s" }),
    facts(0, { ttl: "" }),
    facts(0, { ttl: "25h" }),
    facts(0, { ttl: "forever" }),
    facts(-301, { oncall: { payments: ["ann"] } }), // from the future
    facts(3600, { oncall: { payments: ["ann"] } }), // over already
    `${JSON.stringify(facts())}${" ".repeat(70_000)}`,
    "[".repeat(60_000),
  ];
  for (const body of wrong) {
    const { status, body: answer } = await push(body);
    expect([400, 413], JSON.stringify(body).slice(0, 100)).toContain(status);
    expect(JSON.stringify(answer)).not.toContain("script");
  }
  expect(await observe("ann", "INC-7")).toMatchObject({
    oncall: { payments: "unknown" },
    incident: { state: "unknown" },
  });
  expect(await store.selectFrom("evidence_facts").selectAll().execute()).toEqual([]);
});

test("a fact from a clock that is fast does not outlive what is observed next", async () => {
  const { push, facts, observe, clock } = startProcess();
  await push(facts(-240, { oncall: { payments: ["ann"] } }));
  clock.advance(2_000);
  await push(facts(0, { oncall: { payments: ["bob"] } }));
  expect((await observe("ann")).oncall).toEqual({ payments: "false" });
});

test("a source that pushes ever new incidents is stopped before it fills the store", async () => {
  const { push, facts } = startProcess();
  const codes: unknown[] = [];
  for (let time = 0; time < 21; time += 1) {
    const refs = Array.from({ length: 100 }, (_, index) => [`INC-${time}-${index}`, { state: "closed" }]);
    codes.push((await push(facts(0, { incidents: Object.fromEntries(refs) }))).status);
  }
  expect(codes).toEqual([...Array.from({ length: 20 }, () => 200), 400]);
  // It still can say more of what it spoke of.
  expect((await push(facts(0, { incidents: { "INC-3-5": { state: "open", severity: "SEV1" } } }))).status).toBe(200);
});

test("the store being away makes what was pushed unknown, and refuses no start", async () => {
  const away = openStore({ host: "127.0.0.1", port: 9, user: "x", password: "x", database: "x" });
  const sources = evidenceConfig.parse({ "webhook:pager": { secret: "${env:OLD}" } });
  const resolveSecret = (): Secret => new Secret(SECRET);
  const evidence = createEvidence({ sources, store: away, clock: heldClock(), resolveSecret, warn: () => {} });
  const seen = await evidence.observe({ policy, person: "ann", rotas: ["payments"], incident: "INC-7" });
  expect(seen).toMatchObject({ oncall: { payments: "unknown" }, incident: { state: "unknown" } });
  expect(seen.observations[0]?.detail).toBe("the store does not answer");
  expect(await evidence.openIncidents()).toEqual([]);
  await away.destroy();
});

test("open incidents are listed for people who are logged in, and for nobody else", async () => {
  const { app, push, facts } = startProcess();
  await push(facts(0, OPEN));
  const get = (authorization: string) =>
    app.inject({ method: "GET", url: "/v1/incidents", headers: { authorization } });
  const answer = await get("Bearer anns-token");
  expect([answer.statusCode, answer.json()]).toEqual([
    200,
    { incidents: [{ ref: "INC-7", severity: "SEV1", summary: "", source: "webhook:pager" }] },
  ]);
  for (const authorization of ["", "Bearer another"]) expect((await get(authorization)).statusCode).toBe(401);
});
