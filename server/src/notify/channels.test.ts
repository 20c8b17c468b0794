import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { sha256 } from "../core/bytes.ts";
import { wordsOf } from "./message.ts";
import { ROUTING_KEY, startRig, until, URL_OF_GLASSKEY, WEBHOOK_SECRET, type Rig } from "./testing/rig.ts";

/** What each vendor's server gets. The servers are fakes, built from the documents that testing/fakes.ts names. */
let rig: Rig;
beforeAll(async () => {
  rig = await startRig(inject("pg18"), {
    "people.yaml": `- { name: ann, roles: [requester], groups: [payments] }
- { name: bob, roles: [approver], groups: [leads], notify: ["slack:bob", "pagerduty:bob", "webhook:bob"] }
`,
  });
});
afterAll(() => rig[Symbol.asyncDispose]());

const HOSTILE = {
  requester: "<!channel> *ann* & <https://evil.example|click>",
  text: "<!here> _pay_ `now`\nsecond line \u202Egnp.exe",
  incident: "@everyone #general <@U123>",
};

const allTexts = (body: Record<string, unknown>): string => JSON.stringify(body);

test("Slack gets who asks, playbook, target, reason, until when and the exact command, and not the requester's words", async () => {
  const notifier = rig.notifier({ "slack:incidents": rig.channel("slack") });
  const grant = await rig.grant();
  const expiresAt = new Date("2031-01-02T03:04:05Z");
  await rig.post(notifier, {
    event: "approval_wanted",
    grant,
    channels: ["slack:incidents"],
    expiresAt,
  });
  const seen = await until(() => rig.slack.taken().find(({ text }) => text.includes(grant)));
  expect(seen.body["text"]).toBe("Approval wanted: ann asks for orders-db-write.");
  const blocks = seen.body["blocks"] as { text: { text: string; verbatim: boolean } }[];
  const shown = blocks.map((block) => block.text.text).join("\n");
  for (const part of ["*Who:* ann", "orders-db-write", "orders-prod", "outage", "2031-01-02 03:04 UTC"]) {
    expect(shown).toContain(part);
  }
  expect(shown).toContain(`\`glass approve ${grant}\``);
  expect(shown).not.toContain("the words of ann");
  expect(shown).not.toContain("/a/");
  expect(blocks.every((block) => block.text.verbatim)).toBe(true);
  await notifier.stop();
});

test("the requester's words go only to a channel that says `why: true`", async () => {
  const notifier = rig.notifier({
    "slack:a": rig.channel("slack", { why: true }),
    "webhook:b": rig.channel("webhook", { why: true }),
    "webhook:c": rig.channel("webhook"),
  });
  const grant = await rig.grant();
  await rig.post(notifier, {
    event: "opened",
    grant,
    why: "secret customer Møller",
    channels: ["slack:a", "webhook:b", "webhook:c"],
  });
  const [slack, hooks] = await until(() => {
    const [slack] = rig.slack.taken().filter(({ text }) => text.includes(grant));
    const hooks = rig.hook.taken().filter(({ text }) => text.includes(grant));
    return slack !== undefined && hooks.length === 2 ? ([slack, hooks] as const) : undefined;
  });
  expect(allTexts(slack.body)).toContain("Møller");
  expect(String(slack.body["text"])).not.toContain("Møller");
  const whys = hooks.map(({ body }) => (body["data"] as { why?: string }).why);
  expect(new Set(whys)).toEqual(new Set(["secret customer Møller", undefined]));
  await notifier.stop();
});

test("names and texts of strangers cannot mention, link, forge lines or hide characters in Slack", async () => {
  const notifier = rig.notifier({ "slack:a": rig.channel("slack", { why: true }) });
  const grant = await rig.grant();
  await rig.post(notifier, {
    event: "approval_wanted",
    grant,
    ...HOSTILE,
    why: "*Target:* nothing\n<!everyone>",
    channels: ["slack:a"],
  });
  const { body } = await until(() => rig.slack.taken().find(({ text }) => text.includes(grant)));
  const blocks = (body["blocks"] as { text: { text: string } }[]).map((block) => block.text.text);
  const everything = [...blocks, String(body["text"])].join("\n");
  // Whatever begins with < is markup in mrkdwn; here nothing may.
  expect(everything).not.toMatch(/</);
  expect(everything).toContain("&lt;!channel&gt;");
  expect(everything).toContain("‹U+202E›");
  expect(everything).not.toContain("\u202E");
  expect(blocks[0]?.split("\n")).toHaveLength(2); // the title, and one line of text
  expect(everything).not.toMatch(/`now`/);
  expect(everything).not.toContain("*ann*");
  await notifier.stop();
});

