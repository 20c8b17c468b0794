import type { JsonObject } from "../core/json.ts";
import type { Place } from "./document.ts";
import { DEFAULT_REVIEW_MS, EXAMPLES, type PlaybookFile, type Said, type Sayings } from "./playbook.ts";
import type { Playbook } from "./policy.ts";
import { suggest } from "./problem.ts";
import { type Placed, reportMissing } from "./shape.ts";

/** A playbook with what it inherits. */
export interface WholePlaybook {
  readonly file: PlaybookFile;
  /** Defaults, template and playbook; the later over the earlier, key by key within approve, time, when and limit. */
  readonly sayings: Sayings;
  /** Without its scope, which the target's kind checks. Undefined where something is missing or wrong. */
  readonly rules: PlaybookRules | undefined;
}
export type PlaybookRules = Omit<Playbook, "hash" | "scope"> & { readonly scope: JsonObject };

/** Fifteen minutes: at 2 a.m. a person who has not answered by then is asleep, and somebody else must be asked. */
const DEFAULT_WITHIN_MS = 15 * 60_000;

/** Puts a playbook together from policy.yaml's defaults, the template that it extends, and its own keys. */
export function inherit(
  file: PlaybookFile,
  files: readonly PlaybookFile[],
  policy: { readonly defaults: Sayings; readonly zone: string },
): WholePlaybook {
  const template = file.extends === undefined ? undefined : findTemplate(file, file.extends, files);
  const sayings: Sayings = { ...policy.defaults, ...template?.sayings, ...file.sayings };
  const lost = file.extends !== undefined && template === undefined;
  const complete = !lost && reportLacks(file, sayings, template);
  const said = Object.values(sayings) as readonly Said<unknown>[];
  const sound = said.every(({ value, none }) => none || value !== undefined);
  if (!complete || !sound || file.name === undefined) return { file, sayings, rules: undefined };
  const rules = rulesOf(file.name.value, sayings, policy.zone);
  return { file, sayings, rules: rules !== undefined && checkRules(file, sayings, rules) ? rules : undefined };
}

/**
 * Reports a rule that what the files say together breaks, at the place that says it. Where that is a template or
 * policy.yaml, which are right by themselves, the message names the playbook.
 */
export function complain(
  file: PlaybookFile,
  said: { readonly document: PlaybookFile["document"]; readonly place: Place },
  message: string,
  help?: string,
): void {
  const own = said.document === file.document;
  said.document.report(said.place, own ? message : `for playbook ${file.name?.value ?? "?"}: ${message}`, help);
}

function findTemplate(
  file: PlaybookFile,
  { value, place }: Placed<string>,
  files: readonly PlaybookFile[],
): PlaybookFile | undefined {
  if (value === "") return undefined; // no name at all, which is reported
  const named = files.filter(({ name }) => name?.value === value);
  const template = named.find(({ kind }) => kind === "template");
  if (template !== undefined) return template;
  const names = files.flatMap(({ kind, name }) => (kind === "template" && name !== undefined ? [name.value] : []));
  if (named.length > 0) {
    const help = "Only a file that begins with template: can be extended, and that one extends nothing.";
    file.document.report(place, `"${value}" is a playbook, not a template`, help);
  } else {
    const help = suggest(value, names) ?? "A template is a file in playbooks/ with template: in place of playbook:.";
    file.document.report(place, `there is no template "${value}"`, help);
  }
  return undefined;
}

/** Whether a playbook has, or inherits, everything that it must have; what it lacks is reported. */
function reportLacks(file: PlaybookFile, sayings: Sayings, template: PlaybookFile | undefined): boolean {
  const { document, sections } = file;
  const top = sections.get("");
  const inner = {
    when: ["reason", sayings.reason],
    approve: ["need", sayings.need],
    time: ["max", sayings.max],
  } as const;
  const missing: string[] = [];
  for (const key of ["summary", "target", "scope", "who"] as const) if (sayings[key] === undefined) missing.push(key);
  let complete = missing.length === 0;
  for (const [name, [key, said]] of Object.entries(inner)) {
    if (said !== undefined) continue;
    complete = false;
    const own = sections.get(name);
    if (own === undefined) missing.push(name);
    else if (!own.slips.has(key)) reportMissing(document, own.place, name, [key], INNER_EXAMPLES);
  }
  const slips = new Set([...(top?.slips ?? []), ...(template?.sections.get("")?.slips ?? [])]);
  const news = missing.filter((key) => !slips.has(key));
  if (top !== undefined) reportMissing(document, top.place, "a playbook", news, EXAMPLES);
  return complete;
}

