import { sql } from "kysely";
import { afterEach, beforeEach, expect, inject, test } from "vitest";
import { vote } from "./approve.ts";
import { closeDrifted } from "./drift.ts";
import { extendGrant } from "./extend.ts";
import { TEAM, book, startTestAccess, type TestAccess } from "./testing/access.ts";

const DUTY = { who: "{ oncall: payments }" };

let t: TestAccess;
beforeEach(async () => {
  t = await startTestAccess(inject("pg18"), {
    ...book("repair"),
    ...book("duty", DUTY),
    ...book("sev", { when: "{ reason: [outage], incident: [SEV1, SEV2] }" }),
    ...book("late", { when: "{ reason: [outage], hours: { days: [mon, tue, wed, thu, fri, sat, sun] } }" }),
    ...book("longer", { time: "{ max: 10m, extend: 2x10m }" }),
  });
});
afterEach(() => t[Symbol.asyncDispose]());

type Files = Parameters<TestAccess["policy"]>[0];

/** Opens a grant, puts another policy into force, and says how the grant is then, and why. */
async function after(
  playbook: string,
  change: Files,
  request: Parameters<TestAccess["break"]>[1] = {},
): Promise<string> {
  const grant = await t.break(playbook, request);
  await t.until(grant, "active");
  await t.policy(change);
  await closeDrifted(t.access, t.access.policy());
  const row = await t.grant(grant);
  if (row.state === "active") return "active";
  expect(row.end_cause).toBe("drift");
  await t.until(grant, "closed");
  return row.end_text ?? "";
}

test("a grant whose playbook was removed is closed, and its credential is gone from the target", async () => {
  expect(await after("repair", { "playbooks/repair.yaml": undefined })).toMatch(/removed/);
  expect(t.target.live.size).toBe(0);
});

test("a grant whose playbook was narrowed is closed: who, reason, severity, length, cap, scope, and a new denial", async () => {
  const narrowed: Record<string, Files> = {
    who: book("repair", { who: "{ group: leads }" }),
    reason: book("repair", { when: "{ reason: [data-loss] }" }),
    length: book("repair", { time: "{ max: 5m }" }),
    scope: book("repair", { scope: "{ role: ro }" }),
    incident: book("repair", { when: "{ reason: [outage], incident: [SEV1] }" }),
    denial: {
      "policy.yaml": `${String(TEAM["policy.yaml"])}forbid: [{ rule: freeze, why: A freeze, who: { group: payments } }]\n`,
    },
    people: {
      "people.yaml": String(TEAM["people.yaml"]).replace(
        "name: ann, roles: [requester]",
        "name: ann, roles: [auditor]",
      ),
      "oncall.yaml": "payments: [pat]\n",
    },
  };
  for (const [what, change] of Object.entries(narrowed)) {
    await t.policy({});
    expect(await after("repair", change), what).not.toBe("active");
  }
  t.evidence.incidents = { "INC-1": "SEV2" };
  await t.policy({});
  const only1 = book("sev", { when: "{ reason: [outage], incident: [SEV1] }" });
  expect(await after("sev", only1, { incident: "INC-1" })).not.toBe("active");
});

test("a wider playbook does not widen an open grant, which stays as it was approved", async () => {
  const grant = await t.break("repair");
  const before = await t.until(grant, "active");
  await t.policy({
    ...book("repair", { time: "{ max: 4h, idle: 2h }", who: "{ group: [payments, leads] }", approve: "{ need: 0 }" }),
  });
  await closeDrifted(t.access, t.access.policy());
  const now = await t.grant(grant);
  expect(now.state).toBe("active");
  for (const key of ["ends_at", "max_ms", "idle_ms", "playbook_hash"] as const) expect(now[key]).toEqual(before[key]);
});

test("a wider playbook extends no open grant: neither more often, nor without the yes that it was approved with", async () => {
  const consent = { approve: "{ need: 1, from: { group: leads } }", time: "{ max: 30m, extend: 1x30m }" };
  await t.policy(book("repair", consent));
  const grant = await t.break("repair", { forMs: 300_000 });
  await vote(t.access, "bob", grant, "approve");
  const before = await t.until(grant, "active");
  await t.policy(book("repair", { approve: "{ need: 0 }", time: "{ max: 30m, extend: 5x30m }" }));
  await closeDrifted(t.access, t.access.policy());
  await expect(extendGrant(t.access, "ann", grant)).rejects.toMatchObject({ code: "conflict" });
  expect(await t.grant(grant)).toMatchObject({ state: "active", ends_at: before.ends_at, extension_round: null });
});

