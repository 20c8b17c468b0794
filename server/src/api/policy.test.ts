import { createHmac } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { request as httpsRequest } from "node:https";
import { join } from "node:path";
import type { PolicyHistory, PolicyInForce, PolicyReload } from "@glasskey/contract";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startOrigin, type Origin } from "../bundles/testing/origin.ts";
import { readPolicyFiles } from "../playbooks/load.ts";
import { startServer, type RunningServer } from "../main.ts";
import { playbook, startTestSystem, type Client, type TestSystem } from "../../testing/system.ts";

let system: TestSystem;
let origin: Origin;
let second: RunningServer | undefined;
let ann: Client;
let ida: Client;

beforeAll(async () => {
  [system, origin] = await Promise.all([startTestSystem(inject("pg18")), startOrigin()]);
  [ann, ida] = [await system.as("ann"), await system.as("ida")];
});
afterAll(async () => {
  await second?.stop();
  await system.dispose();
  await origin.dispose();
});

const inForce = (as = ida): Promise<PolicyInForce> => as.call("GET", "/v1/policy");
const history = async (): Promise<PolicyHistory["changes"]> =>
  (await ida.call<PolicyHistory>("GET", "/v1/policy/history")).changes;
const reload = (): Promise<PolicyReload> => ida.call("POST", "/v1/policy/reload");

async function until(check: () => Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 800; tries += 1) {
    if (await check()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  throw new Error(`it never came: ${system.warnings.join("; ")}`);
}

/** What the webhook answers, whole. */
async function hook(server: RunningServer, body: string | Buffer, headers: Record<string, string>): Promise<string> {
  const ca = await readFile(server.caFile, "utf8");
  return new Promise((resolve, reject) => {
    const request = httpsRequest(new URL("/v1/policy/hook", server.url), { method: "POST", ca, headers });
    request.once("error", reject);
    request.once("response", (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      response.once("end", () => resolve(`${response.statusCode} ${text}`));
      response.once("error", reject);
    });
    request.end(body);
  });
}

test("what is in force is shown to auditors and admins, with who changed it and who gained, and to nobody else", async () => {
  expect(await inForce()).toMatchObject({ generation: 1, commit: null, source: `folder ${system.config.policyDir}` });
  await system.writePolicy({ "playbooks/repair.yaml": playbook("repair", { time: "{ max: 45m }" }) });
  expect(await reload()).toMatchObject({ inForce: true, problems: null });
  const [newest, first] = await history();
  expect(newest).toMatchObject({ generation: 2, author: "ida", widened: true });
  expect(first).toMatchObject({ generation: 1, author: null, widened: null, plan: null });
  expect(JSON.stringify(newest?.plan)).toMatch(/time\.max/);
  for (const path of ["/v1/policy", "/v1/policy/history"])
    expect(await ann.refused("GET", path)).toMatchObject({ code: "policy_denied" });
  expect(await ann.refused("POST", "/v1/policy/reload")).toMatchObject({ code: "policy_denied" });
});

test("a folder that does not load is refused with all its mistakes, alarmed, and the old policy goes on, also after a restart", async () => {
  const before = await inForce();
  await system.writePolicy({ "playbooks/repair.yaml": playbook("repair", { time: "{ max: soon }" }) });
  expect(await reload()).toMatchObject({
    inForce: false,
    hash: before.hash,
    problems: expect.stringMatching(/repair\.yaml/),
  });
  const { alarms } = await ida.call<{ alarms: { text: string }[] }>("GET", "/v1/alarms");
  expect(alarms.map(({ text }) => text).join()).toMatch(/does not load/);
  await system.stop();
  await system.start();
  [ann, ida] = [await system.as("ann"), await system.as("ida")];
  expect((await inForce()).hash).toBe(before.hash);
  await system.writePolicy({ "playbooks/repair.yaml": playbook("repair") });
  expect(await reload()).toMatchObject({ inForce: true });
  expect((await ida.call<{ alarms: unknown[] }>("GET", "/v1/alarms")).alarms).toEqual([]);
});

test("a second server with a signed git repository: its commit is in force everywhere, and closes what it narrowed", async () => {
  const open = await ann.break("repair");
  expect(open.state).toBe("active");
  const { files } = await readPolicyFiles(system.config.policyDir);
  const inRepository = (changes: Record<string, string>): Record<string, string> =>
    Object.fromEntries(
      [...files, ...Object.entries(changes)]
        .filter(([path]) => !path.startsWith("/"))
        .map(([path, text]) => [`policy/${path}`, text.replaceAll(system.target.caFile, "./target-ca.pem")]),
    );
  await origin.commit(
    {
      ...inRepository({ "playbooks/repair.yaml": playbook("repair", { who: "{ group: leads }" }) }),
      "policy/targets/target-ca.pem": await readFile(system.target.caFile, "utf8"),
    },
    { ssh: "ann" },
  );
  const secret = join(origin.folder, "hook-secret");
  await writeFile(secret, "what the git server knows\n");
  second = await startServer(
    {
      ...{ ...system.config, dataDir: join(origin.folder, "data") },
      policyGit: { ...origin.source, hookSecret: `\${file:${secret}}` },
    },
    (line) => system.warnings.push(`second: ${line}`),
  );
  await until(async () => (await inForce()).commit !== null);
  expect(await inForce()).toMatchObject({
    author: "Ann Author <ann@shop.example>",
    signer: expect.stringMatching(/^SHA256:/),
  });
  expect((await ann.until(open.grant, ["closed"])).endCause).toBe("drift");
  expect(
    await ann.refused("POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "checkout is down" }),
  ).toMatchObject({
    code: "policy_denied",
  });
});

test("the webhook answers the same to everybody, and only a right signature makes the server look", async () => {
  if (second === undefined) throw new Error("the test before failed");
  const server = second;
  const before = await inForce();
  await origin.commit({ "policy/playbooks/repair.yaml": playbook("repair") }, { ssh: "bob" });
  const body = JSON.stringify({ ref: "refs/heads/main" });
  const json = { "content-type": "application/json" };
  const signed = (key: string): string => `sha256=${createHmac("sha256", key).update(body).digest("hex")}`;
  const asks: [string | Buffer, Record<string, string>][] = [
    ...([
      [body, json],
      ["", {}],
      ["{", json],
    ] as [string, Record<string, string>][]),
    [body, { ...json, "x-hub-signature-256": signed("a guess") }],
    [body, { ...json, "x-gitlab-token": "what the git server knows" }],
    [Buffer.alloc(2 * 1024 * 1024, "a"), json],
  ];
  for (const [text, headers] of asks) expect(await hook(server, text, headers)).toBe("200 {}");
  expect(await hook(system.server(), body, { ...json, "x-hub-signature-256": signed("a guess") })).toBe("200 {}");
  expect((await inForce()).hash).toBe(before.hash);
  expect(await hook(server, body, { ...json, "x-hub-signature-256": signed("what the git server knows") })).toBe(
    "200 {}",
  );
  await until(async () => (await inForce()).hash !== before.hash);
});
