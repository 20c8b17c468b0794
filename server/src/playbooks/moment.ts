import type { Hours } from "./policy.ts";

/** A moment as a clock on the wall of a zone shows it. */
export interface LocalMoment {
  /** 1 (Monday) to 7 (Sunday). */
  readonly day: number;
  /** Minutes after midnight, 0 to 1439. */
  readonly minute: number;
}

const DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LAST_MS = 8.64e15; // the last moment that a Date can tell (ECMA-262, 21.4.1.1)

interface Zone {
  readonly format: Intl.DateTimeFormat;
  /** The minute that was told last, since the epoch: many questions come within one. */
  minute: number;
  told: LocalMoment;
}

/** Making a format costs a hundred times as much as using it. As many as there are zones, which the loader has checked. */
const zones = new Map<string, Zone>();

/** Whether a moment can be told on a clock at all. */
export function isMoment(atMs: number): boolean {
  return Number.isSafeInteger(atMs) && Math.abs(atMs) <= LAST_MS;
}

/**
 * Day and minute in a zone (IANA name), by the rules for summer time that this Node knows. Zones differ
 * from UTC by whole minutes, as all have since 1972.
 * @param atMs milliseconds since the epoch, for which {@link isMoment} holds.
 * @throws RangeError for another moment, or a zone that does not exist.
 */
export function localMoment(zone: string, atMs: number): LocalMoment {
  const minute = Math.floor(atMs / 60_000);
  let known = zones.get(zone);
  if (known?.minute === minute) return known.told;
  if (known === undefined) {
    const fields = { weekday: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" } as const;
    const format = new Intl.DateTimeFormat("en-US", { timeZone: zone, ...fields });
    known = { format, minute, told: tell(format, zone, atMs) };
    zones.set(zone, known);
  } else {
    known.told = tell(known.format, zone, atMs);
    known.minute = minute;
  }
  return known.told;
}

function tell(format: Intl.DateTimeFormat, zone: string, atMs: number): LocalMoment {
  let [day, hour, minute] = [0, 0, 0];
  for (const { type, value } of format.formatToParts(atMs)) {
    if (type === "weekday") day = DAYS.indexOf(value) + 1;
    else if (type === "hour") hour = Number(value);
    else if (type === "minute") minute = Number(value);
  }
  if (day === 0) throw new RangeError(`the day of the week in ${zone} cannot be told`);
  return { day, minute: hour * 60 + minute };
}

const NAMES = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/** For a sentence: `sat 13:05 in Europe/Berlin`. @throws RangeError as {@link localMoment}. */
export function momentText(zone: string, atMs: number): string {
  const { day, minute } = localMoment(zone, atMs);
  return `${NAMES[day - 1]} ${clock(minute)} in ${zone}`;
}

/** In the words of the file: `mon-fri 08:00-18:00 (Europe/Berlin)`. */
export function hoursText(hours: readonly Hours[], zone: string): string {
  const windows = hours.map(({ days, fromMinute, toMinute }) => {
    const time = fromMinute === 0 && toMinute === 1_440 ? "" : ` ${clock(fromMinute)}-${clock(toMinute)}`;
    return days.length === 7 && time !== "" ? time.trim() : `${daysText(days)}${time}`;
  });
  return `${windows.join(" or ")} (${zone})`;
}

function daysText(days: readonly number[]): string {
  if (days.length === 7) return "every day";
  const sorted = days.toSorted((a, b) => a - b);
  const runs: number[][] = [];
  for (const day of sorted) {
    const run = runs.at(-1);
    if (run !== undefined && run.at(-1) === day - 1) run.push(day);
    else runs.push([day]);
  }
  const names = (run: readonly number[]): string => {
    const [first, last] = [NAMES[(run[0] ?? 1) - 1], NAMES[(run.at(-1) ?? 1) - 1]];
    return run.length > 2 ? `${first}-${last}` : run.map((day) => NAMES[day - 1]).join(", ");
  };
  return runs.map(names).join(", ");
}

function clock(minute: number): string {
  return `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`;
}
