import fastify, { type FastifyInstance, type LightMyRequestResponse } from "fastify";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { vote } from "../access/approve.ts";
import { extendGrant } from "../access/extend.ts";
import { requestGrant } from "../access/request.ts";
import { book, startTestAccess, TEAM, type TestAccess } from "../access/testing/access.ts";
import { createAuthority, issueServerCertificate } from "../core/certificates.ts";
import { systemClock, type Clock } from "../core/clock.ts";
import { Secret } from "../core/secret.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { ChannelConfig } from "../notify/config.ts";
import { createLinks, type Links } from "../notify/links.ts";
import { createNotifier } from "../notify/notifier.ts";
import { fakeReceiver } from "../notify/testing/fakes.ts";
import { linkRoutes } from "./links.ts";

let system: TestAccess;
let app: FastifyInstance;
let links: Links;
const clock: { aheadMs: number } & Clock = {
  aheadMs: 0,
  now: () => new Date(Date.now() + clock.aheadMs),
  monotonicMs: () => systemClock.monotonicMs(),
};
const warnings: string[] = [];

beforeAll(async () => {
  const consent = { approve: "{ need: 1, from: { group: leads } }" };
  system = await startTestAccess(inject("pg18"), {
    ...book("consent", consent),
    ...book("two", { approve: "{ need: 2, from: { group: leads } }" }),
    ...book("longer", { ...consent, time: "{ max: 10m, extend: 2x5m }" }),
    ...book("short", { approve: "{ need: 1, from: { group: leads }, within: 1s }" }),
    ...book("page", {
      ...consent,
      summary: "Repair <b>orders</b>",
      who: "{ oncall: payments }",
      when: "{ reason: [outage], incident: [SEV1] }",
      scope: "{ role: orders_rw, never: [drop, truncate] }",
    }),
  });
  links = createLinks(system.access.keyring);
  app = fastify();
  const services = { access: system.access, links, clock, warn: (line: string) => warnings.push(line) };
  await app.register(
    (scope, _options, done) => {
      linkRoutes(scope, services);
      done();
    },
    { prefix: "/a" },
  );
});
afterAll(async () => {
  await app.close();
  await system[Symbol.asyncDispose]();
});

async function tokenOf(grant: string, person: string, round = 0, forMs = 600_000): Promise<string> {
  const pseudonym = await pseudonymOf(system.store, person);
  return links.make({ grant, round, person: pseudonym, expiresAtMs: Date.now() + forMs }).reveal();
}
const look = (token: string, method: "GET" | "HEAD" = "GET"): Promise<LightMyRequestResponse> =>
  app.inject({ method, url: `/a/${token}` });
const say = (
  token: string,
  verdict: string,
  type = "application/x-www-form-urlencoded",
): Promise<LightMyRequestResponse> =>
  app.inject({ method: "POST", url: `/a/${token}`, headers: { "content-type": type }, payload: verdict });
const approve = (token: string): Promise<LightMyRequestResponse> => say(token, "verdict=approve");
const deny = (token: string): Promise<LightMyRequestResponse> => say(token, "verdict=deny");
const heading = ({ body }: LightMyRequestResponse): string => /<h1>(.*?)<\/h1>/s.exec(body)?.[1]?.trim() ?? "";
const votes = (grant: string) =>
  system.store.selectFrom("approvals").selectAll().where("grant_id", "=", grant).execute();

/** What the link touches, to be compared before and after. */
async function everything(grant: string): Promise<string> {
  return JSON.stringify([await system.grant(grant), await votes(grant), await system.types(grant)]);
}

