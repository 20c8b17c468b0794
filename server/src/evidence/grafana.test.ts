import { afterEach, expect, test } from "vitest";
import { Secret } from "../core/secret.ts";
import { evidenceConfig } from "./config.ts";
import { grafanaSource } from "./grafana.ts";
import { startFakeGrafana, type FakeGrafana } from "./testing/fake-grafana.ts";
import { heldClock } from "./testing/time.ts";

let fake: FakeGrafana;
afterEach(() => fake.stop());

const signal = new AbortController().signal;

async function source(more: Record<string, unknown> = {}) {
  fake = await startFakeGrafana();
  const urls = { url: fake.url, oncall_url: `${fake.url}/oncall/` };
  const [config] = evidenceConfig.parse({ "grafana:irm": { ...urls, token: "${env:GRAFANA}", ...more } });
  if (config?.kind !== "grafana") throw new Error("not Grafana");
  return grafanaSource(config, heldClock(), () => new Secret("glsa_secret"));
}

function incident(id: string, more: Partial<FakeGrafana["state"]["incidents"][number]> = {}) {
  const common = { severity: "Critical", status: "active", title: "Checkout", isDrill: false } as const;
  return { id, ...common, createdTime: "2026-11-20T02:10:00Z", ...more };
}

test("who is on call in a schedule is told by e-mail", async () => {
  const { rota } = await source();
  fake.state.schedules = { SBM7DV7BKFUYU: ["U4DNY931HHJS5", "U7S8H84ARFTGN"], SEMPTY00: [] };
  fake.state.users = { U4DNY931HHJS5: "ann@shop.example", U7S8H84ARFTGN: "bob@shop.example" };
  expect((await rota?.("SBM7DV7BKFUYU", signal))?.value).toEqual({
    state: "known",
    people: ["ann@shop.example", "bob@shop.example"],
  });
  expect((await rota?.("SEMPTY00", signal))?.value).toEqual({ state: "known", people: [] });
  expect((await rota?.("SNOTHERE", signal))?.value).toEqual({ state: "unknown", why: "it has no such schedule" });
  expect((await rota?.("constructor", signal))?.value.state).toBe("unknown");
});

test("an answer about another user, or a user who is not there, is not believed", async () => {
  const { rota } = await source();
  fake.state.schedules = { SBM7DV7BKFUYU: ["U4DNY931HHJS5"] };
  await expect(rota?.("SBM7DV7BKFUYU", signal)).rejects.toThrow("it answered 404");
  fake.state.users = { U4DNY931HHJS5: "ann@shop.example" };
  fake.state.insists = "U7S8H84ARFTGN";
  await expect(rota?.("SBM7DV7BKFUYU", signal)).rejects.toThrow("another user");
});

test("without the address of its OnCall API it is not asked who is on call", async () => {
  expect((await source({ oncall_url: undefined })).rota).toBeUndefined();
});

test("an incident is open while it is among the active ones, on whatever page, and a drill opens nothing", async () => {
  const { incident: ask } = await source({ severity: { Critical: "SEV1" } });
  for (let index = 0; index < 60; index += 1) fake.state.incidents.push(incident(String(index)));
  fake.state.incidents.push(incident("88", { severity: "Minor" }), incident("99", { isDrill: true }));
  fake.state.incidents.push(incident("7777", { status: "resolved" }), incident("66", { severity: "Not yet known" }));
  const judge = async (ref: string) => (await ask?.(ref, signal))?.value;
  expect(await judge("1")).toEqual({ state: "open", severity: "SEV1" });
  expect(await judge("88")).toEqual({ state: "open", severity: "Minor" });
  expect(await judge("99")).toEqual({ state: "none", why: "it is a drill" });
  expect(await judge("7777")).toMatchObject({ state: "none" });
  expect(await judge("nope")).toMatchObject({ state: "none" });
  expect(await judge("66")).toMatchObject({ state: "unknown" });
});

test("an incident from the future, and a list without an end, are not believed", async () => {
  const { incident: ask } = await source();
  fake.state.incidents.push(incident("1", { createdTime: "2026-11-20T03:00:00Z" }));
  await expect(ask?.("1", signal)).rejects.toThrow("about the future");
  fake.state.loops = true;
  await expect(ask?.("1", signal)).rejects.toThrow("does not end");
  fake.state.loops = false;
  fake.state.incidents = Array.from({ length: 300 }, (_, index) => incident(String(index)));
  await expect(ask?.("1", signal)).rejects.toThrow("more open incidents than can be looked through");
});

test("open incidents are listed, drills left out", async () => {
  const { openIncidents } = await source();
  fake.state.incidents.push(incident("1"), incident("2", { isDrill: true }), incident("3", { status: "resolved" }));
  expect((await openIncidents?.(signal))?.value).toEqual([{ ref: "1", severity: "Critical", summary: "Checkout" }]);
});
