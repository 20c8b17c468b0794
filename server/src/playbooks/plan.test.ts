import { describe, expect, test } from "vitest";
import { Secret } from "../core/secret.ts";
import { createPolicy } from "./decide.ts";
import { compareDenials } from "./plan-denials.ts";
import { formatPlan } from "./plan-format.ts";
import { takeCensus } from "./plan-people.ts";
import { type Change, type Plan, planPolicies } from "./plan.ts";
import type { Denial, Person, Playbook, Rota, Target } from "./policy.ts";
import type { Checked, KindScopeChange } from "./targets.ts";

type Content = Parameters<typeof createPolicy>[0];

const MINUTE = 60_000;
const person = (name: string, roles: Person["roles"], groups: readonly string[] = []): Person => ({
  ...{ name, roles, groups, enabled: true, aliases: [], notify: [] },
});
const ANN = person("ann", ["requester"], ["payments"]);
const BOB = person("bob", ["requester", "approver"], ["leads"]);
const CYD = person("cyd", ["approver"], ["leads", "security"]);
const DAN = person("dan", ["requester"], ["contractors"]);
const EVE = person("eve", ["approver"], ["security"]);
const SAM = person("sam", ["security_officer"]);
const PLAYBOOK: Playbook = {
  ...{ name: "orders-write", summary: "Repair orders", target: "orders", hash: "" },
  scope: { role: "orders_rw", allow: ["default"], never: ["drop"] },
  who: [
    { by: "oncall", name: "payments" },
    { by: "group", name: "payments" },
  ],
  when: { reasons: ["outage"], zone: "UTC" },
  approve: { need: 1, from: [[{ by: "group", name: "leads" }]], withinMs: 15 * MINUTE },
  time: { maxMs: 30 * MINUTE, capMs: 30 * MINUTE, idleMs: 5 * MINUTE },
  limit: {},
  notify: ["slack:incidents"],
  review: { by: [{ by: "group", name: "leads" }], withinMs: 2_880 * MINUTE },
};
const TARGET: Target = {
  name: "orders",
  kind: "postgres",
  summary: "",
  tags: ["pci"],
  config: { host: "a" },
  hash: "",
};
const DENIAL: Denial = {
  ...{ name: "no-contractors", why: "Contractors never reach orders", zone: "UTC" },
  ...{ who: [{ by: "group", name: "contractors" }], targets: [], tags: ["pci"] },
};
const ROTA: Rota = { name: "payments", people: ["bob"] };
const BASE: Content = {
  ...{ hash: "old", people: [ANN, BOB, CYD, DAN, EVE, SAM], rotas: [ROTA], targets: [TARGET], playbooks: [PLAYBOOK] },
  ...{ reasons: new Map([["outage", "Down"]]), denials: [], tests: new Map() },
};

const asIs = (value: unknown): Checked => ({ ok: true, value: value as Playbook["scope"] });

function planOf(next: Partial<Content>, old: Partial<Content> = {}): Plan {
  return planPolicies(createPolicy({ ...BASE, ...old }), createPolicy({ ...BASE, hash: "next", ...next }));
}

function withPlaybook(part: Partial<Playbook>, from: Playbook = PLAYBOOK): Partial<Content> {
  return { playbooks: [{ ...from, ...part }] };
}

function replaced(...people: readonly Person[]): Partial<Content> {
  return { people: BASE.people.map((known) => people.find(({ name }) => name === known.name) ?? known) };
}

/** The widening or narrowing changes as `rule: what`. */
function told({ changes }: Plan, effect: Change["effect"]): readonly string[] {
  return changes.filter((change) => change.effect === effect).map(({ rule, what }) => `${rule}: ${what}`);
}