test("opening the link shows the request and changes nothing, however often and by whatever a chat or a scanner sends", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob");
  const before = await everything(grant);
  for (let n = 0; n < 3; n += 1) {
    const page = await look(token);
    expect(page.statusCode).toBe(200);
    expect(heading(page)).toBe("ann asks to open orders");
    expect((await look(token, "HEAD")).statusCode).toBe(200);
  }
  await app.inject({ method: "GET", url: `/a/${token}?verdict=approve`, headers: { purpose: "prefetch" } });
  for (const body of [
    "",
    "verdict=",
    "verdict=yes",
    "verdict=approve&verdict=deny",
    "x=1&verdict=approve",
    "verdict=approve ",
  ]) {
    expect((await say(token, body)).statusCode).toBe(200); // the question again
  }
  expect((await say(token, '{"verdict":"approve"}', "application/json")).statusCode).toBe(404);
  expect((await say(token, "verdict=approve", "text/plain")).statusCode).toBe(404);
  expect((await say(token, `verdict=approve${" ".repeat(1_000)}`)).statusCode).toBe(404);
  expect((await app.inject({ method: "PUT", url: `/a/${token}` })).statusCode).toBe(404);
  expect(await everything(grant)).toBe(before);
});

test("a yes opens the grant, a no ends it, and the same link then tells what became of it and decides nothing again", async () => {
  const [yes, no] = [await system.break("consent"), await system.break("consent")];
  const [yesToken, noToken] = [await tokenOf(yes, "bob"), await tokenOf(no, "bob")];
  const approved = await approve(yesToken);
  expect([approved.statusCode, heading(approved)]).toEqual([200, "You said yes"]);
  expect(approved.body).toContain(`glass end ${yes}`);
  await system.until(yes, "active");
  const denied = await deny(noToken);
  expect([denied.statusCode, heading(denied)]).toEqual([200, "You said no"]);
  expect((await system.grant(no)).state).toBe("denied");

  expect(heading(await deny(yesToken))).toBe("You said yes");
  expect(heading(await approve(noToken))).toBe("You said no");
  expect(heading(await look(yesToken))).toBe("You said yes");
  expect((await system.grant(yes)).state).toBe("active");
  expect((await system.grant(no)).state).toBe("denied");
  expect(await votes(yes)).toHaveLength(1);
  expect((await system.types(yes)).filter((type) => type === "approval.given")).toHaveLength(1);
});

test("where two must agree, the first yes is counted and says what is missing", async () => {
  const grant = await system.break("two");
  expect((await look(await tokenOf(grant, "bob"))).body).toContain("your yes is 1 of 2");
  const first = await approve(await tokenOf(grant, "bob"));
  expect(heading(first)).toBe("Your yes is counted");
  expect(first.body).toContain("1 more person has to agree");
  expect((await system.grant(grant)).state).toBe("pending");
  const second = await look(await tokenOf(grant, "cas"));
  expect(second.body).toContain("opens it for 30m");
  expect(second.body).toContain("1 of 2: bob");
  expect(heading(await approve(await tokenOf(grant, "cas")))).toBe("You said yes");
  await system.until(grant, "active");
});

test("forged, cut, changed and expired links, and links of another installation, all show the same page with the same status", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob");
  const foreign = createLinks({ derive: () => Buffer.alloc(32, 9) });
  const person = await pseudonymOf(system.store, "bob");
  const expiresAtMs = Date.now() + 60_000;
  const wrong = [
    token.slice(0, -1),
    `${token}A`,
    `${token}/`,
    `B${token.slice(1)}`,
    "x",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "A".repeat(5_000),
    await tokenOf(grant, "bob", 0, -1),
    foreign.make({ grant, round: 0, person, expiresAtMs }).reveal(),
    await tokenOf("gr_zzzzzzzzzzzz", "bob"), // no such grant
    links.make({ grant, round: 0, person: "pe_zzzzzzzzzzzz", expiresAtMs }).reveal(), // nobody
  ];
  const expected = await look("x");
  expect([expected.statusCode, heading(expected)]).toEqual([404, "This link does not work"]);
  for (const one of wrong) {
    for (const answer of [await look(one), await approve(one)]) {
      expect(answer.statusCode, one.slice(0, 100)).toBe(404);
      expect(answer.body).toBe(expected.body);
      expect(answer.headers["content-security-policy"]).toBe(expected.headers["content-security-policy"]);
    }
  }
  expect((await system.grant(grant)).state).toBe("pending");
  expect(await votes(grant)).toEqual([]);
});

