import { afterAll, afterEach, beforeAll, expect, inject, test } from "vitest";
import { policyOf } from "../playbooks/fixtures/folder.ts";
import { sha256 } from "../core/bytes.ts";
import { startRig, until, type Rig } from "./testing/rig.ts";

const PEOPLE = `- { name: ann, roles: [requester, approver], groups: [payments, leads], aliases: [ann@corp], notify: ["slack:ann"] }
- { name: bob, roles: [approver], groups: [leads], notify: ["slack:bob"] }
- { name: cas, roles: [approver], groups: [leads], notify: ["slack:shared"] }
- { name: dan, roles: [approver], groups: [leads], notify: ["slack:shared"] }
`;

let rig: Rig;
beforeAll(async () => {
  rig = await startRig(inject("pg18"), { "people.yaml": PEOPLE });
});
afterEach(async () => {
  rig.slack.broken = rig.pager.broken = rig.hook.broken = undefined;
  rig.warnings.length = 0;
  await rig.db.store.deleteFrom("notices").execute();
  await rig.db.store.deleteFrom("log_queue").execute();
});
afterAll(() => rig[Symbol.asyncDispose]());

const soon = (ms = 60_000): Date => new Date(Date.now() + ms);
const about = (grant: string) => rig.slack.seen.filter(({ text }) => text.includes(grant));
const titles = (grant: string): string[] =>
  about(grant)
    .filter(({ status }) => status === 200)
    .map(({ body }) => String(body["text"]).split(":")[0] ?? "");

test("lesson 10: a notice is sent after the commit of what it tells of, and never when that is rolled back", async () => {
  const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
  const [kept, undone] = [await rig.grant(), await rig.grant()];
  const post = (grant: string, text: string) =>
    ({ event: "opened", grant, text, channels: ["slack:incidents"] }) as const;
  const held = Promise.withResolvers<void>();
  const committing = rig.db.store.transaction().execute(async (tx) => {
    await notifier.post(tx, post(kept, "kept"));
    await held.promise;
  });
  await expect(
    rig.db.store.transaction().execute(async (tx) => {
      await notifier.post(tx, post(undone, "undone"));
      throw new Error("rolled back");
    }),
  ).rejects.toThrow("rolled back");
  await new Promise((done) => setTimeout(done, 200)); // many polls
  expect(about(kept)).toEqual([]);
  held.resolve();
  await committing;
  await until(() => (about(kept).length === 1 ? true : undefined));
  expect(about(undone)).toEqual([]);
  await notifier.stop();
});

test("Slack down for a while: everything is delivered once it is back, in order for each grant, none twice", async () => {
  const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
  const grants = await Promise.all([rig.grant(), rig.grant(), rig.grant()]);
  rig.slack.broken = { status: 500, body: "rollup_error" };
  for (const event of ["approval_wanted", "opened", "closed"] as const) {
    for (const grant of grants)
      await rig.post(notifier, { event, grant, text: `about ${grant}`, channels: ["slack:incidents"] });
  }
  await until(() => (grants.some((grant) => about(grant).length >= 2) ? true : undefined));
  expect((await rig.notices()).filter((row) => row.delivered)).toEqual([]);
  rig.slack.broken = undefined;
  await until(async () => ((await rig.notices()).every((row) => row.delivered) ? true : undefined));
  for (const grant of grants) {
    expect(titles(grant)).toEqual(["Approval wanted", "Access is open", "Access is proved gone"]);
  }
  expect(rig.warnings[0]).toBe(
    "notify: slack:incidents does not take notices, and is tried again: answered 500 rollup_error",
  );
  expect(rig.warnings.at(-1)).toBe("notify: slack:incidents takes notices again");
  await notifier.stop();
});

