import { sql } from "kysely";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { endGrant } from "./close.ts";
import { reportOf } from "./report.ts";
import { noteOf, signReview, tellOverdue, waitingReviews } from "./review.ts";
import { sweepGrants } from "./sweep.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";
import { vote } from "./approve.ts";

let rig: TestAccess;
beforeAll(async () => {
  rig = await startTestAccess(inject("pg18"), {
    ...book("repair", { review: "{ by: { group: seniors }, within: 2h }" }),
    ...book("consent", { approve: "{ need: 1, from: { group: leads }, within: 1m }" }),
    ...book("unused"),
    ...book("noisy"),
  });
});
afterAll(() => rig[Symbol.asyncDispose]());

async function use(playbook = "repair", person = "ann"): Promise<string> {
  const id = await rig.break(playbook, { person });
  await rig.until(id, "active");
  await endGrant(rig.access, person, await rig.grant(id), `ended by ${person}`);
  await rig.until(id, "closed");
  return id;
}

const NOTE = "The repair touched two orders; both were checked.";
const sign = (person: string, grant: string, verdict: "justified" | "not_justified" = "justified", note = NOTE) =>
  signReview(rig.access, person, grant, { verdict, note });
const review = (grant: string) =>
  rig.store.selectFrom("reviews").selectAll().where("grant_id", "=", grant).executeTakeFirst();

test("every use opens a review in the transaction in which it becomes active, due from there", async () => {
  const id = await use();
  const row = await review(id);
  expect((row?.due_at.getTime() ?? 0) - (row?.opened_at.getTime() ?? 0)).toBe(7_200_000);
  const types = await rig.types(id);
  expect(types.indexOf("review.opened")).toBe(types.indexOf("grant.active") + 1);
  await sign("dot", id);
});

test("a grant that never was active has nothing to look back on", async () => {
  rig.target.down = true;
  const failed = await rig.break("repair");
  await rig.until(failed, "closing");
  rig.target.down = false;
  await rig.until(failed, "closed");
  expect(await review(failed)).toBeUndefined();
  await expect(sign("sam", failed)).rejects.toMatchObject({ code: "conflict" });
});

test("signed by somebody of review.by, or a security officer, it is over: the grant is reviewed and never changes again", async () => {
  for (const [person, verdict] of [
    ["dot", "justified"],
    ["sam", "not_justified"],
  ] as const) {
    const id = await use();
    await sign(person, id, verdict);
    expect((await rig.grant(id)).state).toBe("reviewed");
    expect(await review(id)).toMatchObject({ signed_by: person, verdict });
    const types = await rig.types(id);
    expect(types.slice(-2)).toEqual(["review.signed", "grant.reviewed"]);
    const signed = (await rig.entries(id)).find(({ type }) => type === "review.signed");
    expect(signed).toMatchObject({ data: { verdict, noteSha256: expect.stringMatching(/^[0-9a-f]{64}$/) } });
    await expect(sign("sam", id)).rejects.toMatchObject({ code: "conflict" });
  }
});

test("lesson 7: the requester never signs their own review, not as a security officer and not under an alias; nor does anybody else", async () => {
  const id = await use("repair", "amy"); // requester, approver, admin and security officer
  for (const person of ["amy", "amy.admin", "AMY", "ann", "cas", "ida", "zoe", "nobody"]) {
    await expect(sign(person, id), person).rejects.toMatchObject({ code: "policy_denied" });
  }
  // Nor could a defect in the code: the store refuses it.
  await expect(
    rig.store
      .updateTable("reviews")
      .set({ signed_at: sql`now()`, signed_by: "amy", verdict: "justified" })
      .where("grant_id", "=", id)
      .execute(),
  ).rejects.toThrow(/check/);
  expect((await rig.grant(id)).state).toBe("closed");
  await sign("sam", id);
});

test("only a closed grant is reviewed: an open one is ended first, and one whose revocation is not proved waits for the proof", async () => {
  const id = await rig.break("repair");
  await rig.until(id, "active");
  await expect(sign("sam", id)).rejects.toMatchObject({ code: "conflict", next: expect.stringContaining("glass end") });
  rig.target.down = true;
  await endGrant(rig.access, "ann", await rig.grant(id), "done");
  await expect(sign("sam", id)).rejects.toMatchObject({
    code: "conflict",
    next: expect.stringContaining("not proved"),
  });
  rig.target.down = false;
  await rig.until(id, "closed");
  await sign("sam", id);
});

test("20 signatures at the same moment are one, and the note of the one who signed is kept, encrypted", async () => {
  const id = await use();
  const tries = await Promise.allSettled(
    Array.from({ length: 20 }, (_, n) =>
      sign(n % 2 === 0 ? "sam" : "dot", id, n % 2 === 0 ? "justified" : "not_justified", `looked ${n}`),
    ),
  );
  expect(tries.filter((one) => one.status === "fulfilled")).toHaveLength(1);
  const row = await review(id);
  const winner = tries.findIndex((one) => one.status === "fulfilled");
  expect(row).toMatchObject({ signed_by: winner % 2 === 0 ? "sam" : "dot" });
  if (row !== undefined) expect(noteOf(rig.access, row)).toBe(`looked ${winner}`);
  expect((await rig.types(id)).filter((type) => type === "review.signed")).toHaveLength(1);
  expect(row?.note?.includes("looked")).toBe(false);
  expect(JSON.stringify(await rig.entries(id))).not.toContain("looked");
  for (const note of ["", "  ", "ok", "x".repeat(2_001)]) {
    await expect(sign("sam", id, "justified", note)).rejects.toMatchObject({ code: "usage" });
  }
});