test("a link's own end is held by the clock: a moment later it is the page of any wrong link", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob", 0, 60_000);
  clock.aheadMs = 61_000;
  try {
    expect((await approve(token)).statusCode).toBe(404);
  } finally {
    clock.aheadMs = 0;
  }
  expect(await votes(grant)).toEqual([]);
  expect(heading(await approve(token))).toBe("You said yes");
});

test("lesson 7: the requester decides nothing with a link, by name or by alias, and neither does an administrator who asks", async () => {
  const grant = await system.break("consent", { person: "amy" });
  expect((await system.grant(grant)).requester).toBe("amy");
  for (const name of ["amy", "amy.admin"]) {
    const token = await tokenOf(grant, name);
    const answer = await approve(token);
    expect(answer.statusCode).toBe(403);
    expect(heading(answer)).toBe("This is not yours to decide any more");
    expect((await deny(token)).statusCode).toBe(403);
  }
  expect((await system.grant(grant)).state).toBe("pending");
  expect(await votes(grant)).toEqual([]);
});

test("somebody who left the group or was disabled between the message and the click decides nothing, and learns nothing of the request", async () => {
  const grant = await system.break("consent", { why: "needle-in-the-why" });
  const token = await tokenOf(grant, "bob");
  expect((await look(token)).body).toContain("needle-in-the-why");
  const people = String(TEAM["people.yaml"]);
  for (const changed of [
    people.replace("name: bob,", "name: bob, enabled: false,"),
    people.replace("- { name: bob, roles: [approver], groups: [leads, seniors] }\n", ""),
    people.replace("groups: [leads, seniors]", "groups: [seniors]"),
    // Somebody else got the name as an alias: the link was made for bob, not for her.
    people
      .replace("- { name: bob, roles: [approver], groups: [leads, seniors] }\n", "")
      .replace("- { name: cas, roles: [approver],", "- { name: cas, aliases: [bob], roles: [approver],"),
  ]) {
    await system.policy({ "people.yaml": changed });
    for (const answer of [await look(token), await approve(token), await deny(token)]) {
      expect(answer.statusCode).toBe(403);
      expect(answer.body).not.toContain("needle-in-the-why");
    }
  }
  await system.policy({});
  expect(await votes(grant)).toEqual([]);
  expect(heading(await approve(token))).toBe("You said yes");
});

test("the group is looked at again while the vote is taken: leaving it in that very moment is early enough", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob");
  system.evidence.during = async () => {
    system.evidence.during = () => {};
    await system.policy({
      "people.yaml": String(TEAM["people.yaml"]).replace("groups: [leads, seniors]", "groups: [seniors]"),
    });
  };
  const answer = await approve(token);
  expect(answer.statusCode).toBe(403);
  expect((await system.grant(grant)).state).toBe("pending");
  expect(await votes(grant)).toEqual([]);
  await system.policy({});
});

test("a playbook that changed after the request is not approved by a link", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob");
  await system.policy(
    book("consent", { approve: "{ need: 1, from: { group: leads } }", scope: "{ role: everything }" }),
  );
  expect(heading(await look(token))).toBe("The playbook changed after the request");
  expect(heading(await approve(token))).toBe("The playbook changed after the request");
  expect(await votes(grant)).toEqual([]);
  await system.policy({});
});

test("two clicks at once count once, and two people at once give one outcome that both pages tell", async () => {
  for (let round = 0; round < 5; round += 1) {
    const grant = await system.break("consent");
    const [bob, cas] = [await tokenOf(grant, "bob"), await tokenOf(grant, "cas")];
    const pages = await Promise.all([approve(bob), approve(bob), deny(cas)]);
    const { state } = await system.until(grant, "active", "denied");
    const given = (await votes(grant)).map(({ person, verdict }) => `${person} ${verdict}`);
    expect(given).toEqual(state === "denied" ? ["cas deny"] : ["bob approve"]);
    const told = pages.map((page) => heading(page));
    const late = ["Somebody else was faster", "Somebody else said no"];
    expect(told[2] === "You said no").toBe(state === "denied");
    for (const page of told.slice(0, 2)) expect(state === "denied" ? late[1] : "You said yes").toBe(page);
    if (state === "active") expect(told[2]).toBe(late[0]);
  }
});

