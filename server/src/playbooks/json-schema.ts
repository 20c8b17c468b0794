import type { JsonObject, JsonValue } from "../core/json.ts";
import { MAX_COUNT, MAX_NEED } from "./playbook.ts";
import { ROLES } from "./policy.ts";

/** The kinds of files that a policy folder has; each has a schema of its own. */
export const SCHEMAS = ["playbook", "policy", "people", "oncall", "target"] as const;

/**
 * JSON Schema (draft 7, which editors know best) of each kind of policy file, for completion and first mistakes while
 * typing. It is the looser of two: whatever the loader accepts fits it, but only the loader sees across keys and files.
 * @param kinds names of target kinds; the keys of `config` and `scope` belong to them and are not described here.
 */
export function policySchemas(kinds: readonly string[]): Readonly<Record<(typeof SCHEMAS)[number], JsonObject>> {
  return {
    playbook: file("A Glasskey playbook, or a template that playbooks extend", playbookSchema()),
    policy: file("Glasskey's policy.yaml: what holds for all playbooks", policySchema()),
    people: file("Glasskey's people.yaml: who there is", { type: "array", items: personSchema() }),
    oncall: file("Glasskey's oncall.yaml: who is on call, by rota", oncallSchema()),
    target: file("A Glasskey target: one production system", targetSchema(kinds)),
  };
}

function file(title: string, schema: JsonObject): JsonObject {
  return { $schema: "http://json-schema.org/draft-07/schema#", title, ...schema };
}

/** An object with these keys and no others. A property is its description and its schema. */
function object(
  properties: Readonly<Record<string, readonly [string, JsonObject]>>,
  rest: JsonObject = { minProperties: 1 },
): JsonObject {
  const described = Object.entries(properties).map(([key, [description, schema]]): [string, JsonValue] => [
    key,
    { description, ...schema },
  ]);
  return { type: "object", additionalProperties: false, properties: Object.fromEntries(described), ...rest };
}

function text(pattern: string): JsonObject {
  return { type: "string", pattern };
}

function listOf(item: JsonObject): JsonObject {
  return { type: "array", items: item, minItems: 1, uniqueItems: true };
}

function oneOrMore(item: JsonObject): JsonObject {
  return { anyOf: [item, listOf(item)] };
}

/** May be taken away again, where a template or a default gives it. */
function removable(schema: JsonObject): JsonObject {
  return { anyOf: [schema, { const: "none" }] };
}

function count(minimum: number, maximum: number): JsonObject {
  return { type: "integer", minimum, maximum };
}

const DURATION = String.raw`(?=\d)(?:\d{1,4}d)?(?:\d{1,4}h)?(?:\d{1,4}m)?(?:\d{1,6}s)?`;
const duration = text(`^${DURATION}$`);
const name = text("^[a-z][a-z0-9._-]{0,62}$");
const id = text("^[A-Za-z0-9][A-Za-z0-9._@:+/|-]{0,127}$");
const reason = text("^[a-z][a-z0-9-]{0,39}$");
const severity = text("^[A-Za-z][A-Za-z0-9_-]{0,31}$");
const channel = text("^[a-z][a-z0-9-]{0,31}:[a-z][a-z0-9._-]{0,62}$");
const line: JsonObject = { type: "string", minLength: 1, maxLength: 200 };
const zone = text("^[A-Z][A-Za-z]*(?:[/_+-][A-Za-z0-9]+)*$");
const day = text("^(?:mon|tue|wed|thu|fri|sat|sun)(?:-(?:mon|tue|wed|thu|fri|sat|sun))?$");
const time = text("^(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)$");
const some = { minProperties: 1 };

const groupKey = ["Names of groups", oneOrMore(name)] as const;
const userKey = ["Names or aliases of people", oneOrMore(id)] as const;
const named = object({ group: groupKey, user: userKey }, some);
const anybody = object({ oncall: ["Names of rotas", oneOrMore(name)], group: groupKey, user: userKey }, some);

const oneTime = object(
  {
    days: ["Days on which it begins, such as `[mon, wed-fri]`; every day where left out", oneOrMore(day)],
    from: ["When it begins, `00:00` where left out", time],
    to: ["When it ends, `24:00` where left out; before `from` it passes midnight", time],
  },
  some,
);
const hours: JsonObject = { anyOf: [oneTime, { type: "array", items: oneTime, minItems: 1, maxItems: 16 }] };

