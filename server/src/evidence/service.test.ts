import { afterEach, beforeAll, expect, test } from "vitest";
import { Secret } from "../core/secret.ts";
import type { Policy } from "../playbooks/policy.ts";
import type { Store } from "../store/database.ts";
import { evidenceConfig, type SourceConfig } from "./config.ts";
import { createEvidence } from "./service.ts";
import type { Mood } from "./testing/fake-server.ts";
import { startFakePagerduty, type FakePagerduty } from "./testing/fake-pagerduty.ts";
import { policyWith } from "./testing/policy.ts";
import { heldClock, type HeldClock } from "./testing/time.ts";

let policy: Policy;
beforeAll(async () => {
  policy = await policyWith(`payments: { source: "pagerduty:main", schedule: PI7DH85 }
search: [Ann.Smith@shop.example]
mail: [bob]
sales: unknown
lost: { source: "pagerduty:gone", schedule: PI7DH85 }
`);
});

const undo: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0)) await step();
});

/** No source of these tests reads the store. */
const noStore = {} as Store;
const GONE = "http://127.0.0.1:9/"; // the discard port: nobody listens

/** Patient, so that a slow machine is no failure; who never answers at all is given up at once where a test is about that. */
const PATIENT_MS = 30_000;
const AT_ONCE_MS = 100;

function evidenceOf(
  sources: readonly SourceConfig[],
  clock = heldClock(),
  warnings: string[] = [],
  timeoutMs = PATIENT_MS,
) {
  const resolveSecret = (reference: string): Secret =>
    new Secret(reference === "${env:PD}" ? "pd-secret-token" : "other");
  return createEvidence({
    ...{ sources, store: noStore, clock, resolveSecret, timeoutMs },
    warn: (line) => warnings.push(line),
  });
}

function pagerduty(url: string, more: Record<string, unknown> = {}, name = "pagerduty:main"): readonly SourceConfig[] {
  return evidenceConfig.parse({ [name]: { url, token: "${env:PD}", ...more } });
}

async function fakePagerduty(): Promise<FakePagerduty> {
  const fake = await startFakePagerduty();
  undo.push(() => fake.stop());
  fake.state.oncalls.push(shift("ann@shop.example"));
  fake.state.incidents.push(incident("PT4KHLK", 1234, "P1"));
  return fake;
}

function shift(email: string): FakePagerduty["state"]["oncalls"][number] {
  const [start, end] = ["2026-11-19T20:00:00Z", "2026-11-20T08:00:00Z"];
  return { schedule: "PI7DH85", user: "PXPGF42", email, level: 1, start, end };
}

function incident(id: string, number: number, priority: string | null): FakePagerduty["state"]["incidents"][number] {
  const common = {
    title: "Checkout is down",
    status: "triggered",
    urgency: "high",
    createdAt: "2026-11-20T02:10:00Z",
  } as const;
  return { id, number, priority, ...common };
}

const about = (person: string, ...rotas: string[]) => ({ policy, person, rotas });

test("a rota of people in the policy is known without asking anybody: on call is who is named, by any alias", async () => {
  const evidence = evidenceOf([]);
  const ann = await evidence.observe(about("ann", "search", "mail"));
  expect(ann.oncall).toEqual({ search: "true", mail: "false" });
  expect(ann.incident).toEqual({ state: "none" });
  expect(ann.observations).toEqual([
    { fact: "oncall:search", value: "true", source: "static", observedAt: "2026-11-20T02:14:00.000Z", ageMs: 0 },
    { fact: "oncall:mail", value: "false", source: "static", observedAt: "2026-11-20T02:14:00.000Z", ageMs: 0 },
  ]);
  expect((await evidence.observe(about("ANN@shop.example", "search"))).oncall).toEqual({ search: "true" });
});

