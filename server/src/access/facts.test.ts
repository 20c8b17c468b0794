import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { vote } from "./approve.ts";
import { endGrant } from "./close.ts";
import { extendGrant } from "./extend.ts";
import { countUsage, stillHolding } from "./facts.ts";
import { playbooksFor } from "./list.ts";
import { signReview } from "./review.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";
import { waitingFor } from "./waiting.ts";

const OPEN = "{ need: 0, from: { group: leads } }";

let rig: TestAccess;
beforeAll(async () => {
  rig = await startTestAccess(inject("pg18"), {
    ...book("duty", { who: "{ oncall: payments }", approve: "{ need: 1, from: { group: leads } }" }),
    ...book("auto", { who: "{ oncall: payments }", approve: OPEN, time: "{ max: 30m, extend: 2x10m }" }),
    ...book("incident", { when: "{ reason: [outage], incident: [SEV1, SEV2] }", approve: OPEN }),
    ...book("single", { limit: "{ concurrent: 1 }" }),
    ...book("limited", { limit: "{ uses: 2, per: 7d }", approve: OPEN }),
    ...book("fresh", { limit: "{ uses: 1, per: 7d }", approve: OPEN }),
    ...book("raced", { limit: "{ uses: 2, per: 7d }", approve: OPEN }),
    ...book("cool", { limit: "{ cooldown: 1h }", approve: OPEN }),
    ...book("late", { review: "{ by: { group: leads }, within: 1h }", approve: OPEN }),
    ...book("waits", { limit: "{ uses: 1, per: 7d }", approve: "{ need: 1, from: { group: leads } }" }),
  });
});
afterAll(() => rig[Symbol.asyncDispose]());

const yes = (person: string, grant: string) => vote(rig.access, person, grant, "approve");

async function close(grant: string): Promise<void> {
  await endGrant(rig.access, "ann", await rig.grant(grant), "ended by ann");
  await rig.until(grant, "closed");
}

async function use(playbook: string, person = "ann"): Promise<string> {
  const grant = await rig.break(playbook, { person });
  await rig.until(grant, "active");
  await close(grant);
  return grant;
}

const sign = (grant: string) => signReview(rig.access, "sam", grant, { verdict: "justified", note: "looked at it" });

test("a grant names the policy that its request was decided by, also where another comes into force meanwhile", async () => {
  const before = rig.access.policy().hash;
  rig.evidence.during = () => rig.policy(book("another"));
  const id = await rig.break("duty");
  rig.evidence.during = () => {};
  expect(rig.access.policy().hash).not.toBe(before);
  expect((await rig.grant(id)).bundle).toBe(before);
  const [entry] = await rig.entries(id);
  expect(entry).toMatchObject({ data: { bundle: before } });
  await rig.policy({});
  await endGrant(rig.access, "ann", await rig.grant(id), "taken back");
});

test("who takes request after request back does not call people without end; others still ask, and so may they later", async () => {
  const asked: string[] = [];
  for (let n = 0; n < 20; n += 1) {
    const id = await rig.break("waits", { person: "pat" });
    await endGrant(rig.access, "pat", await rig.grant(id), "taken back");
    asked.push(id);
  }
  await expect(rig.break("waits", { person: "pat" })).rejects.toMatchObject({ code: "too_many_attempts" });
  const other = await rig.break("waits");
  await endGrant(rig.access, "ann", await rig.grant(other), "taken back");
  await rig.age(asked[0] ?? "", 600_000);
  const again = await rig.break("waits", { person: "pat" });
  await endGrant(rig.access, "pat", await rig.grant(again), "taken back");
  for (const id of [...asked, again]) await rig.age(id, 600_000);
});

test("the evidence of a request is kept on the grant with source and age, and the log has it without the incident's name", async () => {
  rig.evidence.incidents = { "INC-7/secret-name": "SEV1" };
  const id = await rig.break("incident", { incident: "INC-7/secret-name" });
  const grant = await rig.until(id, "active");
  expect(grant.evidence).toEqual([
    expect.objectContaining({
      fact: "incident:INC-7/secret-name",
      value: "true",
      severity: "SEV1",
      source: "static",
      ageMs: 0,
    }),
  ]);
  expect(grant.bundle).toBe(rig.access.policy().hash);
  const [entry] = await rig.entries(id);
  expect(entry).toMatchObject({
    type: "grant.requested",
    data: { evidence: [{ fact: "incident", value: "true", severity: "SEV1", source: "static", ageMs: 0 }] },
  });
  expect(JSON.stringify(await rig.entries(id))).not.toContain("secret-name");
  await close(id);
  rig.evidence.incidents = {};
});

