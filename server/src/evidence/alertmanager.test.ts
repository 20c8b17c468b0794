import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { systemClock, type Clock } from "../core/clock.ts";
import { alertmanagerSource } from "./alertmanager.ts";
import { evidenceConfig } from "./config.ts";
import { startFakeAlertmanager, type FakeAlertmanager } from "./testing/fake-alertmanager.ts";
import { heldClock } from "./testing/time.ts";

/** Where Debian's package puts the real one. */
const REAL = "/usr/bin/prometheus-alertmanager";

const undo: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0)) await step();
});

const signal = new AbortController().signal;

function sourceAt(url: string, more: Record<string, unknown> = {}, clock: Clock = heldClock()) {
  const [config] = evidenceConfig.parse({ "alertmanager:prod": { url, ...more } });
  if (config?.kind !== "alertmanager") throw new Error("not Alertmanager");
  return alertmanagerSource(config, clock, undefined);
}

async function fakeSource(more: Record<string, unknown> = {}) {
  const fake = await startFakeAlertmanager();
  undo.push(() => fake.stop());
  return { fake, source: sourceAt(fake.url, more) };
}

type Alert = FakeAlertmanager["state"]["alerts"][number];

function alert(incident: string, severity: string, more: Partial<Alert> = {}): Alert {
  const labels = { alertname: "CheckoutDown", incident, ...(severity === "" ? {} : { severity }) };
  const times = { startsAt: "2026-11-20T02:00:00.000Z", endsAt: "2026-11-20T02:19:00.000Z" };
  return { labels, ...times, state: "active", silencedBy: [], summary: "Checkout is down", ...more };
}

test("an incident is open while an alert that carries its reference fires, and nobody has silenced it", async () => {
  const { fake, source } = await fakeSource();
  const { incident: ask } = source;
  fake.state.alerts.push(alert("INC-7", "critical"));
  fake.state.alerts.push(alert("INC-8", "critical", { state: "suppressed", silencedBy: ["a1"] }));
  fake.state.alerts.push(alert("INC-9", "critical", { endsAt: "2026-11-20T02:13:00.000Z" }));
  expect((await ask?.("INC-7", signal))?.value).toEqual({ state: "open", severity: "critical" });
  for (const ref of ["INC-8", "INC-9", "INC-1", 'INC-7"'])
    expect((await ask?.(ref, signal))?.value, ref).toEqual({ state: "none", why: "no alert of that incident fires" });
});

test("where alerts of an incident differ, the worst counts if glasskey.yaml says which; otherwise it is unknown", async () => {
  const { fake, source } = await fakeSource();
  fake.state.alerts.push(alert("INC-7", "warning"), alert("INC-7", "critical"), alert("INC-5", ""));
  expect((await source.incident?.("INC-7", signal))?.value).toMatchObject({ state: "unknown" });
  expect((await source.incident?.("INC-5", signal))?.value).toMatchObject({ state: "unknown" });
  const ranked = sourceAt(fake.url, { severity: { critical: "SEV1", warning: "SEV2" } });
  expect((await ranked.incident?.("INC-7", signal))?.value).toEqual({ state: "open", severity: "SEV1" });
  fake.state.alerts.push(alert("INC-7", "page-everybody"));
  expect((await ranked.incident?.("INC-7", signal))?.value).toMatchObject({ state: "unknown" });
});

test("alerts that were not asked for, and alerts from the future, are not believed", async () => {
  const { fake, source } = await fakeSource();
  fake.state.alerts.push(alert("INC-1", "critical"));
  fake.state.deaf = true;
  await expect(source.incident?.("INC-7", signal)).rejects.toThrow("another incident");
  fake.state.alerts.splice(0, 1, alert("INC-7", "critical", { state: "suppressed", silencedBy: ["a1"] }));
  await expect(source.incident?.("INC-7", signal)).rejects.toThrow("not asked for");
  fake.state.alerts.splice(0, 1, alert("INC-7", "critical", { startsAt: "2026-11-20T03:00:00Z" }));
  await expect(source.incident?.("INC-7", signal)).rejects.toThrow("about the future");
});