test("a rota that nobody answers for, that does not exist, or whose source is not configured is unknown, and says why", async () => {
  const { oncall, observations } = await evidenceOf([]).observe(about("ann", "sales", "nowhere", "lost", "payments"));
  expect(oncall).toEqual({ sales: "unknown", nowhere: "unknown", lost: "unknown", payments: "unknown" });
  expect(observations.map(({ source, detail }) => [source, detail])).toEqual([
    ["static", "oncall.yaml says that nobody knows"],
    ["static", "oncall.yaml has no rota nowhere"],
    ["pagerduty:gone", "glasskey.yaml has no such source of evidence"],
    ["pagerduty:main", "glasskey.yaml has no such source of evidence"],
  ]);
});

test("who is not in people.yaml is on call nowhere, whatever a source says", async () => {
  const fake = await fakePagerduty();
  fake.state.oncalls.push(shift("mallory@evil.example"));
  const { oncall } = await evidenceOf(pagerduty(fake.url)).observe(about("mallory@evil.example", "payments", "search"));
  expect(oncall).toEqual({ payments: "false", search: "false" });
});

test("a source is asked once for many people and many questions at once, and what it said says how old it is", async () => {
  const fake = await fakePagerduty();
  const clock = heldClock();
  const evidence = evidenceOf(pagerduty(fake.url), clock);
  const all = await Promise.all(
    ["ann", "bob", "ann", "carla"].map((person) => evidence.observe(about(person, "payments"))),
  );
  expect(all.map(({ oncall }) => oncall["payments"])).toEqual(["true", "false", "true", "false"]);
  clock.advance(59_000);
  const later = await evidence.observe(about("ann", "payments"));
  expect(later.observations).toEqual([
    {
      ...{ fact: "oncall:payments", value: "true", source: "pagerduty:main" },
      ...{ observedAt: "2026-11-20T02:14:00.000Z", ageMs: 59_000 },
    },
  ]);
  expect(fake.asked).toHaveLength(1);
});

test("an answer that is too old is asked for again, and what has changed counts", async () => {
  const fake = await fakePagerduty();
  const clock = heldClock();
  const evidence = evidenceOf(pagerduty(fake.url, { max_age: "30s" }), clock);
  await evidence.observe({ ...about("ann", "payments"), incident: "PT4KHLK" });
  fake.state.oncalls.splice(0, 1, shift("bob@shop.example"));
  fake.state.incidents.splice(0, 1, { ...incident("PT4KHLK", 1234, "P1"), status: "resolved" });
  clock.advance(30_000);
  const after = await evidence.observe({ ...about("ann", "payments"), incident: "PT4KHLK" });
  expect(after).toMatchObject({ oncall: { payments: "false" }, incident: { state: "none" } });
});

test("an answer holds no longer than the shift that it is about", async () => {
  const fake = await fakePagerduty();
  fake.state.oncalls.splice(0, 1, { ...shift("ann@shop.example"), end: "2026-11-20T02:14:10Z" });
  const clock = heldClock();
  const evidence = evidenceOf(pagerduty(fake.url), clock);
  expect((await evidence.observe(about("ann", "payments"))).oncall).toEqual({ payments: "true" });
  fake.state.oncalls.splice(0, 1, shift("bob@shop.example"));
  clock.advance(10_000);
  expect((await evidence.observe(about("ann", "payments"))).oncall).toEqual({ payments: "false" });
});

const MOODS: readonly (readonly [Mood, RegExp])[] = [
  ["silent", /did not answer within/],
  ["endless", /did not answer within/],
  ["broken", /out of order \(503\)/],
  ["busy", /asked too often \(429\)/],
  ["html", /not JSON/],
  ["huge", /larger than any that makes sense/],
  ["elsewhere", /redirect, which is not followed/],
  ["compressed", /compressed/],
  ["hang up", /cannot be reached/],
];