test("lesson 9: a click after the deadline revives nothing, although the link itself still holds", async () => {
  const grant = await system.break("short");
  const token = await tokenOf(grant, "bob");
  await new Promise((done) => setTimeout(done, 1_100));
  for (const answer of [await look(token), await approve(token)]) expect(heading(answer)).toBe("Too late");
  expect((await system.grant(grant)).state).not.toBe("active");
  expect(await votes(grant)).toEqual([]);
});

test("a request that was taken back or that somebody else decided is told as such", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "cas");
  await vote(system.access, "bob", grant, "deny");
  const page = await approve(token);
  expect(heading(page)).toBe("Somebody else said no");
  expect(page.body).toContain("bob denied the request of ann");
});

test("a link is good for its own round: not for an extension asked for later, not even when that happens during the click", async () => {
  const grant = await system.break("longer");
  const [first, slow] = [await tokenOf(grant, "bob"), await tokenOf(grant, "cas")];
  system.evidence.during = async () => {
    system.evidence.during = () => {};
    // While the click of cas is on its way, bob approves, it opens, and ann asks for more time.
    await vote(system.access, "bob", grant, "approve");
    await system.until(grant, "active");
    await extendGrant(system.access, "ann", grant);
  };
  const late = await approve(slow);
  expect(late.statusCode).toBe(409);
  expect(heading(late)).toBe("Somebody else was faster");
  const row = await system.grant(grant);
  expect([row.state, row.extension_round, row.extensions_used]).toEqual(["active", 1, 0]);
  expect(heading(await approve(first))).toBe("You said yes");
  expect((await system.grant(grant)).extensions_used).toBe(0);

  const second = await tokenOf(grant, "cas", 1);
  const page = await look(second);
  expect(heading(page)).toBe("ann asks for more time on orders");
  expect(page.body).toContain("5m longer");
  expect(heading(await approve(second))).toBe("You said yes");
  expect((await system.grant(grant)).extensions_used).toBe(1);
  expect(heading(await look(await tokenOf(grant, "bob", 1)))).toBe("The extension is decided");
});

test("the page shows who asks, why, what for, the scope, the evidence with source and age, and what each button does", async () => {
  system.evidence.incidents = { "INC-7": "SEV1" };
  const grant = await system.break("page", { why: "orders are stuck", incident: "INC-7" });
  const { body } = await look(await tokenOf(grant, "bob"));
  for (const part of [
    "ann asks to open orders",
    "Repair &lt;b&gt;orders&lt;/b&gt;",
    "orders are stuck",
    "role: orders_rw",
    "never: drop, truncate",
    "30m, from the last approval",
    "Something does not work",
    "ann is on call for payments",
    "Incident INC-7 is open: SEV1",
    "the rota in the policy, ",
    "You decide as <b>bob</b>",
    "opens it for 30m",
    "ends the request",
    "14 min left",
  ]) {
    expect(body).toContain(part);
  }
});

test("hostile words stay words: no markup, no hidden characters, no line that looks like ours", async () => {
  const why = "</p></blockquote><script>alert(1)</script><form action=//evil>\u202Egnp.exe\u0000\u200B\u2028 ' \" & 𝕏";
  const grant = await system.break("consent", { why });
  const { body } = await look(await tokenOf(grant, "bob"));
  expect(body).not.toMatch(/<script|<form action|<img|onerror|javascript:/i);
  expect(body).toContain("&lt;/p&gt;&lt;/blockquote&gt;&lt;script&gt;");
  expect(body).toContain("‹U+202E›gnp.exe");
  expect(body).toContain("‹U+200B›");
  expect(body).not.toMatch(/[\u202E\u200B\u2028\u0000]/);
  expect(body.match(/<form/g)).toHaveLength(1);
});

