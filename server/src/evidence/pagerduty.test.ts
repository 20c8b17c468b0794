import { afterEach, expect, test } from "vitest";
import { Secret } from "../core/secret.ts";
import { evidenceConfig } from "./config.ts";
import { pagerdutySource } from "./pagerduty.ts";
import { startFakePagerduty, type FakePagerduty } from "./testing/fake-pagerduty.ts";
import { heldClock } from "./testing/time.ts";

let fake: FakePagerduty;
afterEach(() => fake.stop());

const signal = new AbortController().signal;

async function source(more: Record<string, unknown> = {}) {
  fake = await startFakePagerduty();
  const [config] = evidenceConfig.parse({ "pagerduty:main": { url: fake.url, token: "${env:PD}", ...more } });
  if (config?.kind !== "pagerduty") throw new Error("not PagerDuty");
  return pagerdutySource(config, heldClock(), () => new Secret("pd-secret-token"));
}

function shift(email: string | undefined, more: Partial<FakePagerduty["state"]["oncalls"][number]> = {}) {
  const [start, end] = ["2026-11-19T22:00:00+02:00", "2026-11-20T10:00:00+02:00"];
  return { schedule: "PI7DH85", user: "PXPGF42", email, level: 1, start, end, ...more };
}

function incident(more: Partial<FakePagerduty["state"]["incidents"][number]> = {}) {
  const common = { id: "PT4KHLK", number: 1234, title: "Checkout", status: "triggered", urgency: "high" } as const;
  return { ...common, priority: "P1", createdAt: "2026-11-20T02:10:00Z", ...more };
}

test("everybody on call in the schedule is named by e-mail, once, on whatever level, over all pages", async () => {
  const { rota } = await source();
  for (let index = 0; index < 130; index += 1) fake.state.oncalls.push(shift(`p${index % 30}@shop.example`));
  fake.state.oncalls.push(shift("last@shop.example", { level: 3, start: null, end: null }));
  fake.state.oncalls.push(shift("other@shop.example", { schedule: "POTHER" }));
  const told = await rota?.("PI7DH85", signal);
  expect(told?.value.state === "known" && told.value.people).toHaveLength(31);
  expect(told?.freshForMs).toBe(Date.parse("2026-11-20T08:00:00Z") - Date.parse("2026-11-20T02:14:00Z"));
  expect(fake.asked).toEqual([
    "GET /oncalls?schedule_ids[]=PI7DH85&include[]=users&limit=100&offset=0",
    "GET /oncalls?schedule_ids[]=PI7DH85&include[]=users&limit=100&offset=100",
  ]);
});

test("lesson 7: a gap in a schedule means that nobody is on call, not everybody; a schedule that does not exist is unknown", async () => {
  const { rota } = await source();
  expect((await rota?.("PI7DH85", signal))?.value).toEqual({ state: "known", people: [] });
  expect((await rota?.("PNOTHERE", signal))?.value).toEqual({ state: "unknown", why: "it has no such schedule" });
  expect((await rota?.("../users", signal))?.value.state).toBe("unknown");
  expect(fake.asked.some((line) => line.includes("users?"))).toBe(false);
});

test.for([
  ["another schedule's shifts", [shift("ann@shop.example", { schedule: "POTHER" })], /another schedule/],
  ["shifts of no schedule", [shift("ann@shop.example", { schedule: null })], /another schedule/],
  ["a shift that begins tomorrow", [shift("ann@shop.example", { start: "2026-11-21T00:00:00Z" })], /about the future/],
  ["a shift that is over", [shift("ann@shop.example", { end: "2026-11-20T02:00:00Z" })], /that are over/],
  ["a shift that ends at no time", [shift("ann@shop.example", { end: "soon" })], /a time that is none/],
  ["people without an address", [shift(undefined)], /does not have the form/],
  [
    "a whole town on call",
    Array.from({ length: 60 }, (_, index) => shift(`p${index}@shop.example`)),
    /more people on call than any rota has/,
  ],
] as const)("a source that answers with %s is not believed", async ([, oncalls, why]) => {
  const { rota } = await source();
  fake.state.deaf = true;
  fake.state.oncalls.push(...oncalls);
  await expect(rota?.("PI7DH85", signal)).rejects.toThrow(why);
});