test.for(MOODS)(
  "lesson 14: a source that is %s makes facts unknown, with the reason in words and the token nowhere",
  async ([mood, why]) => {
    const fake = await fakePagerduty();
    fake.mood = mood;
    const timeoutMs = mood === "silent" || mood === "endless" ? AT_ONCE_MS : PATIENT_MS;
    const warnings: string[] = [];
    const evidence = evidenceOf(pagerduty(fake.url), heldClock(), warnings, timeoutMs);
    const observed = await evidence.observe({ ...about("ann", "payments"), incident: "PT4KHLK" });
    expect(observed.oncall).toEqual({ payments: "unknown" });
    expect(observed.incident).toEqual({ state: "unknown" });
    for (const { detail } of observed.observations) expect(detail).toMatch(why);
    expect(JSON.stringify([observed, warnings])).not.toContain("pd-secret-token");
  },
);

test("a source that nobody can reach, or that refuses the token, makes facts unknown", async () => {
  const nobody = await evidenceOf(pagerduty(GONE)).observe(about("ann", "payments"));
  expect(nobody.observations[0]).toMatchObject({ value: "unknown", detail: "it cannot be reached (ECONNREFUSED)" });
  const fake = await fakePagerduty();
  fake.state.token = "another";
  const refused = await evidenceOf(pagerduty(fake.url)).observe(about("ann", "payments"));
  expect(refused.observations[0]).toMatchObject({ value: "unknown", detail: "it refused Glasskey's token (401)" });
});

test("what a source said before it went down is told to people, and never counts as a yes", async () => {
  const fake = await fakePagerduty();
  const clock = heldClock();
  const evidence = evidenceOf(pagerduty(fake.url), clock);
  const question = { ...about("ann", "payments"), incident: "PT4KHLK" };
  expect(await evidence.observe(question)).toMatchObject({ oncall: { payments: "true" }, incident: { state: "open" } });
  fake.mood = "broken";
  clock.advance(61_000);
  const after = await evidence.observe(question);
  expect(after).toMatchObject({ oncall: { payments: "unknown" }, incident: { state: "unknown" } });
  expect(after.observations.map(({ detail }) => detail)).toEqual([
    "it answered that it is out of order (503); 1m1s ago it said: on call",
    "it answered that it is out of order (503); 1m1s ago it said: open, P1",
  ]);
});

test("a source that failed three times is left alone for ten seconds, then tried once, and counts again when it is back", async () => {
  const fake = await fakePagerduty();
  fake.mood = "hang up";
  const clock = heldClock();
  const warnings: string[] = [];
  const evidence = evidenceOf(pagerduty(fake.url), clock, warnings);
  const ask = async () => (await evidence.observe(about("ann", "payments"))).observations[0];
  for (let time = 0; time < 3; time += 1) await ask();
  expect(warnings).toEqual(["evidence: pagerduty:main is down: it cannot be reached (ECONNRESET)"]);
  expect(await ask()).toMatchObject({ value: "unknown", detail: expect.stringContaining("it is asked again in 10s") });
  expect(fake.asked).toHaveLength(3);
  clock.advance(10_000);
  await ask();
  expect(fake.asked).toHaveLength(4);
  await ask();
  expect(fake.asked).toHaveLength(4);
  fake.mood = "well";
  clock.advance(10_000);
  expect(await ask()).toMatchObject({ value: "true" });
  expect(warnings.at(-1)).toBe("evidence: pagerduty:main answers again");
});

test("silence counts as a failure: the fourth question is answered without waiting", async () => {
  const fake = await fakePagerduty();
  fake.mood = "silent";
  const evidence = evidenceOf(pagerduty(fake.url), heldClock(), [], AT_ONCE_MS);
  for (let time = 0; time < 4; time += 1)
    expect((await evidence.observe(about("ann", "payments"))).oncall).toEqual({ payments: "unknown" });
  expect(fake.asked).toHaveLength(3);
});

test("a wrong answer to one question does not stop the others: somebody who names odd incidents puts no source out of use", async () => {
  const fake = await fakePagerduty();
  fake.state.insists = "PT4KHLK";
  const evidence = evidenceOf(pagerduty(fake.url));
  for (const ref of ["P000001", "P000002", "P000003", "P000004"])
    expect((await evidence.observe({ ...about("ann"), incident: ref })).incident).toEqual({ state: "unknown" });
  expect((await evidence.observe(about("ann", "payments"))).oncall).toEqual({ payments: "true" });
});

