import type { GrantView } from "@glasskey/contract";
import pg from "pg";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { playbook, startTestSystem, type Client, type TestSystem } from "../../testing/system.ts";

let system: TestSystem;
let ann: Client;
let bob: Client;
let sam: Client;
let ida: Client;

beforeAll(async () => {
  system = await startTestSystem(inject("pg18"), {
    "playbooks/two.yaml": playbook("two", { approve: "{ need: 2, from: { group: [leads, seniors] } }" }),
    "playbooks/short.yaml": playbook("short", { approve: "{ need: 1, from: { group: leads }, within: 1s }" }),
    "playbooks/longer.yaml": playbook("longer", { time: "{ max: 10m, extend: 1x5m }" }),
    "playbooks/longer-consent.yaml": playbook("longer-consent", {
      approve: "{ need: 1, from: { group: leads } }",
      time: "{ max: 10m, extend: 1x5m }",
    }),
    "playbooks/idle.yaml": playbook("idle", { time: "{ max: 10m, idle: 2s }" }),
  });
  ann = await system.as("ann");
  bob = await system.as("bob");
  sam = await system.as("sam");
  ida = await system.as("ida");
});
afterAll(() => system.dispose());

const roles = async (): Promise<string[]> => {
  const { rows } = await system.target.query(
    String.raw`select rolname from pg_roles where rolname like 'gk\_______\_%' order by 1`,
  );
  return (rows as { rolname: string }[]).map((row) => row.rolname);
};

test("a grant of a playbook that needs nobody is active when break answers, and closed with the target's own proof when end answers", async () => {
  const grant = await ann.break("repair");
  expect(grant.state).toBe("active");
  const client = await ann.connect(grant.grant);
  expect((await client.query("select count(*)::int as n from t")).rows).toEqual([{ n: 100 }]);
  const cut = new Promise<Error>((resolve) => client.once("error", resolve));
  const closed = await ann.end(grant.grant);
  expect(closed.state).toBe("closed");
  expect(closed.proof?.leases[0]?.evidence.map((line) => line.answered)).toContainEqual(
    expect.stringContaining("28P01"),
  );
  expect(closed.proof?.drift).toEqual({ known: true, added: [], removed: [] });
  expect((await cut).message).toContain("ended by ann");
  expect(await roles()).not.toContain(closed.proof?.leases[0]?.name);
  // Ending what has ended is no error, and changes nothing.
  expect(await ann.end(grant.grant)).toEqual(closed);
});

test("however much others ask for, the list of grants has what its reader may see", async () => {
  const grant = await ann.break("repair");
  await ann.end(grant.grant);
  const amy = await system.as("amy");
  const other = await amy.break("short");
  await amy.end(other.grant);
  const copies = await system.storeQuery(
    `insert into grants select (jsonb_populate_record(null::grants, to_jsonb(g) || jsonb_build_object('id', 'copy ' || n))).*
     from grants g, generate_series(1, 250) n where g.id = $1 returning id`,
    [other.grant],
  );
  expect(copies).toHaveLength(250);
  const seen = async (client: Client): Promise<readonly string[]> =>
    (await client.call<{ grants: GrantView[] }>("GET", "/v1/grants")).grants.map(({ requester }) => requester);
  expect(await seen(ann)).toContain("ann");
  expect(await seen(ann)).not.toContain("amy");
  await system.storeQuery("delete from grants where id like 'copy %'");
  expect(await seen(sam)).toEqual(expect.arrayContaining(["amy", "ann"]));
});

test("sealed words that were changed in the store hide themselves only: whoever looks still sees every grant", async () => {
  const { grant } = await ann.break("repair");
  await ann.end(grant);
  await sam.call("POST", `/v1/grants/${grant}/review`, { verdict: "justified", note: "looked at it" });
  await system.storeQuery("update grants set why = substr(why, 1, 30) where id = $1", [grant]);
  await system.storeQuery("update reviews set note = substr(note, 1, 30) where grant_id = $1", [grant]);
  const { grants } = await sam.call<{ grants: GrantView[] }>("GET", "/v1/grants");
  expect(grants.length).toBeGreaterThan(1);
  const changed = grants.find((view) => view.grant === grant);
  expect(changed?.why).toMatch(/do not open/);
  expect(changed?.review).toMatchObject({ verdict: "justified", note: changed?.why });
});

