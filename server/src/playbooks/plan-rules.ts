import { formatDuration } from "../core/duration.ts";
import { describeTimes, findMoment, isWithinTimes } from "./plan-hours.ts";
import { compareScopes } from "./plan-scope.ts";
import { byText } from "./plan-people.ts";
import type { Aim } from "./plan-witness.ts";
import type { Playbook } from "./policy.ts";
import type { KindChecks } from "./targets.ts";

/**
 * `widens`: allows what was not allowed. `unproved`: the files cannot prove that it does not, so a person must look.
 * `narrows`: only takes away. `neutral`: changes nobody's access.
 */
export type Effect = "widens" | "unproved" | "narrows" | "neutral";

/** A difference of one rule, in the same words for every playbook that has it. */
export interface RuleChange {
  readonly effect: Effect;
  /** The playbook's own key, such as `time.max`. */
  readonly rule: string;
  readonly what: string;
  /** What a witness would have to be about; without it, no question can show the difference. */
  readonly aim?: Omit<Aim, "playbook">;
}

type Compare = (old: Playbook, next: Playbook) => readonly RuleChange[];

/**
 * What differs between two versions of a playbook, people left out; `kind` is that of its target in both. Each rule is compared by itself: if none widens, no
 * request is allowed that was not. A pair of changes of which one widens and one narrows is told as widening.
 */
export function compareRules(
  old: Playbook,
  next: Playbook,
  kind: Pick<KindChecks, "compareScopes"> | undefined,
): readonly RuleChange[] {
  return [
    ...compareTarget(old, next),
    ...compareScopes(old.scope, next.scope, kind),
    ...compareReasons(old, next),
    ...compareIncident(old, next),
    ...compareHours(old, next),
    ...compareApproval(old, next),
    ...compareTime(old, next),
    ...compareLimits(old, next),
    ...compareAftermath(old, next),
  ];
}

const compareTarget: Compare = (old, next) => [
  ...told("target", old.target === next.target ? undefined : "unproved", old.target, next.target),
  ...told("summary", old.summary === next.summary ? undefined : "neutral", `"${old.summary}"`, `"${next.summary}"`),
];

const compareReasons: Compare = (old, next) => {
  const [added, removed] = difference(old.when.reasons, next.when.reasons);
  const [first] = added;
  return [
    ...(first === undefined
      ? []
      : [change("widens", "when.reason", `also for ${added.join(", ")}`, { verb: "open", reason: first })]),
    ...(removed.length === 0 ? [] : [change("narrows", "when.reason", `not for ${removed.join(", ")} any more`)]),
  ];
};

const compareIncident: Compare = (old, next) => {
  const rule = "when.incident";
  const [before, after] = [old.when.incident, next.when.incident];
  if (before === undefined && after === undefined) return [];
  if (after === undefined) return [change("widens", rule, "without an incident, too", { verb: "open", severity: "" })];
  if (before === undefined) return [change("narrows", rule, `only with an open incident of ${after.join(", ")}`)];
  const [added, removed] = difference(before, after);
  const [first] = added;
  return [
    ...(first === undefined
      ? []
      : [change("widens", rule, `also at ${added.join(", ")}`, { verb: "open", severity: first })]),
    ...(removed.length === 0 ? [] : [change("narrows", rule, `not at ${removed.join(", ")} any more`)]),
  ];
};

const compareHours: Compare = ({ when: old }, { when: next }) => {
  if (old.hours === undefined && next.hours === undefined) return [];
  const [wider, narrower] = [!isWithinTimes(next, old), !isWithinTimes(old, next)];
  if (!wider && !narrower) return [];
  const what = `${describeTimes(old)} → ${describeTimes(next)}`;
  if (!wider) return [change("narrows", "when.hours", what)];
  const atMs = findMoment([next], [old]);
  return [change("widens", "when.hours", what, atMs === undefined ? undefined : { verb: "open", atMs })];
};

const compareApproval: Compare = (old, next) => {
  const [before, after] = [old.approve, next.approve];
  const unanswered = (): readonly RuleChange[] => {
    const [was, is] = [before.unanswered, after.unanswered];
    const looser = is !== undefined && (was === undefined || is.afterMs < was.afterMs || is.forMs > was.forMs);
    const tighter = was !== undefined && (is === undefined || is.afterMs > was.afterMs || is.forMs < was.forMs);
    const text = (value: typeof was): string =>
      value === undefined
        ? "never"
        : `after ${formatDuration(value.afterMs)}, for ${formatDuration(value.forMs)} at most`;
    const effect = looser ? "widens" : tighter ? "narrows" : undefined;
    return told("approve.unanswered", effect, text(was), text(is), { verb: "open_unanswered" });
  };
  return [
    ...number("approve.need", before.need, after.need, { wider: "less", text: String, aim: { verb: "open" } }),
    ...number("approve.within", before.withinMs, after.withinMs, {
      ...{ wider: "more", text: formatDuration },
      aim: { verb: "approve", ageMs: after.withinMs - 1 },
    }),
    ...unanswered(),
  ];
};

