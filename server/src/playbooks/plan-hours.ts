import { localMoment } from "./moment.ts";
import type { Hours } from "./policy.ts";

/** When a rule holds: `hours` of a playbook or a denial, told in `zone`; undefined means always. */
export interface Times {
  readonly hours?: readonly Hours[];
  readonly zone: string;
}

const DAY = 1_440;
const WEEK = 7 * DAY;
const MINUTE_MS = 60_000;
/** Monday 2026-01-05, 00:00 UTC: a week in which hardly any zone changes its clocks, so that a week there is a plain one. */
const SAMPLE_WEEK_MS = Date.UTC(2026, 0, 5);
/** At noon no zone is more than a day away from UTC's own Monday, and the week does not turn. */
const NOON_MS = 12 * 60 * MINUTE_MS;
const DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/**
 * Whether `inner` never holds when `outer` does not. False also where that cannot be told: hours of two zones move
 * against each other when clocks change.
 */
export function isWithinTimes(inner: Times, outer: Times): boolean {
  const limits = weekOf(outer.hours);
  if (limits.every((word) => word === ALL)) return true;
  return sameZone(inner, outer) && weekOf(inner.hours).every((word, i) => (word & ~(limits[i] ?? 0)) === 0);
}

/** A moment of the sample week at which `wanted` holds and none of `unwanted` does; undefined where there is none. */
export function findMoment(wanted: readonly Times[], unwanted: readonly Times[] = []): number | undefined {
  const all = [...wanted, ...unwanted].filter(({ hours }) => hours !== undefined);
  // Only the edges of hours can make a difference, in each rule's own zone.
  const edges = new Set([SAMPLE_WEEK_MS + 10 * 60 * MINUTE_MS]);
  for (const { hours, zone } of all) {
    const offset = offsetMinutes(zone);
    for (const { days, fromMinute, toMinute } of hours ?? []) {
      for (const day of days) {
        for (const minute of [fromMinute, toMinute, toMinute - 1, fromMinute - 1]) {
          const ofWeek = (((day - 1) * DAY + minute - offset) % WEEK) + WEEK;
          edges.add(SAMPLE_WEEK_MS + (ofWeek % WEEK) * MINUTE_MS);
        }
      }
    }
  }
  const rules = (times: readonly Times[]) =>
    times.map(({ hours, zone }) => ({ week: weekOf(hours), offset: offsetMinutes(zone) }));
  const holdsAt = ({ week, offset }: ReturnType<typeof rules>[number], atMs: number): boolean => {
    const local = Math.floor((atMs - SAMPLE_WEEK_MS) / MINUTE_MS) + offset;
    return hasMinute(week, ((local % WEEK) + WEEK) % WEEK);
  };
  const [must, mustNot] = [rules(wanted), rules(unwanted)];
  return [...edges].find(
    (atMs) => must.every((rule) => holdsAt(rule, atMs)) && !mustNot.some((rule) => holdsAt(rule, atMs)),
  );
}

/** Such as `Mon–Fri 08:00–18:00 Europe/Berlin`. */
export function describeTimes({ hours, zone }: Times): string {
  if (hours === undefined) return "at any time";
  const parts = hours.map(({ days, fromMinute, toMinute }) => {
    const time = fromMinute === 0 && toMinute === DAY ? "" : ` ${clock(fromMinute)}–${clock(toMinute)}`;
    return `${daysText(days)}${time}`;
  });
  return `${parts.join(", ")} ${zone}`;
}

function daysText(days: readonly number[]): string {
  if (days.length === 7) return "every day";
  const runs: string[] = [];
  for (let i = 0; i < days.length;) {
    let end = i;
    while (days[end + 1] === (days[end] ?? 0) + 1) end++;
    const [first, last] = [DAYS[(days[i] ?? 1) - 1] ?? "", DAYS[(days[end] ?? 1) - 1] ?? ""];
    runs.push(end === i ? first : `${first}–${last}`);
    i = end + 1;
  }
  return runs.join(" ");
}

function clock(minute: number): string {
  return `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`;
}

function sameZone(a: Times, b: Times): boolean {
  return a.zone === b.zone;
}

/** A week from Monday 00:00, a bit for each minute in which a rule holds: thousands of pairs are compared. */
type Week = Uint32Array;

const ALL = 0xffffffff;
const ALWAYS: Week = new Uint32Array(WEEK / 32).fill(ALL);
const known = new WeakMap<readonly Hours[], Week>();

function weekOf(hours: readonly Hours[] | undefined): Week {
  if (hours === undefined) return ALWAYS;
  const before = known.get(hours);
  if (before !== undefined) return before;
  const week = new Uint32Array(WEEK / 32);
  for (const { days, fromMinute, toMinute } of hours) {
    const length = toMinute <= fromMinute ? toMinute + DAY - fromMinute : toMinute - fromMinute;
    for (const day of days) {
      const start = (day - 1) * DAY + fromMinute;
      for (let i = start; i < start + length; i++) {
        const minute = i % WEEK;
        week[minute >>> 5] = (week[minute >>> 5] ?? 0) | (1 << (minute & 31));
      }
    }
  }
  known.set(hours, week);
  return week;
}

function hasMinute(week: Week, minute: number): boolean {
  return ((week[minute >>> 5] ?? 0) & (1 << (minute & 31))) !== 0;
}

/** How far a zone is ahead of UTC in the sample week. */
function offsetMinutes(zone: string): number {
  const { day, minute } = localMoment(zone, SAMPLE_WEEK_MS + NOON_MS);
  return (day - 1) * DAY + minute - DAY / 2;
}