describe("people", () => {
  test("a person who joins a group gains what the group may ask for, with a question that shows it", () => {
    const plan = planOf(replaced({ ...DAN, groups: ["contractors", "payments"] }));
    expect(plan.changes).toMatchObject([
      {
        ...{ effect: "widens", rule: "who.group:payments", what: "joined the group", people: ["dan"] },
        ...{ playbooks: ["orders-write"], witness: { question: { action: "open", person: "dan" } } },
      },
    ]);
    expect(plan.people).toEqual([{ people: ["dan"], gains: [1], losses: [] }]);
    expect(plan.changes[0]?.witness?.old).toContain("dan is not");
  });

  test("the same change read backwards is a loss, and nothing widens", () => {
    const plan = planOf({}, replaced({ ...DAN, groups: ["contractors", "payments"] }));
    expect(plan.widened).toBe(false);
    expect(told(plan, "narrows")).toEqual(["who.group:payments: left the group"]);
    expect(plan.people).toEqual([{ people: ["dan"], gains: [], losses: [1] }]);
  });

  test("a person on the rota who is named by a group now may ask at any hour, which is more", () => {
    const plan = planOf(replaced({ ...BOB, groups: ["leads", "payments"] }));
    expect(plan.changes).toMatchObject([{ effect: "widens", rule: "who.group:payments", people: ["bob"] }]);
  });

  test("whoever joins a rota gains; a rota that is asked of a source now cannot be proved to be no wider", () => {
    const joined = planOf({ rotas: [{ name: "payments", people: ["bob", "dan"] }] });
    expect(joined.changes).toMatchObject([{ rule: "who.oncall:payments", what: "joined the rota", people: ["dan"] }]);
    expect(joined.changes[0]?.witness).toBeDefined();
    const source = planOf({ rotas: [{ name: "payments", source: "pagerduty:main", ref: "P1" }] });
    expect(source.widened).toBe(true);
    expect(told(source, "unproved")).toEqual(["oncall.payments: listed in oncall.yaml → asked of pagerduty:main (P1)"]);
  });

  test("roles and being enabled count, each with what it gives", () => {
    const plan = planOf(replaced({ ...DAN, roles: ["requester", "auditor"] }, { ...SAM, enabled: false }));
    expect(plan.changes).toMatchObject([
      { effect: "widens", rule: "roles", people: ["dan"], witness: { question: { action: "read_recording" } } },
      { effect: "narrows", rule: "roles", people: ["sam"] },
    ]);
  });

  test("a new person is a gain even without a playbook, and somebody who left is a loss", () => {
    const plan = planOf({ people: [...BASE.people.slice(1), person("zoe", ["requester"])] });
    expect(told(plan, "widens")).toEqual(["people: new, requester"]);
    expect(told(plan, "narrows")).toContain("people: not listed any more");
  });

  test("other ids: one more is a gain, and one less might let a human approve twice", () => {
    const alias = { ...BOB, aliases: ["bob@x"] };
    expect(told(planOf(replaced(alias)), "widens")).toEqual(["aliases: also known as bob@x"]);
    expect(told(planOf({}, replaced(alias)), "unproved")).toEqual(["aliases: not known as bob@x any more"]);
  });

  test("merging two people tells that one id means another human now", () => {
    const people = BASE.people.flatMap((known) =>
      known.name === "cyd" ? [] : known.name === "bob" ? [{ ...BOB, aliases: ["cyd"] }] : [known],
    );
    expect(told(planOf({ people }), "widens")).toContain("aliases: cyd means this person, and not cyd any more");
  });

  test("another login secret, or another place for signed links, needs eyes; no secret is in the plan", () => {
    const old = replaced({ ...BOB, secret: new Secret("scrypt$one") });
    const plan = planOf(replaced({ ...BOB, secret: new Secret("scrypt$two"), notify: ["slack:mallory"] }), old);
    expect(told(plan, "unproved")).toEqual([
      "notify: signed links also go to slack:mallory",
      "secret: another secret for the local login",
    ]);
    expect(JSON.stringify(plan)).not.toMatch(/scrypt/);
  });
});