test("several processes deliver what is there once, and what a dead one had claimed is delivered by another", async () => {
  const channels = { "slack:incidents": rig.channel("slack") };
  const idle = rig.notifier(channels, { idle: true });
  const grants = await Promise.all(Array.from({ length: 12 }, () => rig.grant()));
  for (const grant of grants)
    await rig.post(idle, { event: "opened", grant, text: `about ${grant}`, channels: ["slack:incidents"] });
  const claimed = grants[0] ?? "";
  const claim = (until: string) =>
    rig.db.store
      .updateTable("notices")
      .set({ claimed_by: "nd_dead", claimed_until: until })
      .where("grant_id", "=", claimed)
      .execute();
  await claim(new Date(Date.now() + 3_600_000).toISOString());
  const three = [rig.notifier(channels), rig.notifier(channels), rig.notifier(channels)];
  await until(async () => ((await rig.notices()).filter((row) => row.delivered).length === 11 ? true : undefined));
  expect(about(claimed)).toEqual([]);
  await claim(new Date(Date.now() - 1).toISOString());
  await until(() => (about(claimed).length > 0 ? true : undefined));
  for (const grant of grants) expect(about(grant)).toHaveLength(1);
  await Promise.all(three.map((notifier) => notifier.stop()));
});

test("what a channel asks for with 429 and Retry-After is respected, in seconds and as a date, and bounded", async () => {
  for (const [asked, least, most] of [
    ["200", 150_000, 201_000],
    [new Date(Date.now() + 300_000).toUTCString(), 250_000, 301_000],
    ["999999999", 550_000, 601_000],
  ] as const) {
    const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
    rig.slack.broken = { status: 429, headers: { "retry-after": asked } };
    const grant = await rig.grant();
    await rig.post(notifier, { event: "opened", grant, text: `about ${grant}`, channels: ["slack:incidents"] });
    const row = await until(async () => (await rig.notices()).find(({ attempts }) => attempts > 0));
    const { ms } = await rig.db.store
      .selectFrom("notices")
      .select(({ fn }) => fn<Date>("max", ["next_at"]).as("ms"))
      .where("id", "=", row.id)
      .executeTakeFirstOrThrow();
    const waitMs = ms.getTime() - Date.now();
    expect(waitMs).toBeGreaterThan(least);
    expect(waitMs).toBeLessThan(most);
    await notifier.stop();
    await rig.db.store.deleteFrom("notices").execute();
  }
});

test("a channel that hangs holds up no other channel, and its time is bounded", async () => {
  const channels = { "slack:incidents": rig.channel("slack"), "webhook:siren": rig.channel("webhook") };
  const patient = rig.notifier(channels, { timeoutMs: 600_000 });
  rig.slack.broken = { status: 0, hang: true };
  const grants = await Promise.all(Array.from({ length: 40 }, () => rig.grant()));
  for (const grant of grants) {
    await rig.post(patient, { event: "opened", grant, text: `about ${grant}`, channels: ["slack:incidents"] });
  }
  await until(() => (grants.filter((grant) => about(grant).length > 0).length === 4 ? true : undefined));
  const last = await rig.grant();
  await rig.post(patient, { event: "opened", grant: last, text: `about ${last}`, channels: ["webhook:siren"] });
  await until(() => rig.hook.taken().find(({ text }) => text.includes(last)));
  expect(grants.filter((grant) => about(grant).length > 0)).toHaveLength(4);
  await patient.stop(); // does not wait for the far side

  const hasty = rig.notifier(channels, { timeoutMs: 100 });
  const slow = await until(async () =>
    (await rig.notices()).find(({ last_error }) => last_error === "no answer within 0.1 s"),
  );
  expect(slow).toMatchObject({ delivered: false, given_up: false });
  await hasty.stop();
});