test("every answer forbids scripts, frames, caches and referrers, and names its one style by hash", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob");
  for (const answer of [
    await look(token),
    await look("x"),
    await deny(token),
    await app.inject({ method: "PUT", url: "/a/x" }),
  ]) {
    const style = /<style>([^]*?)<\/style>/.exec(answer.body)?.[1] ?? "";
    const hash = createHash("sha256").update(style).digest("base64");
    expect(answer.headers["content-security-policy"]).toBe(
      `default-src 'none'; style-src 'sha256-${hash}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'`,
    );
    expect(answer.headers).toMatchObject({
      ...{ "cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff" },
      ...{ "content-type": "text/html; charset=utf-8", "x-frame-options": "DENY" },
    });
    expect(answer.body).not.toMatch(/<script|style="| on[a-z]+=|https?:\/\//i);
    expect(answer.body).not.toContain(token);
  }
});

test("from break to click: the request sends the deciders their links through the outbox, and one of them opens the grant", async () => {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-link-"));
  const authority = await createAuthority("tests", 2);
  await writeFile(join(folder, "ca.pem"), authority.cert);
  const secret = `whsec_${Buffer.alloc(32, 5).toString("base64")}`;
  const receiver = await fakeReceiver(await issueServerCertificate(authority, ["127.0.0.1"], 2), secret);
  const channel: ChannelConfig = {
    ...{ kind: "webhook", url: receiver.url, secret: "${env:HOOK}", page: false, why: false },
    ca: join(folder, "ca.pem"),
  };
  const { keyring } = system.access;
  const { store } = system;
  const own = (name: string, roles: string) =>
    `- { name: ${name}, roles: ${roles}, groups: [leads], notify: ["webhook:${name}"] }\n`;
  await system.policy({
    "people.yaml": `- { name: ann, roles: [requester, approver], groups: [payments, leads], notify: ["webhook:ann"] }
${own("bob", "[approver]")}${own("cas", "[approver]")}${own("sam", "[auditor]")}`,
  });
  const notifier = createNotifier({
    ...{ store, keyring, links, clock, node: "nd_1", policy: system.access.policy, pollMs: 20 },
    config: { channels: new Map(["ann", "bob", "cas", "sam"].map((name) => [`webhook:${name}`, channel])), alarms: [] },
    resolveSecret: () => new Secret(secret),
    warn: (line) => warnings.push(line),
  });
  notifier.start("https://glasskey.example");
  try {
    const request = { person: "ann", playbook: "longer", reason: "outage", why: "checkout is down" };
    const grant = await requestGrant({ ...system.access, notifier }, request);
    const linkOf = async (person: string): Promise<string> => {
      for (;;) {
        const data = receiver.taken().map(({ body }) => body["data"] as { person?: string; link?: string });
        const link = data.findLast((sent) => sent.person === person)?.link;
        if (link !== undefined) return link.replace("https://glasskey.example/a/", "");
        await new Promise((done) => setTimeout(done, 10));
      }
    };
    const bob = await linkOf("bob");
    await linkOf("cas");
    expect(heading(await look(bob))).toBe("ann asks to open orders");
    expect(heading(await approve(bob))).toBe("You said yes");
    await system.until(grant, "active");
    expect((await votes(grant)).map(({ person, round }) => [person, round])).toEqual([["bob", 0]]);
    const people = receiver.taken().map(({ body }) => (body["data"] as { person?: string }).person);
    expect(new Set(people)).toEqual(new Set(["bob", "cas"])); // not ann, who asks, nor sam, who is no approver
  } finally {
    await notifier.stop();
    await receiver.stop();
    await system.policy({});
    await rm(folder, { recursive: true });
  }
});

test("a store that is away is said, with nothing of the link in what is warned of", async () => {
  const grant = await system.break("consent");
  const token = await tokenOf(grant, "bob");
  const broken = fastify();
  const access = { ...system.access, store: system.access.store.withSchema("gone") };
  linkRoutes(broken, { access, links, clock, warn: (line) => warnings.push(line) });
  const answer = await broken.inject({ method: "GET", url: `/${token}` });
  expect([answer.statusCode, heading(answer)]).toEqual([503, "Glasskey cannot answer now"]);
  expect(warnings.at(-1)).toMatch(/^signed link: /);
  expect(warnings.join("\n")).not.toContain(token);
  await broken.close();
});
