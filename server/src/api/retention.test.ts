import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { HoldList, HoldView, StandingView } from "@glasskey/contract";
import { verifyFolder } from "@glasskey/verify";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { type Client, PEOPLE, playbook, startTestSystem, type TestSystem } from "../../testing/system.ts";

let system: TestSystem;
beforeAll(async () => {
  // Ola may do everything, and breaks the glass herself.
  const people = `${PEOPLE}- { name: ola, roles: [requester, security_officer], groups: [payments], aliases: [ola.admin], secret: HASH }\n`;
  system = await startTestSystem(inject("pg18"), {
    "people.yaml": people,
    "playbooks/brief.yaml": playbook("brief", { record: "{ keep: 1s }" }),
  });
});
afterAll(() => system.dispose());

/** A session in which one statement ran, sealed to its end. */
async function recorded(person: string, book = "repair"): Promise<{ grant: string; session: string }> {
  const client = await system.as(person);
  const { grant } = await client.break(book);
  const connection = await client.connect(grant);
  await connection.query("select 'spoken in confidence'");
  await connection.end();
  await client.end(grant);
  for (let tries = 0; ; tries += 1) {
    const [row] = await system.storeQuery<{ id: string; done: boolean }>(
      "select id, recording_complete and closed_at is not null as done from sessions where grant_id = $1",
      [grant],
    );
    if (row?.done === true) return { grant, session: row.id };
    if (tries > 400) throw new Error("the recording is not sealed");
    await new Promise((done) => setTimeout(done, 50));
  }
}

async function verified(client: Client): Promise<void> {
  const { size } = await client.call<{ size: number }>("GET", "/v1/log?from=0&limit=1");
  for (let tries = 0; ; tries += 1) {
    const report = await verifyFolder({ folder: system.server().logDir, vkey: system.server().vkey, settleMs: 20_000 });
    if (report.ok && report.size >= size) return expect(report.problems).toEqual([]);
    if (tries > 20) throw new Error(`the log does not verify: ${JSON.stringify(report)}`);
    await new Promise((done) => setTimeout(done, 250));
  }
}

const WHY = { why: "the court says so" };

test("a recording is held, cannot be erased, is let go, and is erased by another: nobody reads it again, and the log still verifies", async () => {
  const { session } = await recorded("ann");
  const [sam, ola, ida] = [await system.as("sam"), await system.as("ola"), await system.as("ida")];
  const held = await sam.call<HoldView>("POST", "/v1/holds", { id: session, ...WHY });
  expect(held).toMatchObject({ session, why: WHY.why, heldBy: "sam", releasedAt: null });
  expect(await ola.refused("POST", `/v1/sessions/${session}/erase`, WHY)).toMatchObject({
    status: 409,
    code: "conflict",
  });
  expect((await ida.call<HoldList>("GET", "/v1/holds")).holds).toMatchObject([{ hold: held.hold }]);
  expect(await sam.call("POST", `/v1/holds/${held.hold}/release`, {})).toMatchObject({ releasedBy: "sam" });
  expect(await sam.refused("POST", `/v1/sessions/${session}/erase`, WHY)).toMatchObject({
    code: "conflict",
    next: expect.stringContaining("another"),
  });
  const before = await system.storeQuery<{ n: string }>("select count(*) n from chunks where session = $1", [session]);
  expect(await ola.call("POST", `/v1/sessions/${session}/erase`, WHY)).toEqual({
    session,
    chunks: Number(before[0]?.n),
  });
  expect(await sam.refused("GET", `/v1/sessions/${session}/replay`)).toMatchObject({ status: 410, code: "erased" });
  const wanted = ["recording.held", "recording.released", "recording.erased"];
  let entries: { entry: { type: string; session?: string } }[] = [];
  for (let tries = 0; tries < 400; tries += 1) {
    ({ entries } = await ida.call<{ entries: typeof entries }>("GET", "/v1/log?from=0"));
    entries = entries.filter(({ entry }) => entry.session === session);
    if (wanted.every((type) => entries.some(({ entry }) => entry.type === type))) break;
    await new Promise((done) => setTimeout(done, 25));
  }
  expect(entries.map(({ entry }) => entry.type)).toEqual(expect.arrayContaining(wanted));
  expect(JSON.stringify(entries)).not.toContain(WHY.why);
  await verified(ida);
});

test("nobody erases, or lets go of, the recording of their own session, under any alias; keeping it is nobody's harm", async () => {
  const { session, grant } = await recorded("ola");
  const [ola, sam] = [await system.as("ola"), await system.as("sam")];
  const refusal = { status: 403, code: "policy_denied", message: expect.stringContaining("their own") };
  expect(await ola.refused("POST", `/v1/sessions/${session}/erase`, WHY)).toMatchObject(refusal);
  const held = await ola.call<HoldView>("POST", "/v1/holds", { id: grant, ...WHY });
  expect(await ola.refused("POST", `/v1/holds/${held.hold}/release`, {})).toMatchObject(refusal);
  await sam.call("POST", `/v1/holds/${held.hold}/release`, {});
});