test("an alarm is tried for ever, and given up after a week only where its channel is gone from glasskey.yaml", async () => {
  const channels = { "slack:here": rig.channel("slack"), "slack:gone": rig.channel("slack") };
  const idle = rig.notifier(channels, { idle: true, alarms: ["slack:here", "slack:gone"] });
  await rig.post(idle, { event: "alarm", text: "the journal is full" });
  const old = new Date(Date.now() - 8 * 24 * 3_600_000);
  await rig.db.store.updateTable("notices").set({ created_at: old }).execute();
  rig.slack.broken = { status: 500 };
  const notifier = rig.notifier({ "slack:here": rig.channel("slack") });
  const rows = await until(async () => {
    const found = await rig.notices();
    return found.some(({ given_up }) => given_up) && found.some(({ attempts }) => attempts > 1) ? found : undefined;
  });
  expect(rows.filter(({ given_up }) => given_up).map(({ channel }) => channel)).toEqual(["slack:gone"]);
  await notifier.stop();
});

test("what was settled a month ago is forgotten, and nothing that is younger or still to be told", async () => {
  const idle = rig.notifier({ "slack:incidents": rig.channel("slack") }, { idle: true });
  const ago = (days: number): Date => new Date(Date.now() - days * 24 * 3_600_000);
  const set = async (values: { delivered_at?: Date; given_up_at?: Date; created_at: Date }): Promise<string> => {
    const grant = await rig.grant();
    await rig.post(idle, { event: "review_overdue", grant, channels: ["slack:incidents"] });
    await rig.db.store.updateTable("notices").set(values).where("grant_id", "=", grant).execute();
    return grant;
  };
  await set({ created_at: ago(40), delivered_at: ago(31) });
  await set({ created_at: ago(40), given_up_at: ago(31) });
  const kept = [
    await set({ created_at: ago(40), delivered_at: ago(29) }),
    await set({ created_at: ago(40), given_up_at: ago(29) }),
    await set({ created_at: ago(6) }), // waits for its channel, which is not there
  ];
  const notifier = rig.notifier({ "slack:another": rig.channel("slack") });
  await until(async () => ((await rig.notices()).length === kept.length ? true : undefined));
  expect(new Set((await rig.notices()).map((row) => row.grant_id))).toEqual(new Set(kept));
  await notifier.stop();
});

test("redirects, endless answers, wrong words, and a certificate of nobody we trust are failures, and no secret is in what is kept of them", async () => {
  const secret = "x-secret-of-the-webhook-x";
  const cases = [
    [{ status: 302, headers: { location: "https://evil.example/" } }, "answered 302"],
    [{ status: 200, body: "x".repeat(1_000_000) }, "the answer is too long"],
    [{ status: 200, body: `<html>${secret}</html>` }, "answered 200"],
    [{ status: 404, body: "no_service" }, "answered 404 no_service"],
  ] as const;
  for (const [broken, error] of cases) {
    rig.slack.broken = broken;
    const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
    await rig.post(notifier, { event: "opened", grant: await rig.grant(), channels: ["slack:incidents"] });
    const row = await until(async () => (await rig.notices()).find(({ last_error }) => last_error !== null));
    expect(row).toMatchObject({ last_error: error, delivered: false });
    await notifier.stop();
    await rig.db.store.deleteFrom("notices").execute();
  }
  rig.slack.broken = undefined;
  const before = rig.slack.seen.length;
  const stranger = rig.notifier({ "slack:incidents": rig.channel("slack", { ca: undefined }) });
  await rig.post(stranger, { event: "opened", grant: await rig.grant(), channels: ["slack:incidents"] });
  const row = await until(async () => (await rig.notices()).find(({ last_error }) => last_error !== null));
  expect(row.last_error).toMatch(/^no connection \([A-Z_]+\)$/);
  expect(rig.slack.seen).toHaveLength(before);
  expect(JSON.stringify(rig.warnings)).not.toContain(secret);
  await stranger.stop();
});