const compareTime: Compare = ({ time: old }, { time: next }) => {
  const [was, is] = [old.extend ?? { times: 0, byMs: 0 }, next.extend ?? { times: 0, byMs: 0 }];
  const extend = (value: typeof was): string =>
    value.times === 0 ? "never" : `${value.times}x${formatDuration(value.byMs)}`;
  const looser = is.times > was.times || is.byMs > was.byMs;
  const tighter = is.times < was.times || is.byMs < was.byMs;
  const byMs = is.byMs > was.byMs ? is.byMs : Math.min(was.byMs, is.byMs);
  const extensions = is.times > was.times ? was.times : 0;
  const cap = number("time.cap", old.capMs, next.capMs, {
    ...{ wider: "more", text: formatDuration },
    aim: { verb: "extend", byMs: is.byMs, extensions: 0, totalMs: next.capMs },
  });
  return [
    ...number("time.max", old.maxMs, next.maxMs, {
      ...{ wider: "more", text: formatDuration },
      aim: { verb: "open", durationMs: next.maxMs },
    }),
    ...told(
      ...(["time.extend", looser ? "widens" : tighter ? "narrows" : undefined, extend(was), extend(is)] as const),
      { verb: "extend", byMs, extensions, totalMs: Math.min(old.capMs, next.capMs) },
    ),
    // Without extensions it says what time.max says.
    ...(was.times === 0 && is.times === 0 && old.capMs === old.maxMs && next.capMs === next.maxMs ? [] : cap),
    ...number("time.idle", old.idleMs ?? Infinity, next.idleMs ?? Infinity, { wider: "more", text: orNone }),
  ];
};

const compareLimits: Compare = ({ limit: old }, { limit: next }) => {
  const uses = (): readonly RuleChange[] => {
    const [was, is] = [old.uses, next.uses];
    const looser = was !== undefined && (is === undefined || is.count > was.count || is.perMs < was.perMs);
    const tighter = is !== undefined && (was === undefined || is.count < was.count || is.perMs > was.perMs);
    const text = (value: typeof was): string =>
      value === undefined ? "no limit" : `${value.count} per ${formatDuration(value.perMs)}`;
    const unsigned = was === undefined ? {} : { unsigned: was.count };
    const effect = looser ? "widens" : tighter ? "narrows" : undefined;
    return told("limit.uses", effect, text(was), text(is), { verb: "open", ...unsigned });
  };
  const many = (value: number): string => (value === Infinity ? "no limit" : String(value));
  const open = old.concurrent === undefined ? {} : { open: old.concurrent };
  const since = { sinceLastMs: next.cooldownMs ?? Math.max(0, (old.cooldownMs ?? 0) - 1) };
  return [
    ...uses(),
    ...number("limit.concurrent", old.concurrent ?? Infinity, next.concurrent ?? Infinity, {
      ...{ wider: "more", text: many },
      aim: { verb: "open", ...open },
    }),
    ...number("limit.cooldown", old.cooldownMs ?? 0, next.cooldownMs ?? 0, {
      ...{ wider: "less", text: formatDuration },
      aim: { verb: "open", ...since },
    }),
  ];
};

const compareAftermath: Compare = (old, next) => {
  const [added, removed] = difference(old.notify, next.notify);
  // The first channel that confirms a page makes openings without an answer possible, and glasskey.yaml says which does.
  const heard = next.approve.unanswered === undefined ? "neutral" : "unproved";
  const drill = ({ drill: value }: Playbook): string =>
    value === undefined ? "none" : `every ${formatDuration(value.everyMs)} on ${value.on}`;
  return [
    ...(removed.length === 0 ? [] : [change("widens", "notify", `does not tell ${removed.join(", ")} any more`)]),
    ...(added.length === 0 ? [] : [change(heard, "notify", `also tells ${added.join(", ")}`)]),
    ...number("review.within", old.review.withinMs, next.review.withinMs, { wider: "more", text: formatDuration }),
    ...masking(old, next),
    ...keeping(old, next),
    ...told("drill", drill(old) === drill(next) ? undefined : "neutral", drill(old), drill(next)),
  ];
};

const MASKING: readonly string[] = ["none", "parameters", "all"];

/** Less is written down by more masking: whoever reviews a use sees less of what was done. */
function masking(old: Playbook, next: Playbook): readonly RuleChange[] {
  const [was, is] = [old.record?.mask ?? "none", next.record?.mask ?? "none"];
  if (was === is) return [];
  return told("record.mask", MASKING.indexOf(is) > MASKING.indexOf(was) ? "widens" : "narrows", was, is);
}

/** How long the installation itself keeps recordings is not in the files. */
function keeping(old: Playbook, next: Playbook): readonly RuleChange[] {
  const [was, is] = [old.record?.keepMs, next.record?.keepMs];
  if (was === is) return [];
  const effect = was === undefined || is === undefined ? "unproved" : is < was ? "widens" : "narrows";
  const text = (ms: number | undefined): string => (ms === undefined ? "the installation's" : formatDuration(ms));
  return told("record.keep", effect, text(was), text(is));
}

function number(
  rule: string,
  from: number,
  to: number,
  how: { wider: "more" | "less"; text: (value: number) => string; aim?: Omit<Aim, "playbook"> },
): readonly RuleChange[] {
  if (from === to) return [];
  const widens = how.wider === "more" ? to > from : to < from;
  return told(rule, widens ? "widens" : "narrows", how.text(from), how.text(to), how.aim);
}

function told(
  rule: string,
  effect: Effect | undefined,
  from: string,
  to: string,
  aim?: Omit<Aim, "playbook">,
): readonly RuleChange[] {
  return effect === undefined ? [] : [change(effect, rule, `${from} → ${to}`, effect === "widens" ? aim : undefined)];
}

function change(effect: Effect, rule: string, what: string, aim?: Omit<Aim, "playbook">): RuleChange {
  return { effect, rule, what, ...(aim === undefined ? {} : { aim }) };
}

/** What was added and what was removed, each sorted. */
export function difference(old: readonly string[], next: readonly string[]): [readonly string[], readonly string[]] {
  const [before, after] = [new Set(old), new Set(next)];
  return [
    [...after].filter((item) => !before.has(item)).toSorted(byText),
    [...before].filter((item) => !after.has(item)).toSorted(byText),
  ];
}

function orNone(ms: number): string {
  return ms === Infinity ? "never cut for idleness" : formatDuration(ms);
}
