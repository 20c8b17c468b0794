import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { startTestSystem, type TestSystem } from "../../testing/system.ts";

let system: TestSystem;
beforeAll(async () => {
  system = await startTestSystem(inject("pg15") ?? inject("pg18")); // the oldest store that is supported, where it is there
});
afterAll(() => system.dispose());

const roles = async (): Promise<string[]> => {
  const { rows } = await system.target.query(
    String.raw`select rolname from pg_roles where rolname like 'gk\_______\_%'`,
  );
  return (rows as { rolname: string }[]).map((row) => row.rolname);
};

test("after a restart every lease is taken up where it was: an open grant stays open, with the same secret, and ends with its proof", async () => {
  const ann = await system.as("ann");
  const grant = await ann.break("repair");
  const before = await ann.call<{ secret: string }>("POST", `/v1/grants/${grant.grant}/connect`);
  await system.stop();
  await system.start();
  const again = await system.as("ann");
  expect(await again.grant(grant.grant)).toMatchObject({ state: "active", endCause: null, endText: null });
  expect((await again.call<{ secret: string }>("POST", `/v1/grants/${grant.grant}/connect`)).secret).toBe(
    before.secret,
  );
  const client = await again.connect(grant.grant);
  expect((await client.query("select 1 as one")).rows).toEqual([{ one: 1 }]);
  await client.end();
  expect((await again.end(grant.grant)).state).toBe("closed");
});

test("a grant whose time ran out while Glasskey was stopped is closed, with its proof, when it starts", async () => {
  const ann = await system.as("ann");
  const grant = await ann.break("repair", { forMs: 2_000 });
  await system.stop();
  await new Promise((done) => setTimeout(done, 2_500));
  await system.start();
  const again = await system.as("ann");
  const closed = await again.until(grant.grant, ["closed"]);
  expect(closed.endCause).toBe("expired");
  expect(await roles()).toEqual([]);
});

test("lesson 20: a clean stop tells the session why, and leaves no session open in the list", async () => {
  const ann = await system.as("ann");
  const grant = await ann.break("repair");
  const client = await ann.connect(grant.grant);
  const why = new Promise<string>((resolve) => client.once("error", (error) => resolve(error.message)));
  await system.stop();
  expect(await why).toContain("stopping");
  const open = await system.storeQuery("select id from sessions where closed_at is null or not recording_complete");
  expect(open).toEqual([]);
  await system.start();
  await (await system.as("ann")).end(grant.grant);
});

test("lesson 19: after kill -9 in mid-session everything acknowledged is in the recording, the session is closed as lost, and the log verifies", async () => {
  await system.stop();
  const first = await system.startProcess();
  const ann = await system.as("ann", first);
  const grant = await ann.break("repair");
  const client = await ann.connect(grant.grant);
  for (let n = 1; n <= 20; n += 1) await client.query(`select ${n} as acknowledged`);
  await first.kill();
  const second = await system.startProcess();
  const [ida, again] = await Promise.all([system.as("ida", second), system.as("ann", second)]);
  const { sessions } = await ida.call<{ sessions: { session: string; cause: string; closedAt: string | null }[] }>(
    "GET",
    `/v1/sessions?grant=${grant.grant}`,
  );
  expect(sessions).toMatchObject([{ cause: "error" }]);
  expect(sessions[0]?.closedAt).not.toBeNull();
  const chunks = async (): Promise<number> =>
    Number(
      (
        await system.storeQuery<{ n: string }>("select count(*) n from chunks where session = $1", [
          sessions[0]?.session,
        ])
      )[0]?.n,
    );
  await expect.poll(chunks, { timeout: 20_000 }).toBeGreaterThan(0);
  const entries = await system.storeQuery<{ text: string }>(
    "select convert_from(entry, 'UTF8') as text from log_entries",
  );
  expect(entries.filter(({ text }) => text.includes(sessions[0]?.session ?? "?")).length).toBeGreaterThan(0);
  expect((await again.end(grant.grant)).state).toBe("closed");
  expect(await roles()).toEqual([]);
  await second.stop();
  await system.start();
});

test("lesson 10: kill -9 in the middle of a mint: what may be on the target is removed by name, and a new lease opens the grant", async () => {
  await system.stop();
  const first = await system.startProcess();
  const ann = await system.as("ann", first);
  // Holds every CREATE ROLE on the target until it is sent away.
  const held = system.target.query("begin; lock table pg_authid in share mode; select pg_sleep(60)").catch(() => {});
  const holding = "pg_locks where relation = 'pg_authid'::regclass and mode = 'ShareLock' and granted";
  await expect
    .poll(async () => (await system.target.query(`select from ${holding}`)).rowCount, { timeout: 20_000 })
    .toBe(1);
  const asked = ann.break("repair").catch(() => undefined);
  const minting = async (): Promise<string[]> =>
    (await system.storeQuery<{ id: string }>("select id from leases where state = 'minting'")).map((row) => row.id);
  await expect.poll(minting, { timeout: 20_000 }).toHaveLength(1);
  await first.kill();
  await asked;
  await system.target.query(`select pg_terminate_backend(pid) from ${holding}`);
  await held;
  const second = await system.startProcess();
  const again = await system.as("ann", second);
  const { grants } = await again.call<{ grants: { grant: string }[] }>("GET", "/v1/grants?open=true");
  const grant = grants[0]?.grant ?? "";
  await again.until(grant, ["active"], 40_000);
  const leases = async (): Promise<string[]> =>
    (
      await system.storeQuery<{ state: string }>("select state from leases where grant_id = $1 order by created_at", [
        grant,
      ])
    ).map((row) => row.state);
  await expect.poll(leases, { timeout: 40_000 }).toEqual(["dead", "live"]);
  expect(await roles()).toHaveLength(1);
  expect((await again.end(grant)).proof?.leases).toHaveLength(2);
  expect(await roles()).toEqual([]);
  await second.stop();
  await system.start();
});

test("lesson 2: with two processes on one store, a kill that arrives at the other one cuts the session here, and answers after the proof", async () => {
  const fresh = await startTestSystem(inject("pg18"));
  try {
    const second = await fresh.startSecond();
    const [one, two] = await Promise.all([fresh.as("ann"), fresh.as("ann", second)]);
    const grant = await one.break("repair");
    expect((await two.grant(grant.grant)).state).toBe("active");
    const client = await one.connect(grant.grant);
    const why = new Promise<string>((resolve) => client.once("error", (error) => resolve(error.message)));
    const sam = await fresh.as("sam", second);
    const killed = await sam.call<{ grant: { state: string; proof: unknown } }>("POST", "/v1/kill", {
      id: grant.grant,
      why: "over there",
    });
    expect(killed.grant.state).toBe("closed");
    expect(killed.grant.proof).not.toBeNull();
    await expect(why).resolves.toMatch(/over there|terminat/);
    // Both sign one log.
    const page = await (await fresh.as("ida", second)).call<{ size: number }>("GET", "/v1/log?limit=1");
    expect(page.size).toBeGreaterThan(5);
  } finally {
    await fresh.dispose();
  }
});

test("a second process on the same data folder is refused, and says why", async () => {
  const { startServer } = await import("../main.ts");
  await expect(startServer(system.config, () => {})).rejects.toThrow(/in use|another|lock/i);
});