test("only a security officer holds, lets go and erases; an auditor reads the holds; whoever may not see the grant learns nothing", async () => {
  const { session, grant } = await recorded("ann");
  const sam = await system.as("sam");
  const { hold } = await sam.call<HoldView>("POST", "/v1/holds", { id: grant, ...WHY });
  for (const [name, code] of [
    ["ann", "policy_denied"],
    ["ida", "policy_denied"],
    ["bob", "not_found"],
    ["zoe", "not_found"],
  ] as const) {
    const client = await system.as(name);
    expect(await client.refused("POST", "/v1/holds", { id: session, ...WHY }), name).toMatchObject({ code });
    expect(await client.refused("POST", `/v1/holds/${hold}/release`, {}), name).toMatchObject({ code });
    expect(await client.refused("POST", `/v1/sessions/${session}/erase`, WHY), name).toMatchObject({ code });
    if (name !== "ida") expect(await client.refused("GET", "/v1/holds"), name).toMatchObject({ code: "policy_denied" });
  }
  for (const id of ["gr_000000000000", "se_000000000000"])
    expect(await sam.refused("POST", "/v1/holds", { id, ...WHY })).toMatchObject({ code: "not_found" });
  for (const id of ["", "x", "ls_000000000000", "se_000000000000' or true --"])
    expect(await sam.refused("POST", "/v1/holds", { id, ...WHY })).toMatchObject({ code: "usage" });
  expect(await sam.refused("POST", "/v1/holds", { id: session, why: " x " })).toMatchObject({ code: "usage" });
  expect(await sam.refused("POST", `/v1/sessions/${session}/erase`, { why: "a\u0000b c" })).toMatchObject({
    code: "usage",
  });
  await sam.call("POST", `/v1/holds/${hold}/release`, {});
});

test("what its playbook keeps for a second is erased by itself, its key leaves the store's table, and the rest stays", async () => {
  const stays = await recorded("ann");
  const { session } = await recorded("ann", "brief");
  for (let tries = 0; ; tries += 1) {
    const rows = await system.storeQuery<{ scrubbed: boolean }>(
      "select scrubbed_at is not null as scrubbed from erasures where session = $1 and cause = 'retention'",
      [session],
    );
    if (rows[0]?.scrubbed === true) break;
    if (tries > 600) throw new Error(`it is still there: ${JSON.stringify(rows)}`);
    await new Promise((done) => setTimeout(done, 100));
  }
  const keys = await system.storeQuery<{ session: string; there: boolean }>(
    "select session, wrapped is not null as there from session_keys where session = any ($1) order by there",
    [[session, stays.session]],
  );
  expect(keys).toEqual([
    { session, there: false },
    { session: stays.session, there: true },
  ]);
  const ida = await system.as("ida");
  expect(await ida.refused("GET", `/v1/sessions/${session}/replay`)).toMatchObject({ status: 410, code: "erased" });
  await verified(ida);
  expect(await readFile(`${system.server().logDir}/chunks/${session}/0.gkc`)).not.toHaveLength(0);
});

test("at a start nothing is erased before the log's own copies were compared: what does not fit may be evidence", async () => {
  await system.stop();
  await system.start();
  const { session } = await recorded("ann", "brief");
  await system.stop();
  const there = async (): Promise<boolean> =>
    (await system.storeQuery("select 1 from session_keys where session = $1 and wrapped is not null", [session]))
      .length > 0;
  expect(await there()).toBe(true);
  await system.storeQuery("update sessions set closed_at = closed_at - interval '1 hour' where id = $1", [session]);
  const checkpoint = join(system.config.dataDir, "log", "checkpoint");
  const kept = await readFile(checkpoint, "utf8");
  await writeFile(checkpoint, kept.replace(/\n(\d+)\n/, "\n9$1\n"));
  await system.start();
  const ida = await system.as("ida");
  for (let tries = 0; ; tries += 1) {
    const { shut } = await ida.call<StandingView>("GET", "/v1/health");
    if (shut.some(({ reason }) => reason === "export")) break;
    if (tries > 400) throw new Error("nobody saw it");
    await new Promise((done) => setTimeout(done, 25));
  }
  expect(await there()).toBe(true);
  await writeFile(checkpoint, kept);
  for (let tries = 0; await there(); tries += 1) {
    if (tries > 800) throw new Error("it is kept for ever");
    await new Promise((done) => setTimeout(done, 50));
  }
}, 120_000);