describe("rules", () => {
  const wider: readonly [string, Partial<Playbook>, string][] = [
    ["a longer window", { time: { ...PLAYBOOK.time, maxMs: 45 * MINUTE } }, "time.max: 30m → 45m"],
    [
      "an extension",
      { time: { ...PLAYBOOK.time, extend: { times: 2, byMs: MINUTE }, capMs: 32 * MINUTE } },
      "time.extend: never → 2x1m",
    ],
    ["one reason more", { when: { ...PLAYBOOK.when, reasons: ["outage", "theft"] } }, "when.reason: also for theft"],
    ["nobody's approval", { approve: { ...PLAYBOOK.approve, need: 0 } }, "approve.need: 1 → 0"],
    ["more time to agree", { approve: { ...PLAYBOOK.approve, withinMs: 20 * MINUTE } }, "approve.within: 15m → 20m"],
    [
      "opening unanswered",
      { approve: { ...PLAYBOOK.approve, unanswered: { afterMs: MINUTE, forMs: MINUTE } } },
      "approve.unanswered: never → after 1m, for 1m at most",
    ],
    [
      "another group of approvers",
      {
        approve: {
          ...PLAYBOOK.approve,
          from: [
            [
              { by: "group", name: "leads" },
              { by: "group", name: "security" },
            ],
          ],
        },
      },
      "approve.from.group:security: named now",
    ],
    [
      "another group of requesters",
      { who: [...PLAYBOOK.who, { by: "group", name: "contractors" }] },
      "who.group:contractors: named now",
    ],
  ];
  test.each(wider)("%s widens, with a witness; read backwards it narrows", (_, part, expected) => {
    const plan = planOf(withPlaybook(part));
    expect(told(plan, "widens")).toContain(expected);
    for (const change of plan.changes) if (change.effect === "widens") expect(change.witness).toBeDefined();
    const back = planOf({}, withPlaybook(part));
    expect(back.widened).toBe(false);
    expect(told(back, "narrows").length).toBeGreaterThan(0);
  });

  const strict: Partial<Playbook> = {
    when: {
      ...{ reasons: ["outage"], incident: ["SEV1"], zone: "UTC" },
      hours: [{ days: [1, 2, 3, 4, 5], fromMinute: 480, toMinute: 1_080 }],
    },
    limit: { uses: { count: 1, perMs: 60 * MINUTE }, concurrent: 1, cooldownMs: 10 * MINUTE },
  };
  const looser: readonly [string, Partial<Playbook>, string][] = [
    [
      "another severity",
      { when: { ...strict.when, incident: ["SEV1", "SEV2"] } as Playbook["when"] },
      "when.incident: also at SEV2",
    ],
    [
      "an hour more",
      {
        when: {
          ...strict.when,
          hours: [{ days: [1, 2, 3, 4, 5], fromMinute: 480, toMinute: 1_140 }],
        } as Playbook["when"],
      },
      "when.hours: Mon–Fri 08:00–18:00 UTC → Mon–Fri 08:00–19:00 UTC",
    ],
    ["no limit of uses", { limit: { concurrent: 1, cooldownMs: 10 * MINUTE } }, "limit.uses: 1 per 1h → no limit"],
    ["two at once", { limit: { ...strict.limit, concurrent: 2 } }, "limit.concurrent: 1 → 2"],
    ["a shorter cool-down", { limit: { ...strict.limit, cooldownMs: MINUTE } }, "limit.cooldown: 10m → 1m"],
  ];
  test.each(looser)("%s widens, with a witness", (_, part, expected) => {
    const old = withPlaybook(strict);
    const plan = planOf(withPlaybook(part, { ...PLAYBOOK, ...strict }), old);
    expect(told(plan, "widens")).toEqual([expected]);
    expect(plan.changes[0]?.witness).toBeDefined();
    expect(planOf(old, withPlaybook(part, { ...PLAYBOOK, ...strict })).widened).toBe(false);
  });

  const sides = {
    ...PLAYBOOK.approve,
    need: 2,
    from: [[{ by: "group", name: "leads" }], [{ by: "group", name: "security" }]],
  } as const;
  test("a side that need not agree any more widens, although nobody new may approve", () => {
    const people = [...BASE.people, person("fay", ["approver"], ["leads"])];
    const one = { ...sides, from: [[...sides.from[0], ...sides.from[1]]] };
    const plan = planOf({ people, ...withPlaybook({ approve: one }) }, { people, ...withPlaybook({ approve: sides }) });
    expect(told(plan, "widens")).toEqual([
      "approve.from: group:leads, and group:security → group:leads or group:security",
    ]);
    expect(plan.changes[0]?.witness).toMatchObject({ question: { action: "open" } });
    expect(planOf(withPlaybook({ approve: sides }), withPlaybook({ approve: one })).widened).toBe(false);
  });

  test("hours in another zone are not proved to be narrower", () => {
    const hours = [{ days: [1, 2, 3, 4, 5, 6, 7], fromMinute: 480, toMinute: 1_080 }];
    const old = withPlaybook({ when: { ...PLAYBOOK.when, hours } });
    const next = withPlaybook({
      when: { ...PLAYBOOK.when, hours: [{ days: [1], fromMinute: 600, toMinute: 660 }], zone: "Europe/Berlin" },
    });
    expect(planOf(next, old).widened).toBe(true);
  });

  test("a scope is narrower only where `allow` lists less or `never` more", () => {
    const scope = (part: Playbook["scope"]): Plan => planOf(withPlaybook({ scope: { ...PLAYBOOK.scope, ...part } }));
    expect(scope({ never: ["drop", "truncate"] }).widened).toBe(false);
    expect(scope({ never: [] }).widened).toBe(true);
    expect(scope({ allow: [] }).widened).toBe(true);
    expect(scope({ allow: ["default", "truncate"] }).widened).toBe(true);
    expect(scope({ role: "orders_ro" }).widened).toBe(true);
    expect(told(scope({ role: "orders_ro" }), "unproved")).toEqual(['scope.role: "orders_rw" → "orders_ro"']);
  });

  test("a kind that says which way its scope went is believed; one that says nothing of a difference is not", () => {
    const next = withPlaybook({ scope: { ...PLAYBOOK.scope, role: "orders_ro" } });
    const scope = (told: readonly KindScopeChange[], kind = "postgres", target = TARGET): Plan => {
      const checks = { parseConfig: asIs, parseScope: asIs, compareScopes: () => told };
      const [old, made] = [createPolicy(BASE), createPolicy({ ...BASE, ...next, hash: "next", targets: [target] })];
      return planPolicies(old, made, new Map([[kind, checks]]));
    };
    const change = { key: "role", what: "reads only" };
    const narrower = scope([{ ...change, effect: "narrower" }]);
    expect([narrower.widened, told(narrower, "narrows")]).toEqual([false, ["scope.role: reads only"]]);
    expect(scope([{ ...change, effect: "same" }]).widened).toBe(false);
    expect(told(scope([{ ...change, effect: "wider" }]), "widens")).toEqual(["scope.role: reads only"]);
    expect(told(scope([{ ...change, effect: "other" }]), "unproved")).toEqual(["scope.role: reads only"]);
    const unsaid = ['scope.role: "orders_rw" → "orders_ro"'];
    expect(told(scope([]), "unproved")).toEqual(unsaid);
    expect(told(scope([{ ...change, effect: "narrower" }], "ssh"), "unproved")).toEqual(unsaid);
    // A target that became one of another kind.
    const moved = scope([{ ...change, effect: "narrower" }], "postgres", { ...TARGET, kind: "ssh" });
    expect(told(moved, "unproved")).toEqual([...unsaid, "targets.orders.kind: postgres → ssh"]);
  });

  test("another configuration of a target needs eyes, without showing its values", () => {
    const plan = planOf({ targets: [{ ...TARGET, config: { host: "evil.example" } }] });
    expect(told(plan, "unproved")).toEqual(["targets.orders.config: changed: host"]);
    expect(JSON.stringify(plan)).not.toContain("evil");
  });

  test("what follows a use counts: a channel that is not told, a longer idle time, a later review", () => {
    const review = { ...PLAYBOOK.review, withinMs: 5_000 * MINUTE };
    const plan = planOf(withPlaybook({ notify: [], review, time: { maxMs: 30 * MINUTE, capMs: 30 * MINUTE } }));
    expect(told(plan, "widens")).toEqual([
      "notify: does not tell slack:incidents any more",
      "review.within: 2d → 3d11h20m",
      "time.idle: 5m → never cut for idleness",
    ]);
  });

  test("another channel needs eyes where it may make openings without an answer possible, and is neutral elsewhere", () => {
    const notify = [...PLAYBOOK.notify, "pagerduty:duty-manager"];
    expect(planOf(withPlaybook({ notify })).widened).toBe(false);
    const unanswered = { afterMs: 5 * MINUTE, forMs: 15 * MINUTE };
    const silent = withPlaybook({ approve: { ...PLAYBOOK.approve, unanswered } });
    const loud = withPlaybook({ approve: { ...PLAYBOOK.approve, unanswered }, notify });
    expect(told(planOf(loud, silent), "unproved")).toEqual(["notify: also tells pagerduty:duty-manager"]);
  });

  test("a recording that holds less, or not as long, is told as widening: whoever reviews a use sees less of it", () => {
    const [masked, all] = [{ record: { mask: "parameters" as const } }, { record: { mask: "all" as const } }];
    expect(told(planOf(withPlaybook(masked)), "widens")).toEqual(["record.mask: none → parameters"]);
    expect(told(planOf(withPlaybook(masked), withPlaybook(all)), "narrows")).toEqual(["record.mask: all → parameters"]);
    const [week, day] = [{ record: { keepMs: 7 * 86_400_000 } }, { record: { keepMs: 86_400_000 } }];
    expect(told(planOf(withPlaybook(day), withPlaybook(week)), "widens")).toEqual(["record.keep: 7d → 1d"]);
    expect(told(planOf(withPlaybook(day)), "unproved")).toEqual(["record.keep: the installation's → 1d"]);
  });

  test("texts and drills change nobody's access", () => {
    const drill = { everyMs: 30 * MINUTE, on: "orders" };
    const plan = planOf({ ...withPlaybook({ summary: "Other", drill }), reasons: new Map([["outage", "Up"]]) });
    expect(plan.widened).toBe(false);
    expect(told(plan, "neutral")).toHaveLength(3);
  });

  test("one change of many playbooks is told once", () => {
    const named = (name: string, maxMs: number): Playbook => ({ ...PLAYBOOK, name, time: { maxMs, capMs: maxMs } });
    const plan = planOf(
      { playbooks: ["a", "b", "c"].map((name) => named(name, 20 * MINUTE)) },
      { playbooks: ["a", "b", "c"].map((name) => named(name, 10 * MINUTE)) },
    );
    expect(plan.changes.map(({ rule, playbooks }) => `${rule} ${playbooks.join()}`)).toEqual(["time.max a,b,c"]);
  });

  test("new and removed playbooks are told with who may use them", () => {
    const plan = planOf(withPlaybook({ name: "orders-repair" }));
    expect(plan.changes).toMatchObject([
      { effect: "widens", rule: "playbook", playbooks: ["orders-repair"], people: ["ann", "bob"] },
      { effect: "narrows", rule: "playbook", playbooks: ["orders-write"] },
    ]);
    expect(plan.changes[0]?.witness).toBeDefined();
  });
});