test("a page's delivery is an entry in the log, with the receipt's hash; a personal channel has its owner's pseudonym there, not the name", async () => {
  const notifier = rig.notifier({
    "pagerduty:duty": rig.channel("pagerduty"),
    "pagerduty:bob": rig.channel("pagerduty"),
  });
  rig.policy = await policyOf({ "people.yaml": PEOPLE.replace("slack:bob", "pagerduty:bob") });
  const grant = await rig.grant();
  await rig.post(notifier, {
    event: "approval_wanted",
    grant,
    channels: ["pagerduty:duty"],
    deciders: ["bob"],
    expiresAt: soon(),
  });
  const entries = await until(async () => {
    const found = await rig.logged("notice.delivered");
    return found.length === 2 ? found : undefined;
  });
  const rows = await rig.notices();
  for (const row of rows)
    expect(row).toMatchObject({ page: true, delivered: true, receipt: `202 trigger glasskey-${grant}` });
  const receiptSha256 = sha256(`202 trigger glasskey-${grant}`).toString("hex");
  const data = entries.map((entry) => entry["data"] as Record<string, string>);
  expect(data).toContainEqual(
    expect.objectContaining({ channel: "pagerduty:duty", event: "approval_wanted", receiptSha256 }),
  );
  expect(data).toContainEqual(expect.objectContaining({ channel: "pagerduty", person: expect.stringMatching(/^pe_/) }));
  expect(JSON.stringify(entries)).not.toContain("bob");
  rig.policy = await policyOf({ "people.yaml": PEOPLE });
  await notifier.stop();
});

test("a page that PagerDuty did not confirm by name counts as not delivered", async () => {
  const notifier = rig.notifier({ "pagerduty:duty": rig.channel("pagerduty") });
  rig.pager.broken = { status: 202, body: JSON.stringify({ status: "success", dedup_key: "another" }) };
  await rig.post(notifier, { event: "approval_wanted", grant: await rig.grant(), channels: ["pagerduty:duty"] });
  const row = await until(async () => (await rig.notices()).find(({ attempts }) => attempts > 0));
  expect(row).toMatchObject({ delivered: false, last_error: "answered 202 without naming the alert" });
  expect(await rig.logged("notice.delivered")).toEqual([]);
  await notifier.stop();
});

test("what lost its meaning is given up, in the log and loudly, and what follows is delivered", async () => {
  const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
  const grant = await rig.grant();
  rig.slack.broken = { status: 500 };
  const post = { grant, channels: ["slack:incidents"] };
  await rig.post(notifier, { event: "approval_wanted", ...post, expiresAt: soon() });
  await rig.post(notifier, { event: "timed_out", ...post, text: `about ${grant}` });
  await until(async () => ((await rig.notices())[0]?.last_error === "answered 500" ? true : undefined));
  const past = new Date(Date.now() - 1);
  await rig.db.store.updateTable("notices").set({ expires_at: past }).where("event", "=", "approval_wanted").execute();
  await until(async () => ((await rig.notices())[0]?.given_up === true ? true : undefined));
  rig.slack.broken = undefined;
  await until(async () => ((await rig.notices())[1]?.delivered === true ? true : undefined));
  expect(titles(grant)).toEqual(["Nobody decided in time"]);
  expect(await rig.logged("notice.given_up")).toEqual([
    expect.objectContaining({
      grant,
      data: expect.objectContaining({ channel: "slack:incidents", event: "approval_wanted" }),
    }),
  ]);
  expect(rig.warnings).toContain(
    `notify: slack:incidents was not told of approval_wanted about ${grant}: answered 500`,
  );
  await notifier.stop();
});

test("what the vendor calls malformed is given up at once instead of holding up what follows", async () => {
  const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
  rig.slack.broken = { status: 400, body: "invalid_payload" };
  await rig.post(notifier, { event: "opened", grant: await rig.grant(), channels: ["slack:incidents"] });
  const row = await until(async () => (await rig.notices()).find(({ given_up }) => given_up));
  expect(row.last_error).toBe("answered 400 invalid_payload");
  await notifier.stop();
});