test("one person's requests, however many at once, leave room for another's", async () => {
  const amy = await system.as("amy");
  const { port, superuser: user, password } = inject("pg18");
  const { host, database } = system.config.database ?? {};
  const holder = new pg.Client({ ...{ host, port, user, password, database } });
  await holder.connect();
  try {
    await holder.query("begin");
    await holder.query("select pg_advisory_xact_lock(hashtextextended('glasskey playbook consent', 0))");
    const first = Array.from({ length: 6 }, () => amy.break("consent"));
    const waiting = "select 1 from pg_locks where locktype = 'advisory' and not granted";
    while ((await holder.query(waiting)).rows.length < first.length); // each of them holds a connection to the store
    const body = { playbook: "consent", reason: "outage", why: "once more" };
    expect(await amy.refused("POST", "/v1/grants", body)).toMatchObject({ code: "too_many_attempts" });
    expect((await ann.break("repair")).state).toBe("active");
    await holder.query("rollback");
    for (const { grant } of await Promise.all(first)) await amy.end(grant);
    await amy.end((await amy.break("consent")).grant);
  } finally {
    await holder.end();
  }
});

test("every transition has its entry in the log, in order, and no entry names a person", async () => {
  const grant = await ann.break("consent");
  await bob.call("POST", `/v1/grants/${grant.grant}/approve`);
  await ann.until(grant.grant, ["active"]);
  await ann.end(grant.grant);
  const types = async (): Promise<string[]> => {
    const { entries } = await ida.call<{ entries: { entry: { type: string } }[] }>(
      "GET",
      `/v1/log?grant=${grant.grant}`,
    );
    return entries.map(({ entry }) => entry.type);
  };
  await expect
    .poll(types, { timeout: 30_000 })
    .toEqual([
      ...[
        "grant.requested",
        "approval.given",
        "grant.approved",
        "grant.opening",
        "lease.planned",
        "lease.minting",
        "lease.minted",
        "grant.active",
        "review.opened",
      ],
      ...["grant.closing", "lease.fenced", "lease.revoked", "lease.confirmed", "grant.closed"],
    ]);
  const { entries } = await ida.call<{ entries: { entry: unknown; people: Record<string, string> }[] }>(
    "GET",
    `/v1/log?grant=${grant.grant}`,
  );
  const raw = JSON.stringify(entries.map(({ entry }) => entry));
  expect(raw).not.toMatch(/\b(ann|bob)\b|the tests say so/);
  expect(Object.values(entries[0]?.people ?? {})).toEqual(["ann"]);
});

test("lesson 7: the requester cannot approve their own grant, nor can an admin or an approver who asked", async () => {
  const amy = await system.as("amy"); // requester, approver and admin, and in the approving group
  const grant = await amy.break("consent");
  const refused = await amy.refused("POST", `/v1/grants/${grant.grant}/approve`);
  expect(refused).toMatchObject({ status: 403, code: "policy_denied" });
  expect((await amy.grant(grant.grant)).mayApprove).not.toContain("amy");
  expect((await amy.grant(grant.grant)).state).toBe("pending");
  await amy.end(grant.grant);
});

test("lesson 8: one approver in two of the groups is one approver, and a second yes of the same person is refused", async () => {
  const grant = await ann.break("two");
  await bob.call("POST", `/v1/grants/${grant.grant}/approve`); // in both groups
  expect((await ann.grant(grant.grant)).state).toBe("pending");
  expect(await bob.refused("POST", `/v1/grants/${grant.grant}/approve`)).toMatchObject({ status: 403 });
  const cas = await system.as("cas");
  await cas.call("POST", `/v1/grants/${grant.grant}/approve`);
  expect((await ann.until(grant.grant, ["active"])).approvals).toHaveLength(2);
  await ann.end(grant.grant);
});

test("lesson 9: a late yes does not revive a request that timed out, and a withdrawn one stays withdrawn", async () => {
  const late = await ann.break("short");
  await ann.until(late.grant, ["timed_out"]);
  expect(await bob.refused("POST", `/v1/grants/${late.grant}/approve`)).toMatchObject({ code: "conflict" });
  const gone = await ann.break("short");
  expect((await ann.end(gone.grant)).state).toBe("withdrawn");
  expect(await bob.refused("POST", `/v1/grants/${gone.grant}/approve`)).toMatchObject({ code: "conflict" });
  await new Promise((done) => setTimeout(done, 2_500)); // past its deadline: the sweeper must leave it alone
  expect((await ann.grant(gone.grant)).state).toBe("withdrawn");
});