const within = ["How long after the request a yes or a no counts; 15 minutes where left out", duration] as const;
const unanswered = object(
  {
    after: [
      "How long nobody must have answered since the first page was delivered; before the end of `within`",
      duration,
    ],
    then: ["Only `open`", { const: "open" }],
    for: ["How long it is then open, at most `time.max`", duration],
  },
  { required: ["after", "then", "for"] },
);
const timeKeys = {
  max: ["The longest first window", duration],
  idle: ["A session without any work is cut after this", removable(duration)],
  extend: [
    "`2x30m`: twice, by 30 minutes at most each. No grant lives longer than `max` and all extensions together",
    removable(text(`^[1-9][0-9]?x${DURATION}$`)),
  ],
} as const;
const limit = object(
  {
    uses: [
      "How many uses within `per` may wait for a signed review; one more needs a quorum",
      removable(count(1, MAX_COUNT)),
    ],
    per: ["The period that `uses` counts in, such as `7d`", duration],
    concurrent: [
      "How many grants of this playbook may be open or waiting at once; one more is refused",
      removable(count(1, MAX_COUNT)),
    ],
    cooldown: ["From the end of a person's last use to their next; earlier needs a quorum", removable(duration)],
  },
  { minProperties: 1, dependencies: { per: ["uses"] } },
);
const review = object(
  {
    by: ["Who may sign, besides security officers; never the requester", named],
    within: ["From the opening to the moment at which the review is overdue; two days where left out", duration],
  },
  { required: ["by"] },
);
const drill = object(
  {
    every: ["How often it is to be rehearsed, such as `30d`", duration],
    on: ["The target to rehearse on, of the same kind", name],
  },
  { required: ["every", "on"] },
);
const record = object(
  {
    mask: [
      "What its recordings hold as keyed hashes only: `parameters`, what a client sends beside the statement; `all`, every literal too",
      { enum: ["none", "parameters", "all"] },
    ],
    keep: ["From a session's end until its recording is destroyed, such as `30d`", removable(duration)],
  },
  { minProperties: 1 },
);
const COMMON = {
  limit: ["How often it may be used", limit],
  notify: ["Channels that are told what happens, as `kind:name` of glasskey.yaml", removable(oneOrMore(channel))],
  review: ["The look back afterwards; without it only security officers sign", review],
  drill: ["The rehearsal beforehand", removable(drill)],
  record: ["What its recordings hold, and how long", record],
} as const;

function playbookSchema(): JsonObject {
  const approveKeys = {
    need: ["How many different people must say yes; `0` opens at once, and must be written", count(0, MAX_NEED)],
    from: [
      "Who may say yes: `group:`, `user:`, any one of them; or a list of such maps, which must all agree, each by a person of its own",
      { anyOf: [named, { type: "array", items: named, minItems: 1, maxItems: MAX_NEED }] },
    ],
    within,
    unanswered: ["Opens although nobody answered: shorter, loudly, and never after a no", removable(unanswered)],
  } as const;
  const whenKeys = {
    reason: ["Reason codes that may be given, each declared in policy.yaml", listOf(reason)],
    incident: [
      "Severities, one of which the open incident that the requester names must have",
      removable(oneOrMore(severity)),
    ],
    hours: ["Times of the week, any one of them", removable(hours)],
    zone: ["Time zone of `hours`, such as `Europe/Berlin`; policy.yaml's where left out", zone],
  } as const;
  const properties = object({
    playbook: ["Its name", name],
    template: ["Its name, in place of `playbook`: it cannot be used itself, only extended", name],
    extends: ["The template whose keys hold where this playbook has none", name],
    summary: ["One line, shown to requesters and approvers", line],
    target: ["The target that it opens", name],
    scope: ["What may be done there; the keys belong to the target's kind", { type: "object" }],
    who: ["Who may ask: `oncall:` rotas, `group:` groups, `user:` people; any one lets in", anybody],
    when: ["What must be the case", object(whenKeys, {})],
    approve: ["Whose consent it takes", object(approveKeys, {})],
    time: ["How long it may last", object(timeKeys, {})],
    ...COMMON,
    tests: ["What `glass playbook test` checks", { type: "array", items: testSchema(), minItems: 1, maxItems: 200 }],
  });
  return {
    ...properties,
    oneOf: [{ required: ["playbook"] }, { required: ["template"], properties: { extends: false, tests: false } }],
    if: { required: ["playbook"], not: { required: ["extends"] } },
    then: {
      required: ["summary", "target", "scope", "who", "when", "approve"],
      properties: { when: { required: ["reason"] }, approve: { required: ["need"] } },
    },
  };
}