test("a text of any length fits what the vendors take", async () => {
  const notifier = rig.notifier({
    "slack:a": rig.channel("slack", { why: true }),
    "pagerduty:a": rig.channel("pagerduty", { why: true }),
  });
  const grant = await rig.grant();
  const long = "<&>💥".repeat(5_000);
  await rig.post(notifier, {
    ...{ event: "approval_wanted", grant, text: long, requester: long, why: long, reason: long, incident: long },
    ...{ playbook: long, target: long, channels: ["slack:a", "pagerduty:a"] },
  });
  const rows = await until(async () => {
    const about = (await rig.notices()).filter(({ grant_id }) => grant_id === grant);
    return about.every(({ delivered, given_up }) => delivered || given_up) ? about : undefined;
  });
  expect(rows.map(({ delivered, attempts }) => [delivered, attempts])).toEqual([
    [true, 0],
    [true, 0],
  ]);
  await notifier.stop();
});

test("PagerDuty is called for a wanted approval, and the alert is resolved when it is decided, in order", async () => {
  const notifier = rig.notifier({ "pagerduty:duty": rig.channel("pagerduty") });
  const grant = await rig.grant();
  await rig.post(notifier, { event: "approval_wanted", grant, ...HOSTILE, channels: ["pagerduty:duty"] });
  await rig.post(notifier, { event: "opened_unanswered", grant, channels: ["pagerduty:duty"] });
  await rig.post(notifier, { event: "closed", grant, channels: ["pagerduty:duty"] });
  const seen = await until(() => {
    const about = rig.pager.taken().filter(({ text }) => text.includes(grant));
    return about.length === 5 ? about : undefined;
  });
  expect(seen.map(({ body }) => `${String(body["event_action"])} ${String(body["dedup_key"])}`)).toEqual([
    `trigger glasskey-${grant}`,
    `trigger glasskey-${grant}-unanswered`,
    `resolve glasskey-${grant}`,
    `resolve glasskey-${grant}`,
    `resolve glasskey-${grant}-unanswered`,
  ]);
  const first = seen[0]?.body as {
    payload: { severity: string; source: string; custom_details: object };
    routing_key: string;
  };
  expect(first.routing_key).toBe(ROUTING_KEY);
  expect(first.payload).toMatchObject({ severity: "critical", source: new URL(URL_OF_GLASSKEY).host });
  expect(first.payload.custom_details).toMatchObject({ commands: [`glass approve ${grant}`, `glass deny ${grant}`] });
  expect(allTexts(first)).not.toContain("the words of ann");
  await notifier.stop();
});

test("whatever PagerDuty was called for is resolved once it is over: a failed request, an extension, a review, an alarm", async () => {
  const notifier = rig.notifier({ "pagerduty:duty": rig.channel("pagerduty") }, { alarms: ["pagerduty:duty"] });
  const grant = await rig.grant();
  const text = `the journal of ${grant} is full`;
  const pairs = [
    ["approval_wanted", "failed"],
    ["extension_wanted", "extended"],
    ["review_overdue", "review_signed"],
  ] as const;
  for (const event of pairs.flat()) await rig.post(notifier, { event, grant, channels: ["pagerduty:duty"] });
  const alarm = { playbook: "", target: "", requester: "", reason: "", text };
  await rig.post(notifier, { event: "alarm", ...alarm });
  await rig.post(notifier, { event: "alarm_over", ...alarm });
  const key = (about: string, which = ""): string => `glasskey-${about}${which}`;
  const alarmKey = key(sha256(text).toString("hex").slice(0, 32), "-alarm");
  const seen = await until(() => {
    const keys = rig.pager.taken().filter(({ text: sent }) => sent.includes(grant) || sent.includes(alarmKey));
    return keys.length === 8 ? keys : undefined;
  });
  const said = seen.map(({ body }) => `${String(body["event_action"])} ${String(body["dedup_key"])}`);
  expect(said.filter((line) => line.includes(grant))).toEqual([
    ...[`trigger ${key(grant)}`, `resolve ${key(grant)}`, `trigger ${key(grant)}`, `resolve ${key(grant)}`],
    ...[`trigger ${key(grant, "-review")}`, `resolve ${key(grant, "-review")}`],
  ]);
  expect(said.filter((line) => line.includes(alarmKey))).toEqual([`trigger ${alarmKey}`, `resolve ${alarmKey}`]);
  await notifier.stop();
});