test("yes and no at the same moment, many times, give one outcome, and an approved grant is never denied", async () => {
  const cas = await system.as("cas");
  for (let round = 0; round < 5; round += 1) {
    const grant = await ann.break("consent");
    const votes = await Promise.allSettled([
      bob.call<GrantView>("POST", `/v1/grants/${grant.grant}/approve`),
      cas.call<GrantView>("POST", `/v1/grants/${grant.grant}/deny`),
    ]);
    expect(votes.filter((vote) => vote.status === "fulfilled")).toHaveLength(1);
    const settled = await ann.until(grant.grant, ["active", "denied"]);
    expect(settled.state).toBe(votes[0]?.status === "fulfilled" ? "active" : "denied");
    if (settled.state === "active") await ann.end(grant.grant);
  }
});

test("lesson 11: of two overlapping grants, the end of one does not touch the other", async () => {
  const [one, two] = [await ann.break("repair"), await ann.break("repair")];
  const client = await ann.connect(two.grant);
  expect((await ann.end(one.grant)).state).toBe("closed");
  expect((await client.query("select 1 as one")).rows).toEqual([{ one: 1 }]);
  await client.end();
  expect((await ann.end(two.grant)).state).toBe("closed");
});

test("lesson 1: every connect gets the grant's own end, and a grant that is over opens no session", async () => {
  const grant = await ann.break("repair", { forMs: 15_000 }); // room for an opening and two connects on a slow machine
  const endsAt = Date.parse(grant.endsAt ?? "");
  const client = await ann.connect(grant.grant);
  const cut = new Promise<number>((resolve) => client.once("error", () => resolve(Date.now())));
  await new Promise((done) => setTimeout(done, 1_500));
  const late = await ann.connect(grant.grant);
  const lateCut = new Promise<number>((resolve) => late.once("error", () => resolve(Date.now())));
  const answer = await ann.call<{ secret: string }>("POST", `/v1/grants/${grant.grant}/connect`);
  expect(answer.secret).not.toBe("");
  for (const at of await Promise.all([cut, lateCut])) expect(at - endsAt).toBeGreaterThan(-50);
  const closed = await ann.until(grant.grant, ["closed"]);
  expect(closed.endCause).toBe("expired");
  expect(await ann.refused("POST", `/v1/grants/${grant.grant}/connect`)).toMatchObject({
    status: 410,
    code: "grant_over",
  });
});

test("a security officer kills a grant in any state; nobody else can, and a requester who could not see it learns nothing", async () => {
  const pending = await ann.break("consent");
  expect((await sam.call<{ grant: GrantView }>("POST", "/v1/kill", { id: pending.grant })).grant.state).toBe("denied");
  const active = await ann.break("repair");
  const client = await ann.connect(active.grant);
  const why = new Promise<string>((resolve) => client.once("error", (error) => resolve(error.message)));
  for (const name of ["ann", "bob", "ida", "amy"]) {
    const person = await system.as(name);
    expect((await person.refused("POST", "/v1/kill", { id: active.grant })).status, name).toBeGreaterThanOrEqual(403);
  }
  const killed = await sam.call<{ sessionsCut: number; grant: GrantView }>("POST", "/v1/kill", {
    id: active.grant,
    why: "suspicious",
  });
  expect(killed).toMatchObject({ sessionsCut: 1, grant: { state: "closed", endCause: "killed" } });
  expect(await why).toContain("suspicious");
  expect((await sam.call<{ grant: GrantView }>("POST", "/v1/kill", { id: active.grant })).grant.state).toBe("closed");
  const zoe = await system.as("zoe");
  expect(await zoe.refused("GET", `/v1/grants/${active.grant}`)).toMatchObject({ status: 404 });
});

test("killing one session leaves the grant and its other sessions", async () => {
  const grant = await ann.break("repair");
  const [one, two] = [await ann.connect(grant.grant), await ann.connect(grant.grant)];
  const gone = new Promise<void>((resolve) => one.once("error", () => resolve()));
  const { sessions } = await sam.call<{ sessions: { session: string; openedAt: string }[] }>(
    "GET",
    `/v1/sessions?grant=${grant.grant}&open=true`,
  );
  const first = sessions.toSorted((a, b) => a.openedAt.localeCompare(b.openedAt))[0];
  const killed = await sam.call<{ sessionsCut: number }>("POST", "/v1/kill", { id: first?.session });
  expect(killed.sessionsCut).toBe(1);
  await gone;
  expect((await two.query("select 1 as one")).rows).toEqual([{ one: 1 }]);
  await two.end();
  await ann.end(grant.grant);
});

