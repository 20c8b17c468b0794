import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { GrantView, ReviewAnswer } from "@glasskey/contract";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { runGlass, type Run } from "../testing/run.ts";
import { playbook, startTestSystem, type TestSystem } from "../../server/testing/system.ts";

const LEADS = "{ group: leads }";

let system: TestSystem;
let homes: string;

const run = (person: string, args: readonly string[], input?: string): Promise<Run> =>
  runGlass(homes, person, args, input);

beforeAll(async () => {
  homes = await mkdtemp(join(tmpdir(), "glasskey-review-"));
  system = await startTestSystem(inject("pg18"), {
    "oncall.yaml": "payments: [ann]\nnobody-knows: unknown\n",
    "playbooks/reviewed.yaml": playbook("reviewed", { review: `{ by: ${LEADS}, within: 2d }` }),
    "playbooks/once.yaml": playbook("once", { approve: `{ need: 0, from: ${LEADS} }`, limit: "{ uses: 1, per: 7d }" }),
    "playbooks/incident.yaml": playbook("incident", { when: "{ reason: [outage], incident: [SEV1] }" }),
    "playbooks/hours.yaml": playbook("hours", { when: '{ reason: [outage], hours: { from: "00:00", to: "24:00" } }' }),
    "playbooks/dark.yaml": playbook("dark", {
      who: "{ oncall: nobody-knows }",
      approve: `{ need: 0, from: ${LEADS} }`,
    }),
    "playbooks/sides.yaml": playbook("sides", { approve: "{ need: 2, from: [{ group: leads }, { group: seniors }] }" }),
  });
  const { url, caFile } = system.server();
  for (const person of ["ann", "amy", "bob", "cas", "sam", "ida", "zoe"]) {
    await run(person, ["login", person, "--server", url, "--ca", caFile], "a-secret-of-the-tests\n");
  }
});
afterAll(async () => {
  await system.dispose();
  await rm(homes, { recursive: true, force: true });
});

const BREAK = ["--reason", "outage", "--why", "checkout is down"];

/** One use with a statement in it, closed. */
async function use(playbookName: string): Promise<string> {
  const ann = await system.as("ann");
  const { grant } = await ann.break(playbookName);
  await ann.until(grant, ["active"]);
  const client = await ann.connect(grant);
  await client.query("select 1");
  await client.end();
  await ann.end(grant);
  return grant;
}

test("a review tells the whole story by itself, is signed by somebody else, and cannot be signed again", async () => {
  const grant = await use("reviewed");
  const waiting = await run("bob", ["review"]);
  expect(waiting).toMatchObject({ code: 0, stdout: expect.stringContaining(`glass review ${grant}`) });
  // The log signs what was committed a moment later.
  const told = async (): Promise<string> => (await run("bob", ["review", grant])).stdout;
  await expect.poll(told, { timeout: 20_000 }).toContain("the target itself proved the access gone");
  const story = await told();
  const order = [
    "ann asked for 30m, reason outage",
    "approved by the playbook itself",
    "open until",
    "ann connected",
    "closing: ended, by ann",
    "proved gone",
  ];
  const places = order.map((text) => story.indexOf(text));
  expect(places).not.toContain(-1);
  expect(places).toEqual(places.toSorted((a, b) => a - b));
  expect(story).toMatch(/se_\w{12} .* 1 statement +glass replay/);
  expect(story).toContain("Proof, asked of prod itself");
  expect(story).toContain(`glass review ${grant} --sign`);

  expect(await run("bob", ["review", grant, "--sign", "fine", "--note", "ok then"])).toMatchObject({ code: 2 });
  expect(await run("bob", ["review", grant, "--sign", "justified"])).toMatchObject({ code: 2 });
  expect(await run("ann", ["review", grant, "--sign", "justified", "--note", "all good"])).toMatchObject({ code: 3 });
  expect(await run("zoe", ["review", grant])).toMatchObject({ code: 1, stdout: "" });
  const signed = await run("bob", ["review", grant, "--sign", "not-justified", "--note", "there was no outage"]);
  expect(signed).toMatchObject({ code: 0, stdout: expect.stringContaining("Reviewed") });
  expect(await run("sam", ["review", grant, "--sign", "justified", "--note", "it was fine"])).toMatchObject({
    code: 1,
  });
  const after = JSON.parse((await run("ida", ["review", grant, "--json"])).stdout) as ReviewAnswer;
  expect(after.grant.state).toBe("reviewed");
  expect(after.grant.review).toMatchObject({ signedBy: "bob", verdict: "not_justified", note: "there was no outage" });
  expect((await run("bob", ["review"])).stdout).not.toContain(grant);
});