test("a receiver of one's own verifies the signature, and sees the same id at every attempt", async () => {
  const notifier = rig.notifier({ "webhook:siren": rig.channel("webhook", { page: true }) });
  const grant = await rig.grant();
  rig.hook.broken = { status: 503 };
  await rig.post(notifier, { event: "approval_wanted", grant, channels: ["webhook:siren"] });
  const refused = await until(() => rig.hook.seen.find(({ text, status }) => status === 503 && text.includes(grant)));
  rig.hook.broken = undefined;
  const taken = await until(() => rig.hook.taken().find(({ text }) => text.includes(grant)));
  expect(taken.headers["webhook-id"]).toBe(refused.headers["webhook-id"]);
  expect(taken.headers["webhook-id"]).toMatch(/^no_[0-9a-z]{12}$/);
  expect(taken.body).toMatchObject({ type: "glasskey.approval_wanted", data: { grant, requester: "ann", round: 0 } });
  await notifier.stop();
});

test("a person's own channels get the signed link, each in its vendor's form, and the link opens under the given address", async () => {
  const notifier = rig.notifier({
    "slack:bob": rig.channel("slack"),
    "pagerduty:bob": rig.channel("pagerduty"),
    "webhook:bob": rig.channel("webhook"),
  });
  const grant = await rig.grant();
  const expiresAt = new Date(Date.now() + 60_000);
  await rig.post(notifier, { event: "approval_wanted", grant, deciders: ["bob"], expiresAt });
  const links = await until(() => {
    const all = [rig.slack, rig.pager, rig.hook].flatMap((fake) =>
      fake
        .taken()
        .filter(({ text }) => text.includes(grant))
        .map(({ text }) => /https:\/\/glasskey\.example:7443\/a\/([\w-]{88})/.exec(text)?.[1]),
    );
    return all.length === 3 ? all : undefined;
  });
  for (const token of links) {
    expect(rig.links.read(token ?? "", Date.now())).toMatchObject({
      grant,
      round: 0,
      expiresAtMs: expiresAt.getTime(),
    });
  }
  await notifier.stop();
});

test("a channel whose secret is not what it must be stops the start, and nothing of it is quoted", () => {
  const cases = [
    ["slack:a", rig.channel("slack"), "${env:SLACK}", "http://plain.example/s3cret"],
    ["webhook:a", rig.channel("webhook"), "${env:HOOK}", "whsec_c2hvcnQ="],
    ["webhook:a", rig.channel("webhook"), "${env:HOOK}", "s3cret"],
  ] as const;
  for (const [name, channel, reference, value] of cases) {
    const before = rig.secrets.get(reference) ?? "";
    rig.secrets.set(reference, value);
    try {
      expect(() => rig.notifier({ [name]: channel }, { idle: true })).toThrow(
        expect.objectContaining({
          code: "config_invalid",
          message: expect.stringMatching(`^notify, ${name}: (?!.*(s3cret|c2hv))`),
        }),
      );
    } finally {
      rig.secrets.set(reference, before);
    }
  }
  expect(rig.secrets.get("${env:HOOK}")).toBe(WEBHOOK_SECRET);
});

test("every event has words", () => {
  expect(wordsOf("review_overdue")).toMatchObject({ title: "Review is overdue", calls: true });
});