test("an alarm goes to the channels for alarms, and so does access that is not proved gone or opened without an answer", async () => {
  const channels = { "slack:alarms": rig.channel("slack"), "slack:incidents": rig.channel("slack") };
  const notifier = rig.notifier(channels, { alarms: ["slack:alarms"] });
  const grant = await rig.grant();
  for (const event of ["alarm", "not_proved", "opened_unanswered", "opened"] as const) {
    await rig.post(notifier, {
      event,
      channels: event === "alarm" ? [] : ["slack:incidents"],
      ...(event === "alarm" ? {} : { grant }),
    });
  }
  await until(async () => ((await rig.notices()).every((row) => row.delivered) ? true : undefined));
  const told = (await rig.notices()).map(({ channel, event }) => `${event} ${channel}`);
  expect(told.filter((line) => line.endsWith("slack:alarms"))).toEqual([
    ...["alarm slack:alarms", "not_proved slack:alarms", "opened_unanswered slack:alarms"],
  ]);
  await notifier.stop();
});

test("a channel that glasskey.yaml does not have is a warning, and nothing fails", async () => {
  const notifier = rig.notifier({}, { idle: true });
  await rig.post(notifier, { event: "opened", grant: await rig.grant(), channels: ["slack:gone", "slack:gone"] });
  await rig.post(notifier, { event: "closed", grant: await rig.grant(), channels: ["slack:gone"] });
  expect(await rig.notices()).toEqual([]);
  expect(rig.warnings).toEqual(['notify: there is no channel "slack:gone" in glasskey.yaml; it is not told']);
  expect(notifier.channel("slack:gone")).toBeUndefined();
});

test("which channels wake people is said by the channel: Slack never does", () => {
  const notifier = rig.notifier(
    {
      ...{ "slack:a": rig.channel("slack"), "pagerduty:a": rig.channel("pagerduty") },
      ...{ "webhook:a": rig.channel("webhook"), "webhook:b": rig.channel("webhook", { page: true }) },
    },
    { idle: true },
  );
  const pages = ["slack:a", "pagerduty:a", "webhook:a", "webhook:b"].map((name) => notifier.channel(name)?.page);
  expect(pages).toEqual([false, true, false, true]);
});

/** One person's Slack channel, which only that person has. */
const own = (name: string) => rig.channel("slack", { webhook: `\${env:SLACK_OF_${name.toUpperCase()}}` });
const personal = { "slack:ann": "slack", "slack:bob": "slack", "slack:shared": "slack" } as const;

test("the requester never gets a link for their own grant, under any alias, and no link goes where somebody else reads", async () => {
  const channels = Object.fromEntries(Object.keys(personal).map((name) => [name, own(name.slice("slack:".length))]));
  const notifier = rig.notifier(channels, { idle: true });
  for (const requester of ["ann", "ann@corp", "ANN@corp"]) {
    await rig.post(notifier, {
      ...{ event: "approval_wanted", grant: await rig.grant(), requester, expiresAt: soon() },
      deciders: ["ann", "ann@corp", "bob", "cas", "dan", "nobody"],
    });
  }
  const rows = await rig.notices();
  expect(rows.map(({ channel, person }) => [channel, person])).toEqual([
    ...[
      ["slack:bob", "bob"],
      ["slack:bob", "bob"],
      ["slack:bob", "bob"],
    ],
  ]);
  expect(rig.warnings).toEqual(["notify: slack:shared belongs to several people, so no link goes there"]);
});