test("ls says what is needed and why: a quorum with what ends it, an incident, hours, and evidence that nobody has", async () => {
  const grant = await use("once");
  const { stdout } = await run("ann", ["ls"]);
  expect(stdout).toMatch(/once .*needs 2 approvals \(quorum\)/);
  expect(stdout).toMatch(
    /once was used once within 7d without a signed review[^]*It ends when its reviews are signed: glass review/,
  );
  expect(stdout).toMatch(/Needs an open incident: SEV1\.[^]*glass break incident .* --incident REF/);
  expect(stdout).toMatch(/Only .*\(UTC\)/);
  expect(stdout).toMatch(/dark .*needs 1 approval[^]*Nobody can tell now whether you are on call for nobody-knows/);
  await run("sam", ["review", grant, "--sign", "justified", "--note", "looked at it"]);
  expect((await run("ann", ["ls"])).stdout).toMatch(/once .*opens at once/);
});

test("a playbook that needs an incident says so where none is named, and refuses", async () => {
  const refused = await run("ann", ["break", "incident", ...BREAK]);
  expect(refused.code).toBe(3);
  expect(refused.stderr).toMatch(/SEV1/);
});

test("status and approve show the evidence with its source and age, the sides that are missing, and whether anybody was paged", async () => {
  const waiting = await run("ann", ["break", "dark", ...BREAK, "--no-wait", "--json"]);
  expect(waiting.code).toBe(4);
  expect(waiting.stderr).toMatch(/Nobody knows, so a human decides: oncall:nobody-knows unknown, says/);
  const { grant } = JSON.parse(waiting.stdout) as GrantView;
  const status = await run("bob", ["status", grant]);
  expect(status.stdout).toMatch(/evidence +oncall:nobody-knows unknown, says \S+, (?:fresh|\d+s old)/);
  expect(status.stdout).toMatch(/paged +no delivery is confirmed/);
  await run("ann", ["end", grant]);

  const sides = JSON.parse((await run("ann", ["break", "sides", ...BREAK, "--no-wait", "--json"])).stdout) as GrantView;
  const first = await run("cas", ["approve", sides.grant]);
  expect(first).toMatchObject({ code: 0, stdout: expect.stringContaining("waits for 1 more approval") });
  expect(first.stdout).toMatch(/Not spoken for yet: .*seniors/);
  expect((await run("bob", ["status", sides.grant])).stdout).toMatch(/waits for +1 approval of amy, bob, until/);
  expect((await run("bob", ["approve", sides.grant])).stdout).toContain("Approved");
  await (await system.as("ann")).until(sides.grant, ["active"]);
  await run("ann", ["end", sides.grant]);
});

test("the report has every declared reason, for those who may read it", async () => {
  const report = await run("ida", ["report", "--since", "1d"]);
  expect(report.code).toBe(0);
  expect(report.stdout).toMatch(/: (?:1 request|\d+ requests)$/m);
  expect(report.stdout).toMatch(/outage +\d+ +Something does not work/);
  expect(report.stdout).toMatch(/data-loss +0 +Data is being lost or damaged/);
  expect(report.stdout).not.toMatch(/\bann\b|checkout/);
  expect(await run("ida", ["report", "--since", "soon"])).toMatchObject({ code: 2 });
  expect(await run("ann", ["report"])).toMatchObject({ code: 3 });
  expect(JSON.parse((await run("sam", ["report", "--json"])).stdout)).toHaveProperty("reasons");
});