test("open incidents are listed once each, however many alerts they have", async () => {
  const { fake, source } = await fakeSource();
  fake.state.alerts.push(alert("INC-7", "critical"), alert("INC-7", "critical"), alert("not a reference", "critical"));
  expect((await source.openIncidents?.(signal))?.value).toEqual([
    { ref: "INC-7", severity: "critical", summary: "Checkout is down" },
  ]);
});

test.runIf(existsSync(REAL))("the real Alertmanager tells the same: firing, silenced, over", async () => {
  const { url, post } = await startReal();
  const source = sourceAt(url, { severity: { critical: "SEV1", warning: "SEV2" } }, systemClock);
  const state = async (ref: string) => (await source.incident?.(ref, signal))?.value;
  const startsAt = new Date().toISOString();
  const annotations = { summary: "Checkout is down" };
  await post("alerts", [
    { labels: { alertname: "A", incident: "INC-7", severity: "warning" }, annotations, startsAt },
    { labels: { alertname: "B", incident: "INC-7", severity: "critical" }, annotations, startsAt },
    { labels: { alertname: "A", incident: "INC-8", severity: "critical" }, annotations, startsAt },
    { labels: { alertname: "A", severity: "critical" }, annotations, startsAt },
  ]);
  await expect.poll(() => state("INC-7"), { timeout: 20_000 }).toEqual({ state: "open", severity: "SEV1" });
  await expect.poll(() => state("INC-8"), { timeout: 20_000 }).toEqual({ state: "open", severity: "SEV1" });
  expect(await state("INC-1")).toMatchObject({ state: "none" });
  expect((await source.openIncidents?.(signal))?.value.map(({ ref }) => ref).toSorted()).toEqual(["INC-7", "INC-8"]);
  const matchers = [{ name: "incident", value: "INC-8", isRegex: false }];
  const endsAt = new Date(Date.now() + 3_600_000).toISOString();
  await post("silences", { matchers, startsAt, endsAt, createdBy: "tests", comment: "tests" });
  await expect.poll(() => state("INC-8"), { timeout: 20_000 }).toMatchObject({ state: "none" });
  const over = { startsAt, endsAt: new Date().toISOString() };
  await post("alerts", [
    { labels: { alertname: "A", incident: "INC-7", severity: "warning" }, ...over },
    { labels: { alertname: "B", incident: "INC-7", severity: "critical" }, ...over },
  ]);
  await expect.poll(() => state("INC-7"), { timeout: 20_000 }).toMatchObject({ state: "none" });
});

async function startReal(): Promise<{ url: string; post: (what: string, body: unknown) => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-alertmanager-"));
  await writeFile(
    join(folder, "config.yml"),
    "route: { receiver: nobody, group_wait: 0s }\nreceivers: [{ name: nobody }]\n",
  );
  const port = await freePort();
  const args = [
    ...[`--config.file=${join(folder, "config.yml")}`, `--storage.path=${folder}`],
    ...[`--web.listen-address=127.0.0.1:${port}`, "--cluster.listen-address="],
  ];
  const child = spawn(REAL, args, { stdio: "ignore" });
  const gone = once(child, "exit");
  undo.push(async () => {
    child.kill("SIGKILL");
    await gone;
    await rm(folder, { recursive: true, force: true });
  });
  const url = `http://127.0.0.1:${port}`;
  const ready = () =>
    fetch(`${url}/-/ready`).then(
      ({ status }) => status,
      () => 0,
    );
  await expect.poll(ready, { timeout: 30_000 }).toBe(200);
  return {
    url,
    async post(what, body) {
      const headers = { "content-type": "application/json" };
      const { status } = await fetch(`${url}/api/v2/${what}`, { method: "POST", headers, body: JSON.stringify(body) });
      if (status !== 200) throw new Error(`Alertmanager answered ${status}`);
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return typeof address === "object" && address !== null ? address.port : 0;
}
