import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { request as httpsRequest } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { GrantView } from "@glasskey/contract";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { playbook, startTestSystem, type Client, type TestSystem } from "../../testing/system.ts";
import { randomBase32 } from "../core/ids.ts";
import { Secret } from "../core/secret.ts";
import { evidenceConfig } from "./config.ts";
import { keyOf, macOf } from "./push.ts";

const SECRET = `whsec_${Buffer.alloc(32, 9).toString("base64")}`;

let folder: string;
let system: TestSystem;
let ann: Client;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-evidence-"));
  await writeFile(join(folder, "pager"), SECRET, { mode: 0o600 });
  const approve = "{ need: 0, from: { group: leads } }";
  system = await startTestSystem(
    inject("pg18"),
    {
      "oncall.yaml": `payments: { source: "webhook:pager", schedule: payments }\n`,
      "playbooks/on-duty.yaml": playbook("on-duty", { who: "{ oncall: payments }", approve }),
      "playbooks/severe.yaml": playbook("severe", { when: "{ reason: [outage], incident: [SEV1] }", approve }),
    },
    { evidence: evidenceConfig.parse({ "webhook:pager": { secret: `\${file:${join(folder, "pager")}}` } }) },
  );
  ann = await system.as("ann");
});
afterAll(async () => {
  await system.dispose();
  await rm(folder, { recursive: true, force: true });
});

/** As another tool would: over HTTPS, signed. */
async function push(facts: Record<string, unknown>, secret = SECRET): Promise<{ status: number; text: string }> {
  const body = JSON.stringify({ observedAt: new Date().toISOString(), ttl: "15m", ...facts });
  const [id, timestamp] = [`msg_${randomBase32(12)}`, String(Math.floor(Date.now() / 1000))];
  const mac = macOf(keyOf(new Secret(secret)), id, timestamp, Buffer.from(body)).toString("base64");
  const ca = await readFile(system.server().caFile, "utf8");
  return new Promise((resolve, reject) => {
    const request = httpsRequest(new URL("/v1/evidence/pager", system.server().url), {
      ...{ method: "POST", ca },
      headers: {
        ...{ "content-type": "application/json", "webhook-id": id },
        ...{ "webhook-timestamp": timestamp, "webhook-signature": `v1,${mac}` },
      },
    });
    request.once("error", reject);
    request.once("response", (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      response.once("end", () => resolve({ status: response.statusCode ?? 0, text }));
    });
    request.end(body);
  });
}

function breakFor(name: string, incident?: string): Promise<GrantView> {
  const why = "the tests say so";
  return ann.call("POST", "/v1/grants", {
    ...{ playbook: name, reason: "outage", why },
    ...(incident === undefined ? {} : { incident }),
  });
}

test("on call nobody knows: a human is needed; the source says yes: it opens by itself; the source says no: it is denied", async () => {
  const waiting = await breakFor("on-duty");
  expect(waiting.state).toBe("pending");
  await ann.end(waiting.grant);
  expect((await push({ oncall: { payments: ["ann@corp"] } })).status).toBe(200);
  const opened = await breakFor("on-duty");
  expect(opened.state).toBe("active");
  const [kept] = await system.storeQuery<{
    evidence: { fact: string; value: string; source: string; ageMs: number }[];
  }>("select evidence from grants where id = $1", [opened.grant]);
  expect(kept?.evidence).toMatchObject([{ fact: "oncall:payments", value: "true", source: "webhook:pager" }]);
  await ann.end(opened.grant);
  await push({ oncall: { payments: ["amy"] } });
  const body = { playbook: "on-duty", reason: "outage", why: "the tests say so" };
  expect(await ann.refused("POST", "/v1/grants", body)).toMatchObject({ status: 403, code: "policy_denied" });
});

test("an incident that a source knows to be open, with a severity that the playbook names, opens; closed, it is denied", async () => {
  await push({
    incidents: { "INC-7": { state: "open", severity: "SEV1" }, "INC-8": { state: "open", severity: "SEV3" } },
  });
  expect(await ann.call("GET", "/v1/incidents")).toMatchObject({
    incidents: expect.arrayContaining([{ ref: "INC-7", severity: "SEV1", summary: "", source: "webhook:pager" }]),
  });
  const opened = await breakFor("severe", "INC-7");
  expect(opened.state).toBe("active");
  await ann.end(opened.grant);
  const body = { playbook: "severe", reason: "outage", why: "the tests say so" };
  expect(await ann.refused("POST", "/v1/grants", { ...body, incident: "INC-8" })).toMatchObject({
    code: "policy_denied",
  });
  expect(await ann.refused("POST", "/v1/grants", body)).toMatchObject({ code: "policy_denied" });
  await push({ incidents: { "INC-7": { state: "closed" } } });
  expect(await ann.refused("POST", "/v1/grants", { ...body, incident: "INC-7" })).toMatchObject({
    code: "policy_denied",
  });
});

test("a push that nobody known signed is answered as such, and is in the log", async () => {
  const { status, text } = await push(
    { oncall: { payments: ["ann"] } },
    `whsec_${Buffer.alloc(32).toString("base64")}`,
  );
  expect(status).toBe(401);
  expect(JSON.parse(text)).toMatchObject({ error: { code: "unauthenticated" } });
  const ida = await system.as("ida");
  const refused = async () => {
    const { entries } = await ida.call<{ entries: { entry: { type: string; data?: unknown } }[] }>("GET", "/v1/log");
    return entries.filter(({ entry }) => entry.type === "evidence.refused").map(({ entry }) => entry.data);
  };
  await expect.poll(refused, { timeout: 20_000 }).toEqual([{ source: "webhook:pager", why: "signature" }]);
});