test("a policy that comes into force while an opening is being stored closes that grant, too", async () => {
  const meeting = 77_001;
  await sql`create function held() returns trigger language plpgsql as
    'begin perform pg_advisory_xact_lock(${sql.raw(String(meeting))}); return new; end'`.execute(t.store);
  await sql`create trigger held before insert on leases for each row execute function held()`.execute(t.store);
  const opening = await t.store.transaction().execute(async (tx) => {
    await sql`select pg_advisory_xact_lock(${meeting})`.execute(tx);
    const breaking = t.break("repair"); // has decided, and cannot commit yet
    for (;;) {
      const { rows } = await sql`select from pg_locks where locktype = 'advisory' and objid = ${meeting}
        and not granted`.execute(t.store);
      if (rows.length > 0) break;
    }
    await t.policy(book("repair", { who: "{ group: leads }" }));
    await closeDrifted(t.access, t.access.policy());
    return { breaking };
  });
  const grant = await t.until(await opening.breaking, "closed");
  expect(grant).toMatchObject({ end_cause: "drift", active_at: null });
  expect(t.target.live.size).toBe(0);
});

test("a wider scope does not come to an open grant, either: it is closed, and another one has to be asked for", async () => {
  expect(await after("repair", book("repair", { scope: "{ role: rw, also: everything }" }))).toMatch(/scope/);
});

test("what was true at the request stays true: the end of a shift or of an incident, or an outage, closes nothing", async () => {
  t.evidence.incidents = { "INC-1": "SEV1" };
  const [duty, incident] = [await t.break("duty"), await t.break("sev", { incident: "INC-1" })];
  for (const grant of [duty, incident]) await t.until(grant, "active");
  [t.evidence.oncall, t.evidence.incidents] = [{ payments: ["pat"] }, {}];
  await t.policy({ "oncall.yaml": "payments: [pat]\n" });
  await closeDrifted(t.access, t.access.policy());
  t.evidence.down = true;
  await closeDrifted(t.access, t.access.policy());
  expect([(await t.grant(duty)).state, (await t.grant(incident)).state]).toEqual(["active", "active"]);
});

test("a rota that only the new playbook names helps who is on it, and nobody else", async () => {
  const oncall = (who: string): Files => ({
    "oncall.yaml": `payments: [ann]\nplatform: [${who}]\n`,
    ...book("duty", { who: "{ oncall: platform }" }),
  });
  expect(await after("duty", oncall("ann"))).toBe("active");
  await t.policy({});
  expect(await after("duty", oncall("pat"))).not.toBe("active");
});

test("hours and use do not drift: the hour of the request counts, not the hour now, and no overdue review closes what is open", async () => {
  const noon = book("repair", {
    when: '{ reason: [outage], hours: { days: [mon], from: "11:30", to: "12:30" } }',
    limit: "{ uses: 1, per: 7d }",
  });
  const grant = await t.break("repair");
  await t.until(grant, "active");
  const requestedAt = (time: string): Promise<unknown> =>
    t.store
      .updateTable("grants")
      .set({ created_at: new Date(`2026-01-05T${time}Z`) })
      .where("id", "=", grant)
      .execute();
  await t.store
    .updateTable("reviews")
    .set({ due_at: new Date(0) })
    .execute();
  await t.policy(noon);
  await requestedAt("12:00:00"); // a Monday
  await closeDrifted(t.access, t.access.policy());
  expect((await t.grant(grant)).state).toBe("active");
  await requestedAt("13:00:00");
  await closeDrifted(t.access, t.access.policy());
  await t.until(grant, "closed");
});

test("a grant that cannot be judged keeps no other from being closed, and is said", async () => {
  const grants = [await t.break("repair"), await t.break("repair"), await t.break("repair")];
  for (const grant of grants) await t.until(grant, "active");
  const [lost = ""] = grants;
  const damaged = { hash: "damaged", playbook: "x", content: "null" };
  await t.store.insertInto("playbook_versions").values(damaged).execute();
  await t.store.updateTable("grants").set({ playbook_hash: "damaged" }).where("id", "=", lost).execute();
  await t.policy({ "playbooks/repair.yaml": undefined });
  await expect(closeDrifted(t.access, t.access.policy())).rejects.toThrow();
  for (const grant of grants.slice(1)) await t.until(grant, "closed");
  expect((await t.grant(lost)).state).toBe("active");
});

test("a grant that was extended past what its playbook allows now is closed", async () => {
  const grant = await t.break("longer");
  const { approved_at } = await t.until(grant, "active");
  const endsAt = new Date((approved_at?.getTime() ?? 0) + 25 * 60_000);
  await t.store.updateTable("grants").set({ ends_at: endsAt }).where("id", "=", grant).execute();
  await closeDrifted(t.access, t.access.policy());
  expect((await t.grant(grant)).state).toBe("active");
  await t.policy(book("longer", { time: "{ max: 10m, extend: 1x10m }" }));
  await closeDrifted(t.access, t.access.policy());
  expect((await t.until(grant, "closed")).end_text).toMatch(/longer than its playbook now allows/);
});