test("an overdue review is told once, by an alarm, a notice and the log, in any number of processes; signing it ends the alarm", async () => {
  const id = await use();
  await tellOverdue(rig.access);
  expect(await rig.types(id)).not.toContain("review.overdue");
  await rig.age(id, 7_300_000);
  await Promise.all([tellOverdue(rig.access), tellOverdue(rig.second()), sweepGrants(rig.access)]);
  await tellOverdue(rig.access);
  expect((await rig.types(id)).filter((type) => type === "review.overdue")).toHaveLength(1);
  const told = (await rig.notices(id)).filter(({ event }) => event === "review_overdue");
  expect(told).toHaveLength(1);
  expect(told[0]?.text).toContain(`glass review ${id}`);
  expect((await rig.notices()).filter(({ event, text }) => event === "alarm" && text.includes(id))).toHaveLength(1);
  const alarms = () =>
    rig.store
      .selectFrom("alarms")
      .select("key")
      .where("key", "=", `review ${id}`)
      .where("cleared_at", "is", null)
      .execute();
  expect(await alarms()).toHaveLength(1);
  await sign("dot", id);
  expect(await alarms()).toHaveLength(0);
  expect((await rig.notices(id)).at(-1)?.event).toBe("review_signed");
  const about = (await rig.notices()).filter(({ text }) => text.includes(id));
  expect(about.map(({ event }) => event)).toEqual(["alarm", "alarm_over"]);
  expect(about[1]?.text).toBe(about[0]?.text); // by which a pager knows which alert it is
});

test("reviews that wait are listed, the most overdue first, to people who may see them, with who may sign", async () => {
  const [old, fresh] = [await use(), await use()];
  await rig.age(old, 7_300_000);
  const list = async (person: string) =>
    (await waitingReviews(rig.access, person)).map(({ grant, maySign, overdue }) => [grant.id, maySign, overdue]);
  expect(await list("dot")).toEqual([
    [old, true, true],
    [fresh, true, false],
  ]);
  expect(await list("ann")).toEqual([
    [old, false, true],
    [fresh, false, false],
  ]);
  expect(await list("ida")).toEqual([
    [old, false, true],
    [fresh, false, false],
  ]);
  expect(await list("zoe")).toEqual([]);
  await sign("dot", old);
  expect(await list("sam")).toEqual([[fresh, true, false]]);
  await sign("dot", fresh);
});

test("however many reviews of other playbooks wait, nobody's own list is filled with what they may not see", async () => {
  const id = await use();
  const other = await use("noisy", "pat");
  const copies = await sql<{ id: string }>`
    insert into grants select (jsonb_populate_record(null::grants, to_jsonb(g) || jsonb_build_object('id', 'copy ' || n))).*
    from grants g, generate_series(1, 500) n where g.id = ${other} returning id`.execute(rig.store);
  await sql`insert into reviews (grant_id, playbook, requester, due_at)
    select id, playbook, requester, now() - interval '1 hour' from grants where id like 'copy %'`.execute(rig.store);
  expect(copies.rows).toHaveLength(500);
  for (const person of ["dot", "ann"]) {
    expect((await waitingReviews(rig.access, person)).map(({ grant }) => grant.id)).toEqual([id]);
  }
  await sql`delete from reviews where grant_id like 'copy %'`.execute(rig.store);
  await sql`delete from grants where id like 'copy %'`.execute(rig.store);
  await sign("dot", id);
  await sign("sam", other);
});

test("a review can be signed when its playbook is gone, by a security officer", async () => {
  const id = await use();
  await rig.policy({ "playbooks/repair.yaml": undefined });
  await expect(sign("dot", id)).rejects.toMatchObject({ code: "policy_denied" });
  await sign("sam", id);
  await rig.policy({});
});

test("the report counts uses by every declared reason code and playbook, also those without one, and names no person", async () => {
  const before = await reportOf(rig.access, 3_600_000);
  const id = await rig.break("consent", { reason: "data-loss" });
  await vote(rig.access, "bob", id, "approve");
  await rig.until(id, "active");
  await endGrant(rig.access, "ann", await rig.grant(id), "done");
  const refused = await rig.break("consent", { reason: "data-loss" });
  await vote(rig.access, "cas", refused, "deny");
  const report = await reportOf(rig.access, 3_600_000);
  const reasons = Object.fromEntries(report.reasons.map(({ code, uses, requests }) => [code, { uses, requests }]));
  expect(Object.keys(reasons)).toEqual(["data-loss", "outage"]);
  expect(reasons["data-loss"]).toEqual({ uses: 1, requests: 2 });
  const unused = report.playbooks.find(({ playbook }) => playbook === "unused");
  expect(unused).toEqual({ playbook: "unused", uses: 0, requests: 0, notJustified: 0, unsigned: 0, overdue: 0 });
  expect(report.approvals).toEqual({ given: before.approvals.given + 1, denied: before.approvals.denied + 1 });
  expect(report.requests).toMatchObject({ total: before.requests.total + 2, denied: before.requests.denied + 1 });
  expect(report.medianApproveMs).toBeGreaterThan(0);
  expect(report.playbooks.find(({ playbook }) => playbook === "repair")?.notJustified).toBeGreaterThan(0);
  expect(JSON.stringify(report)).not.toMatch(/\b(ann|bob|cas|amy|checkout)\b/);
  // What lies before the period is not in it.
  await rig.age(id, 7_200_000);
  await rig.age(refused, 7_200_000);
  expect((await reportOf(rig.access, 3_600_000)).requests.total).toBe(before.requests.total);
});