describe("denials", () => {
  const who: Playbook["who"] = [...PLAYBOOK.who, { by: "group", name: "contractors" }];
  const denied = { ...withPlaybook({ who }), denials: [DENIAL] };

  test("a denial that is gone lets through those whom the playbook names", () => {
    const plan = planOf(withPlaybook({ who }), denied);
    expect(told(plan, "widens")).toEqual(["forbid.no-contractors: does not hold any more"]);
    expect(plan.changes[0]).toMatchObject({ people: ["dan"], witness: { question: { person: "dan" } } });
    expect(planOf(denied, withPlaybook({ who })).widened).toBe(false);
  });

  test("a tag that is taken off a target takes its denials with it", () => {
    const plan = planOf({ ...denied, targets: [{ ...TARGET, tags: [] }] }, denied);
    expect(plan.widened).toBe(true);
  });

  test("a denial that is only renamed, or made wider, narrows or stays", () => {
    expect(planOf({ ...denied, denials: [{ ...DENIAL, name: "contractors-out" }] }, denied).widened).toBe(false);
    expect(planOf({ ...denied, denials: [{ ...DENIAL, who: [] }] }, denied).widened).toBe(false);
  });

  test("rules are compared with each other once, not once for every playbook", () => {
    const hours = [{ days: [1, 2, 3, 4, 5, 6, 7], fromMinute: 60, toMinute: 1_380 }];
    const version = () => {
      const denials = Array.from({ length: 20 }, (_, i): Denial => ({ ...DENIAL, name: `rule-${i}`, hours }));
      return createPolicy({ ...BASE, playbooks: [], denials: structuredClone(denials) });
    };
    const census = takeCensus(version(), version());
    let looks = 0;
    const among = (selectors: Parameters<typeof census.old.among>[0]) => {
      looks++;
      return census.old.among(selectors);
    };
    const counted = { ...census, old: { ...census.old, among } };
    const compare = () => compareDenials(counted, { old: "orders", next: "orders" }, census.old.everybody);
    expect(compare()).toEqual([]);
    const once = looks;
    expect([compare(), compare(), compare()]).toEqual([[], [], []]);
    expect(looks).toBe(once); // two hundred rules and a few hundred playbooks took minutes
  });

  test("whoever leaves a rota that a denial names is let through", () => {
    const denials = [{ ...DENIAL, who: [{ by: "oncall" as const, name: "freeze" }] }];
    const rotas = (people: readonly string[]): Content["rotas"] => [ROTA, { name: "freeze", people }];
    const old = { ...withPlaybook({ who }), denials, rotas: rotas(["dan"]) };
    const plan = planOf({ ...old, rotas: rotas(["sam"]) }, old);
    expect(plan.changes).toMatchObject([{ effect: "widens", people: ["dan"], what: "rota freeze is smaller" }]);
    expect(plan.changes[0]?.witness).toBeDefined();
  });
});