function testSchema(): JsonObject {
  const one = object(
    {
      who: ["The requester", id],
      oncall: ["Rotas that the requester is on call for; of the others, not", oneOrMore(name)],
      unknown: ["Rotas that nobody knows about, and the word `incident`", oneOrMore(name)],
      incident: ["Severity of the open incident that the requester names", severity],
      reason: ["The reason given; the playbook's first where left out", reason],
      for: ["How long; `time.max` where left out", duration],
      approvedBy: ["Who says yes", oneOrMore(id)],
      at: [
        "The moment, such as `2026-11-20T02:14Z`; where left out, one within `when.hours`",
        text("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{5,8}(?:Z|[+-][0-9:]{5})$"),
      ],
      unsigned: ["Uses whose review is not signed", count(0, 1_000_000)],
      open: ["Grants of this playbook that wait or are open", count(0, 1_000_000)],
      overdue: ["Reviews of this playbook that are overdue", count(0, 1_000_000)],
      sinceLast: ["Since the end of the requester's last use", duration],
    },
    { required: ["who"] },
  );
  return object(
    { allow: ["Must be allowed, and open with these approvals", one], deny: ["Must be refused", one] },
    { minProperties: 1, maxProperties: 1 },
  );
}

function policySchema(): JsonObject {
  const defaults = object(
    { approve: ["Only `within`", object({ within }, {})], time: ["As in a playbook", object(timeKeys, {})], ...COMMON },
    {},
  );
  const rule = object(
    {
      rule: ["Its name; a refusal names it as `forbid.NAME`", name],
      why: ["One line for whoever is refused", line],
      who: [
        "Whom it denies, as `who` of a playbook; everybody where left out. Who may be on call counts as on call",
        anybody,
      ],
      target: [
        "Where: `name:` targets, `tag:` tags of targets, any one; every target where left out",
        object({ name: ["Names of targets", oneOrMore(name)], tag: ["Tags of targets", oneOrMore(name)] }),
      ],
      hours: ["When, as `when.hours` of a playbook; always where left out", hours],
      zone: ["Time zone of `hours`", zone],
    },
    { required: ["rule", "why"] },
  );
  return object(
    {
      reasons: [
        "Every reason code there is, each with what it is for",
        { type: "object", propertyNames: reason, additionalProperties: line, minProperties: 1 },
      ],
      zone: ["Time zone that hours are told in where nothing else is said; `UTC` where left out", zone],
      defaults: ["What holds for every playbook that has not the key itself", defaults],
      forbid: ["Denials that no playbook can override", { type: "array", items: rule, minItems: 1, maxItems: 200 }],
    },
    { required: ["reasons"] },
  );
}

function personSchema(): JsonObject {
  return object(
    {
      name: ["Their one name in Glasskey", name],
      roles: ["What they may be; none implies another", listOf({ enum: [...ROLES] })],
      groups: ["Groups exist by being written here", listOf(name)],
      aliases: [
        "Other ids of the same human, such as mail addresses; case does not matter. Unique over all people",
        listOf(id),
      ],
      secret: [
        "What `glass secret` prints; without it this person has no local login",
        text(String.raw`^scrypt\$[0-9]{4,7}\$[0-9]{1,2}\$[0-9]{1,2}\$[A-Za-z0-9_-]{22,88}\$[A-Za-z0-9_-]{43}$`),
      ],
      enabled: [
        "`false` shuts the person out: no verb works, and their approvals count for nothing",
        { type: "boolean" },
      ],
      notify: [
        "Channels that reach this person alone, as `kind:name` of glasskey.yaml: signed links go there",
        oneOrMore(channel),
      ],
    },
    { required: ["name", "roles"] },
  );
}

function oncallSchema(): JsonObject {
  const source = object(
    {
      source: ["A source of evidence, as `kind:name` of glasskey.yaml", channel],
      schedule: ["The schedule's id there", text("^[!-~]{1,128}$")],
    },
    { required: ["source", "schedule"] },
  );
  const rota: JsonObject = {
    description: "Who is on call: a list of people, a schedule of a source of evidence, or the word `unknown`",
    anyOf: [listOf(id), source, { const: "unknown" }],
  };
  return { type: "object", propertyNames: name, additionalProperties: rota };
}

function targetSchema(kinds: readonly string[]): JsonObject {
  return object(
    {
      target: ["Its name", name],
      kind: ["What it is", { enum: [...kinds] }],
      summary: ["One line for people", line],
      tags: ["Words that rules of `forbid` can name", listOf(name)],
      config: [
        "The kind's own keys. Secrets are references, `${file:…}` or `${env:…}`; a literal one is refused",
        { type: "object" },
      ],
    },
    { required: ["target", "kind", "config"] },
  );
}