test("an outage between request and approval neither helps nor harms; what is now known to be false denies", async () => {
  const outage = await rig.break("duty");
  rig.evidence.down = true;
  expect(await yes("bob", outage)).toEqual({ decided: true });
  await rig.until(outage, "active");
  rig.evidence.down = false;
  await close(outage);

  const shiftEnded = await rig.break("duty");
  rig.evidence.oncall = { payments: ["pat"] };
  expect(await yes("bob", shiftEnded)).toEqual({ decided: true });
  expect(await rig.grant(shiftEnded)).toMatchObject({ state: "failed", end_cause: "not_eligible" });
  rig.evidence.oncall = { payments: ["ann"] };
});

test("what nobody knew at the request needs a human, and stays so when the source is back with a no", async () => {
  rig.evidence.down = true;
  const id = await rig.break("auto");
  expect(await rig.grant(id)).toMatchObject({ state: "pending", need: 1 });
  await yes("bob", id);
  await rig.until(id, "active");
  await close(id);

  const stranger = await rig.break("auto", { person: "pat" }); // unknown: asks for a human instead
  rig.evidence.down = false;
  await yes("bob", stranger);
  expect(await rig.grant(stranger)).toMatchObject({ state: "failed", end_cause: "not_eligible" });
  await expect(rig.break("auto", { person: "pat" })).rejects.toMatchObject({ code: "policy_denied" });
});

test("what a source tells now counts before what it told at the request; what it cannot tell now is as it was", () => {
  const then = {
    oncall: { a: "true", b: "false", c: "unknown" },
    incident: { state: "open", severity: "SEV1" },
    observations: [],
  } as const;
  const dark = {
    oncall: { a: "unknown", b: "unknown", c: "unknown" },
    incident: { state: "unknown" },
    observations: [],
  } as const;
  expect(stillHolding(dark, then)).toEqual({ ...then, observations: [] });
  const light = {
    oncall: { a: "false", b: "true", c: "true" },
    incident: { state: "none" },
    observations: [],
  } as const;
  expect(stillHolding(light, then)).toEqual(light);
  expect(stillHolding({ ...light, oncall: {} }, then).oncall).toEqual(then.oncall);
  // A rota with a name from JavaScript's own objects is a rota like any other.
  expect(
    stillHolding({ ...dark, oncall: { constructor: "unknown" as const } }, { ...then, oncall: {} }).oncall,
  ).toEqual({
    constructor: "unknown",
  });
});

test("an extension asks the sources again: what was true at the request does not carry it", async () => {
  const id = await rig.break("auto");
  await rig.until(id, "active");
  expect(await extendGrant(rig.access, "ann", id)).toEqual({ extended: true });
  rig.evidence.oncall = { payments: [] };
  await expect(extendGrant(rig.access, "ann", id)).rejects.toMatchObject({ code: "policy_denied" });
  rig.evidence.oncall = { payments: ["ann"] };
  rig.evidence.down = true;
  expect(await extendGrant(rig.access, "ann", id)).toEqual({ extended: false }); // a human has to agree
  rig.evidence.down = false;
  expect(await waitingFor(rig.access, await rig.grant(id))).toMatchObject({ need: 1, missing: 1 });
  await close(id);
});

test("where only the incident is missing, the refusal names the open ones; who could not use the playbook is told of none", async () => {
  rig.evidence.incidents = Object.fromEntries([
    ...Array.from({ length: 20 }, (_, n) => [`INC-${n}`, "SEV1"]),
    ["INC-minor", "SEV3"],
  ]) as Record<string, string>;
  const refused = (person: string, incident?: string) =>
    rig.break("incident", { person, incident }).then(
      () => "let in",
      (error: { code: string; next?: string }) => `${error.code} ${error.next ?? ""}`,
    );
  const told = await refused("ann");
  expect(told).toMatch(/^policy_denied Open now: INC-0 \(SEV1, summary of INC-0, says static\)/);
  expect(told).toContain("12 more");
  expect(told).not.toContain("INC-minor");
  expect(await refused("ann", "INC-unheard-of")).toContain("INC-0");
  expect(await refused("zoe")).not.toContain("INC-");
  expect(await refused("ann", "INC-minor")).not.toContain("INC-0"); // it is open, only not severe enough
  rig.evidence.incidents = { "INC-bare": "SEV1" };
  expect(await refused("ann")).toContain("INC-bare (SEV1, says static)");
  rig.evidence.incidents = {};
  expect(await refused("ann")).toContain("No source knows of an open incident with severity SEV1 or SEV2");
  const entries = (await rig.entries()).filter(({ type }) => type === "grant.refused");
  expect(entries.length).toBeGreaterThan(3);
});