test("a personal channel that the requester, a playbook or the alarms share gets no link", async () => {
  const shared = async (people: string, playbook = ""): Promise<void> => {
    rig.policy = await policyOf({
      "people.yaml": people,
      ...(playbook === "" ? {} : { "playbooks/loud.yaml": playbook }),
    });
  };
  const channels = { "slack:bob": own("bob"), "slack:other": rig.channel("slack") };
  const notice = async () =>
    ({ event: "approval_wanted", grant: await rig.grant(), deciders: ["bob"], expiresAt: soon() }) as const;
  await shared(PEOPLE.replace("slack:ann", "slack:bob"));
  await rig.post(rig.notifier(channels, { idle: true }), await notice());
  const loud = `playbook: loud\nsummary: Loud\ntarget: orders\nscope: { role: ro }\nwho: { group: payments }\nwhen: { reason: [outage] }\napprove: { need: 0 }\ntime: { max: 30m }\nnotify: ["slack:bob"]\n`;
  await shared(PEOPLE, loud);
  await rig.post(rig.notifier(channels, { idle: true }), await notice());
  await shared(PEOPLE);
  await rig.post(rig.notifier(channels, { idle: true, alarms: ["slack:bob"] }), await notice());
  expect(await rig.notices()).toEqual([]);
  await rig.post(rig.notifier(channels, { idle: true }), await notice());
  expect((await rig.notices()).map((row) => row.channel)).toEqual(["slack:bob"]);

  // Under another name, the webhook of bob's channel is the channel for alarms.
  const twice = { ...channels, "slack:alarms": own("bob") };
  await rig.post(rig.notifier(twice, { idle: true, alarms: ["slack:alarms"] }), await notice());
  expect(await rig.notices()).toHaveLength(1);
  expect(rig.warnings).toContain("notify: slack:bob is a channel for alarms, so no link goes there");
});

test("a link is not sent to somebody who was disabled, or moved to another channel, before it was delivered", async () => {
  const channels = { "slack:bob": rig.channel("slack") };
  const idle = rig.notifier(channels, { idle: true });
  const grant = await rig.grant();
  await rig.post(idle, {
    event: "approval_wanted",
    grant,
    text: `about ${grant}`,
    deciders: ["bob"],
    expiresAt: soon(),
  });
  rig.policy = await policyOf({ "people.yaml": PEOPLE.replace("name: bob,", "name: bob, enabled: false,") });
  const notifier = rig.notifier(channels);
  const row = await until(async () => (await rig.notices()).find(({ given_up }) => given_up));
  expect(row.last_error).toBe("it is not theirs to decide any more");
  expect(about(grant)).toEqual([]);
  rig.policy = await policyOf({ "people.yaml": PEOPLE });
  await notifier.stop();
});

test("without a deadline, and when nothing is to be decided, there is no link", async () => {
  const notifier = rig.notifier({ "slack:bob": rig.channel("slack") });
  const [endless, told] = [await rig.grant(), await rig.grant()];
  await rig.post(notifier, { event: "approval_wanted", grant: endless, text: `about ${endless}`, deciders: ["bob"] });
  await rig.post(notifier, {
    event: "opened_unanswered",
    grant: told,
    text: `about ${told}`,
    deciders: ["bob"],
    expiresAt: soon(),
  });
  await until(() => (about(endless).length + about(told).length === 2 ? true : undefined));
  for (const { text } of [...about(endless), ...about(told)]) expect(text).not.toContain("/a/");
  await notifier.stop();
});

test("lesson 14: nothing that people wrote, no link and no secret is in the outbox's bytes, and a row that is moved to another channel is not sent", async () => {
  const channels = { "slack:bob": rig.channel("slack", { why: true }), "webhook:evil": rig.channel("webhook") };
  const idle = rig.notifier(channels, { idle: true });
  const grant = await rig.grant();
  await rig.post(idle, {
    event: "approval_wanted",
    grant,
    why: "needle-why",
    text: "needle-text",
    incident: "needle-incident",
    deciders: ["bob"],
    expiresAt: soon(),
  });
  const { rows } = await import("kysely").then(({ sql }) =>
    sql<{ raw: string }>`select notices::text || encode(content, 'escape') as raw from notices`.execute(rig.db.store),
  );
  expect(rows).toHaveLength(1);
  for (const needle of ["needle", "/a/", "ann", "hooks", "x-secret"]) expect(rows[0]?.raw).not.toContain(needle);
  await rig.db.store.updateTable("notices").set({ channel: "webhook:evil" }).execute();
  const notifier = rig.notifier(channels);
  const row = await until(async () => (await rig.notices()).find(({ given_up }) => given_up));
  expect(row.last_error).toBe("it was written for another channel");
  expect(rig.hook.seen.filter(({ text }) => text.includes(grant))).toEqual([]);
  await notifier.stop();
});