test("an extension is a new decision: at once where nobody is needed, after a yes where somebody is, never past the cap", async () => {
  const free = await ann.break("longer");
  const extended = await ann.call<{ extended: boolean; grant: GrantView }>("POST", `/v1/grants/${free.grant}/extend`);
  expect(Date.parse(extended.grant.endsAt ?? "") - Date.parse(free.endsAt ?? "")).toBe(300_000);
  expect(await ann.refused("POST", `/v1/grants/${free.grant}/extend`)).toMatchObject({ code: "policy_denied" });
  await ann.end(free.grant);

  const bound = await ann.break("longer-consent");
  await bob.call("POST", `/v1/grants/${bound.grant}/approve`);
  const before = await ann.until(bound.grant, ["active"]);
  const asked = await ann.call<{ extended: boolean }>("POST", `/v1/grants/${bound.grant}/extend`);
  expect(asked.extended).toBe(false);
  expect((await ann.grant(bound.grant)).endsAt).toBe(before.endsAt);
  await bob.call("POST", `/v1/grants/${bound.grant}/approve`);
  expect(Date.parse((await ann.grant(bound.grant)).endsAt ?? "") - Date.parse(before.endsAt ?? "")).toBe(300_000);
  await ann.end(bound.grant);
});

test("a grant whose sessions do nothing is closed after its idle time, and a running statement is not idleness", async () => {
  const grant = await ann.break("idle");
  const client = await ann.connect(grant.grant);
  const error = new Promise<string>((resolve) => client.once("error", (e) => resolve(e.message)));
  await client.query("select pg_sleep(4)"); // twice the idle time
  expect((await ann.grant(grant.grant)).state).toBe("active");
  expect(await error).toContain("nothing happened");
  expect((await ann.until(grant.grant, ["closed"])).endCause).toBe("idle");
});

test("the gateway refuses a wrong secret, an unknown grant and another database in the same words, and lets none of them near the target", async () => {
  const grant = await ann.break("repair");
  const { default: pg } = await import("pg");
  const answer = await ann.call<{ port: number; ca: string; secret: string }>(
    "POST",
    `/v1/grants/${grant.grant}/connect`,
  );
  const attempt = async (user: string, password: string): Promise<string> => {
    const client = new pg.Client({
      host: "127.0.0.1",
      port: answer.port,
      user,
      password,
      database: "postgres",
      ssl: { ca: answer.ca },
    });
    client.on("error", () => {});
    const message = await client.connect().then(
      () => "let in",
      (error: Error) => error.message,
    );
    await client.end().catch(() => {});
    return message.replace(user, "USER");
  };
  const wrong = await attempt(grant.grant, "wrong");
  expect(wrong).not.toBe("let in");
  expect(await attempt("gr_000000000000", "wrong")).toBe(wrong);
  expect(await attempt("gr_000000000000", answer.secret)).toBe(wrong);
  await ann.end(grant.grant);
  expect(await attempt(grant.grant, answer.secret)).not.toBe("let in");
});

test("lesson 22: one approval carries any number of connections until the end, as a pool or an IDE opens them", async () => {
  const grant = await ann.break("consent");
  await bob.call("POST", `/v1/grants/${grant.grant}/approve`);
  await ann.until(grant.grant, ["active"]);
  const clients = await Promise.all(Array.from({ length: 15 }, () => ann.connect(grant.grant)));
  const answers = await Promise.all(clients.map((client, n) => client.query("select $1::int as n", [n])));
  expect(answers.map(({ rows }) => (rows as { n: number }[])[0]?.n)).toEqual(clients.map((_client, n) => n));
  const view = await ann.call<{ sessions: unknown[] }>("GET", `/v1/sessions?grant=${grant.grant}&open=true`);
  expect(view.sessions).toHaveLength(15);
  expect((await ann.grant(grant.grant)).approvals).toHaveLength(1);
  await Promise.all(clients.map((client) => client.end()));
  await ann.end(grant.grant);
});