test("of 50 requests at the same moment for a playbook with concurrent: 1, one gets in, in any number of processes", async () => {
  const { requestGrant } = await import("./request.ts");
  const processes = [rig.access, rig.second()];
  const tries = await Promise.allSettled(
    Array.from({ length: 50 }, (_, n) =>
      requestGrant(processes[n % 2] ?? rig.access, {
        ...{ person: n % 3 === 0 ? "ann" : "pat", playbook: "single", reason: "outage", why: "checkout is down" },
      }),
    ),
  );
  const won = tries.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  expect(won).toHaveLength(1);
  for (const one of tries) if (one.status === "rejected") expect(one.reason).toMatchObject({ code: "policy_denied" });
  await close(won[0] ?? "");
  await use("single"); // free again
});

test("the third use within the period without a signed review needs a quorum, until somebody signs", async () => {
  const first = await use("limited");
  await use("limited");
  const third = await rig.break("limited");
  const grant = await rig.grant(third);
  expect(grant).toMatchObject({ state: "pending", need: 2 });
  expect(grant.quorum).toHaveLength(1);
  await expect(yes("ann", third)).rejects.toMatchObject({ code: "policy_denied" });
  expect(await yes("bob", third)).toEqual({ decided: false });
  const listed = (await playbooksFor(rig.access, "ann")).find(({ playbook }) => playbook.name === "limited");
  expect(listed?.decision).toMatchObject({ allow: true, need: 2 });
  expect(listed?.quorum.join(" ")).toMatch(/2 times[^]*glass review/);
  expect(await yes("cas", third)).toEqual({ decided: true });
  await rig.until(third, "active");
  await close(third);
  await sign(first);
  await sign(third);
  expect(await rig.grant(await use("limited"))).toMatchObject({ need: 0 });
});

test("uses that begin at the same moment are counted: only as many open by themselves as the limit says", async () => {
  const grants = await Promise.all(Array.from({ length: 6 }, () => rig.break("raced")));
  const rows = await Promise.all(grants.map((id) => rig.grant(id)));
  expect(rows.filter(({ need }) => need === 0)).toHaveLength(2);
  expect(rows.filter(({ state, need }) => state === "pending" && need === 2)).toHaveLength(4);
});

test("a request that became a quorum while it waited needs the second person: what counts is the decision at the opening", async () => {
  const [one, two] = [await rig.break("waits"), await rig.break("waits", { person: "pat" })];
  await yes("bob", one);
  await rig.until(one, "active");
  await close(one);
  expect(await rig.grant(two)).toMatchObject({ state: "pending", need: 1 });
  expect(await yes("bob", two)).toEqual({ decided: false });
  expect(await rig.grant(two)).toMatchObject({ state: "pending", need: 2 });
  expect(await waitingFor(rig.access, await rig.grant(two))).toMatchObject({ need: 2, missing: 1 });
  expect(await yes("cas", two)).toEqual({ decided: true });
  await rig.until(two, "active");
  await close(two);
});

test("a person who comes back before the cool-down is over needs a quorum; another person does not", async () => {
  const id = await use("cool");
  const soon = await rig.break("cool");
  expect(await rig.grant(soon)).toMatchObject({ state: "pending", need: 2 });
  await endGrant(rig.access, "ann", await rig.grant(soon), "never mind");
  await use("cool", "pat");
  await rig.age(id, 3_700_000);
  expect(await rig.grant(await use("cool"))).toMatchObject({ need: 0 });
});

test("an overdue review makes the playbook a quorum for everybody, until it is signed", async () => {
  const id = await use("late");
  await rig.age(id, 3_700_000);
  const waiting = await rig.break("late", { person: "pat" });
  expect(await rig.grant(waiting)).toMatchObject({ state: "pending", need: 2 });
  await sign(id);
  // The next yes is decided on what is so now: one is enough again, since the playbook itself asks for nobody.
  expect(await yes("bob", waiting)).toEqual({ decided: true });
  await rig.until(waiting, "active");
  await close(waiting);
});

test("a grant is not held against itself, and one that was never active was no use", async () => {
  rig.target.down = true;
  const failed = await rig.break("fresh", { person: "pat" });
  await rig.until(failed, "closing");
  rig.target.down = false;
  await rig.until(failed, "closed");
  const { usage } = await countUsage(rig.access, rig.store, { person: "pat", playbooks: ["fresh", "nothing"] });
  expect(usage.get("fresh")).toEqual({ unsigned: 0, open: 0, overdue: 0 });
  expect(usage.get("nothing")).toEqual({ unsigned: 0, open: 0, overdue: 0 });
  const id = await rig.break("cool", { person: "pat" });
  const about = { person: "pat", playbooks: ["cool"] };
  expect((await countUsage(rig.access, rig.store, about)).usage.get("cool")?.open).toBe(1);
  expect((await countUsage(rig.access, rig.store, { ...about, except: id })).usage.get("cool")?.open).toBe(0);
  await endGrant(rig.access, "pat", await rig.grant(id), "done");
});