test("an incident is open if any source says so, none only if all of them say so, and otherwise unknown", async () => {
  const [one, two] = [await fakePagerduty(), await fakePagerduty()];
  two.state.incidents.splice(0);
  const both = (clock?: HeldClock) =>
    evidenceOf([...pagerduty(one.url), ...pagerduty(two.url, {}, "pagerduty:other")], clock);
  const ask = async (ref: string) => (await both().observe({ ...about("ann"), incident: ref })).incident;
  expect(await ask("PT4KHLK")).toEqual({ state: "open", severity: "P1" });
  expect(await ask("PNOTHERE")).toEqual({ state: "none" });
  expect(await ask("pagerduty:other/PT4KHLK")).toEqual({ state: "none" });
  expect(await ask("pagerduty:main/PT4KHLK")).toEqual({ state: "open", severity: "P1" });
  one.mood = "broken";
  expect(await ask("PT4KHLK")).toEqual({ state: "unknown" });
  expect(await ask("pagerduty:other/PT4KHLK")).toEqual({ state: "none" });
  one.mood = "well";
  two.mood = "broken";
  const observed = await both().observe({ ...about("ann"), incident: "PT4KHLK" });
  expect(observed.incident).toEqual({ state: "open", severity: "P1" });
  expect(observed.observations.map(({ source, value }) => [source, value])).toEqual([
    ["pagerduty:main", "true"],
    ["pagerduty:other", "unknown"],
  ]);
});

test("without a source that knows incidents, a named one is unknown; what is no reference at all is none", async () => {
  const observe = async (incident: string) => evidenceOf([]).observe({ ...about("ann"), incident });
  expect((await observe("PT4KHLK")).incident).toEqual({ state: "unknown" });
  for (const text of ["", "checkout is down", "a\u202Eb", "../incidents", '"} or {', "x".repeat(200)]) {
    const { incident, observations } = await observe(text);
    expect(incident, text).toEqual({ state: "none" });
    expect(observations.map(({ fact }) => fact)).toEqual(["incident:-"]); // free text of people goes no further
  }
});

test("a source that is asked for one thing only is not asked for the other", async () => {
  const fake = await fakePagerduty();
  const evidence = evidenceOf(pagerduty(fake.url, { knows: ["oncall"] }));
  const observed = await evidence.observe({ ...about("ann", "payments"), incident: "PT4KHLK" });
  expect(observed).toMatchObject({ oncall: { payments: "true" }, incident: { state: "unknown" } });
  expect(await evidence.openIncidents()).toEqual([]);
  expect(fake.asked.every((line) => line.startsWith("GET /oncalls?"))).toBe(true);
});

test("open incidents of all sources are listed; a source that is down is left out", async () => {
  const [one, two] = [await fakePagerduty(), await fakePagerduty()];
  two.mood = "broken";
  const evidence = evidenceOf([...pagerduty(one.url), ...pagerduty(two.url, {}, "pagerduty:other")]);
  expect(await evidence.openIncidents()).toEqual([
    { ref: "PT4KHLK", severity: "P1", summary: "Checkout is down", source: "pagerduty:main" },
  ]);
});

test("a secret that leads nowhere stops the start; one that goes missing later makes facts unknown", async () => {
  const fake = await fakePagerduty();
  let there = false;
  const resolveSecret = (): Secret => {
    if (there) return new Secret("pd-secret-token");
    throw new Error("environment variable PD is not set");
  };
  const sources = pagerduty(fake.url);
  const create = () => createEvidence({ sources, store: noStore, clock: heldClock(), resolveSecret, warn: () => {} });
  expect(create).toThrow("not set");
  there = true;
  const evidence = create();
  there = false;
  const { observations } = await evidence.observe(about("ann", "payments"));
  expect(observations[0]).toMatchObject({
    value: "unknown",
    detail: expect.stringContaining("its token cannot be read"),
  });
});