test("pages without an end are given up", async () => {
  const { rota } = await source();
  for (let index = 0; index < 700; index += 1) fake.state.oncalls.push(shift("ann@shop.example"));
  await expect(rota?.("PI7DH85", signal)).rejects.toThrow("more people on call");
  expect(fake.asked).toHaveLength(5);
});

test("an incident is found by its id and by its number, open until it is resolved", async () => {
  const { incident: ask } = await source();
  fake.state.incidents.push(incident(), incident({ id: "PDONE01", number: 77, status: "resolved" }));
  for (const ref of ["PT4KHLK", "1234", "#1234"])
    expect((await ask?.(ref, signal))?.value, ref).toEqual({ state: "open", severity: "P1" });
  expect((await ask?.("PDONE01", signal))?.value.state).toBe("none");
  expect((await ask?.("PNOTHERE", signal))?.value.state).toBe("none");
  expect((await ask?.("JIRA-1234", signal))?.value.state).toBe("none");
  expect(fake.asked.some((line) => line.includes("JIRA"))).toBe(false);
});

test("the priority gives the severity, in the playbooks' words where there are some; without a priority, the urgency may", async () => {
  const severity = { P1: "SEV1", "Priority 2": "SEV2" };
  const { incident: ask } = await source({ severity, urgency: { low: "SEV4" } });
  const judge = async (more: Parameters<typeof incident>[0]) => {
    fake.state.incidents.splice(0, 1, incident(more));
    return (await ask?.("PT4KHLK", signal))?.value;
  };
  expect(await judge({ priority: "P1" })).toEqual({ state: "open", severity: "SEV1" });
  expect(await judge({ priority: "Priority 2" })).toEqual({ state: "open", severity: "SEV2" });
  expect(await judge({ priority: "P5" })).toEqual({ state: "open", severity: "P5" });
  expect(await judge({ priority: "Priority 5" })).toMatchObject({ state: "unknown" });
  expect(await judge({ priority: null, urgency: "low" })).toEqual({ state: "open", severity: "SEV4" });
  expect(await judge({ priority: null, urgency: "high" })).toMatchObject({ state: "unknown" });
});

test("an answer about another incident, one from the future, or one in a state that nobody knows is not believed", async () => {
  const { incident: ask } = await source();
  fake.state.incidents.push(incident());
  fake.state.insists = "PT4KHLK";
  await expect(ask?.("POTHER1", signal)).rejects.toThrow("another incident");
  await expect(ask?.("99", signal)).rejects.toThrow("another incident");
  fake.state.incidents.splice(0, 1, incident({ createdAt: "2026-11-21T00:00:00Z" }));
  await expect(ask?.("PT4KHLK", signal)).rejects.toThrow("about the future");
  fake.state.incidents.splice(0, 1, incident({ status: "half_open" }));
  await expect(ask?.("PT4KHLK", signal)).rejects.toThrow("form that its API documents");
});

test("open incidents are listed with clean titles, and without those whose severity no playbook could name", async () => {
  const { openIncidents } = await source();
  fake.state.incidents.push(
    incident({ title: "  Checkout\u202E\n is down  " }),
    incident({ id: "PACKED1", number: 2, status: "acknowledged", title: "x".repeat(5000) }),
    incident({ id: "PDONE01", number: 3, status: "resolved" }),
    incident({ id: "PNOPRIO", number: 4, priority: null }),
  );
  const list = (await openIncidents?.(signal))?.value ?? [];
  expect(list.map(({ ref, summary }) => [ref, summary])).toEqual([
    ["PT4KHLK", "Checkout? is down"],
    ["PACKED1", "x".repeat(200)],
  ]);
});