describe("form", () => {
  const many = Array.from({ length: 30 }, (_, i) =>
    person(`contractor-with-a-long-name-${i}`, ["requester"], ["contractors"]),
  );
  const crowd = { people: [...BASE.people, ...many] };
  const wide = planOf(
    { ...crowd, ...withPlaybook({ who: [...PLAYBOOK.who, { by: "group", name: "contractors" }] }) },
    crowd,
  );

  test("text fits 80 columns and counts what it does not show; the plan itself has all", () => {
    const text = formatPlan(wide, "text");
    expect(Math.max(...text.split("\n").map((line) => line.length))).toBeLessThanOrEqual(80);
    expect(text).toMatch(/^Access widens: 1 widening change\.\n/);
    expect(text.replaceAll(/\s+/g, " ")).toContain("and 23 more");
    expect(wide.changes[0]?.people).toHaveLength(31);
  });

  test("Markdown begins with the verdict, and names of the files cannot leave their code spans", () => {
    const summary = "</details> @everyone `x` | <img src=x onerror=alert(1)> \u202E[a](http://x)\nnew line \\";
    const plan = planOf(withPlaybook({ summary, notify: [] }));
    const text = formatPlan(plan, "markdown");
    expect(text).toMatch(/^\*\*Access widens: 1 widening, 1 neutral changes\.\*\*\n/);
    const outside = text.replaceAll(/`[^`\n]*`/g, "");
    expect(outside).not.toMatch(/everyone|img|http|\u202E|new line/);
    expect(text).not.toMatch(/\u202E/);
    expect(text.match(/<details>/g)?.length).toBe(text.match(/^<\/details>$/gm)?.length);
  });

  test("terminal escapes in names do not reach the terminal", () => {
    const plan = planOf(withPlaybook({ summary: "\u001B[2J\u009B31mred" }));
    expect(formatPlan(plan, "text")).not.toMatch(/[\u001B\u009B]/);
  });

  test("no difference is one line", () => {
    expect(formatPlan(planOf({}), "text")).toBe("Access stays the same: no difference.\n");
  });

  test("what widens access comes first, and a plan that only narrows says so", () => {
    const plan = planOf(withPlaybook({ time: { ...PLAYBOOK.time, maxMs: MINUTE, capMs: MINUTE } }));
    expect(formatPlan(plan, "text")).toMatch(/^Access does not widen: 1 narrowing change\./);
  });
});