const INNER_EXAMPLES = { reason: "[customer-impact]", need: "1", max: "45m" };

function rulesOf(name: string, sayings: Sayings, zone: string): PlaybookRules | undefined {
  const { summary, target, who, reason, need, max } = sayings;
  if (summary?.value === undefined || target?.value === undefined || who?.value === undefined) return undefined;
  if (reason?.value === undefined || need?.value === undefined || max?.value === undefined) return undefined;
  const { incident, hours, from, within, unanswered, idle, extend, uses, concurrent, cooldown, drill } = sayings;
  const { mask, keep } = sayings;
  const review = sayings.review?.value;
  const maxMs = max.value;
  return {
    ...{ name, summary: summary.value, target: target.value, scope: {}, who: who.value.map(({ value }) => value) },
    when: {
      reasons: reason.value.map(({ value }) => value),
      ...(incident?.value === undefined ? {} : { incident: incident.value }),
      ...(hours?.value === undefined ? {} : { hours: hours.value }),
      zone: sayings.zone?.value ?? zone,
    },
    approve: {
      need: need.value,
      from: (from?.value ?? []).map((side) => side.map(({ value }) => value)),
      withinMs: within?.value ?? DEFAULT_WITHIN_MS,
      ...(unanswered?.value === undefined ? {} : { unanswered: unanswered.value }),
    },
    time: {
      maxMs,
      ...(idle?.value === undefined ? {} : { idleMs: idle.value }),
      ...(extend?.value === undefined ? {} : { extend: extend.value }),
      capMs: maxMs + (extend?.value === undefined ? 0 : extend.value.times * extend.value.byMs),
    },
    limit: {
      ...(uses?.value === undefined ? {} : { uses: uses.value }),
      ...(concurrent?.value === undefined ? {} : { concurrent: concurrent.value }),
      ...(cooldown?.value === undefined ? {} : { cooldownMs: cooldown.value }),
    },
    notify: sayings.notify?.value ?? [],
    review: {
      by: (review?.by ?? []).map(({ value }) => value),
      withinMs: review?.withinMs ?? DEFAULT_REVIEW_MS,
    },
    ...(drill?.value === undefined ? {} : { drill: { everyMs: drill.value.everyMs, on: drill.value.on.value } }),
    ...(mask?.value === undefined && keep?.value === undefined
      ? {}
      : {
          record: {
            ...(mask?.value === undefined ? {} : { mask: mask.value }),
            ...(keep?.value === undefined ? {} : { keepMs: keep.value }),
          },
        }),
  };
}

/** What one key says about another. */
function checkRules(file: PlaybookFile, sayings: Sayings, { approve, time, notify }: PlaybookRules): boolean {
  let sound = true;
  const wrong = (said: Said<unknown> | undefined, message: string, help?: string): void => {
    sound = false;
    if (said !== undefined) complain(file, said, message, help);
  };
  const { need, from, unanswered, withinMs } = approve;
  if (need > 0 && from.length === 0) {
    const help = "Say who may approve: from: { group: some-leads }.";
    wrong(sayings.need, `${need} must approve, but nobody may: approve lacks from`, help);
  }
  if (need > 0 && need < from.length) {
    const help = `Each side is spoken for by a person of its own: write need: ${from.length} or more.`;
    wrong(sayings.need, `approve.need is ${need}, but approve.from has ${from.length} sides`, help);
  }
  if (time.idleMs !== undefined && time.idleMs > time.maxMs) {
    wrong(sayings.idle, "time.idle is longer than time.max, so it would never matter");
  }
  if (unanswered === undefined) return sound;
  if (need === 0) wrong(sayings.unanswered, "approve.unanswered means nothing with need: 0, which opens at once");
  if (unanswered.afterMs >= withinMs) {
    const help = "At approve.within the request times out.";
    wrong(sayings.unanswered, "approve.unanswered.after is not before the end of approve.within", help);
  }
  if (unanswered.forMs > time.maxMs) {
    wrong(sayings.unanswered, "approve.unanswered.for is longer than time.max", "It is meant to be shorter.");
  }
  if (notify.length === 0) {
    const help = "Name a channel that wakes people: notify: [pagerduty:duty-manager].";
    wrong(sayings.unanswered, "approve.unanswered is loud or not at all: the playbook lacks notify", help);
  }
  return sound;
}
