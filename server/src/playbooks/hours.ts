import type { Document, Node } from "./document.ts";
import type { Hours } from "./policy.ts";
import { nearest, suggest } from "./problem.ts";
import { readMap, readText, startOf } from "./shape.ts";

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] as const;
const EVERY_DAY = [1, 2, 3, 4, 5, 6, 7];
const KEYS = { required: {}, optional: ["days", "from", "to"] };
const EXAMPLE = 'Write it as { days: [mon-fri], from: "08:00", to: "18:00" }.';
const MAX_HOURS = 16; // one a day, and as many again; more than a person can check by eye

/** `hours:`, one map or a list of them; any one of them is enough. Undefined where it has a mistake. */
export function readHours(document: Document, node: Node, what: string): readonly Hours[] | undefined {
  const items = node.type === "list" ? node.items : [node];
  if (items.length === 0 || items.length > MAX_HOURS) {
    const count = items.length === 0 ? "is an empty list" : `has more than ${MAX_HOURS} entries`;
    document.report(startOf(node), `${what} ${count}`, EXAMPLE);
    return undefined;
  }
  const read = items.map((item) => readOne(document, item, what));
  const sound = read.filter((hours) => hours !== undefined);
  return sound.length === read.length ? sound : undefined;
}

function readOne(document: Document, node: Node, what: string): Hours | undefined {
  const map = readMap(document, node, what, KEYS);
  if (map === undefined) return undefined;
  if (node.type === "map" && node.entries.length === 0) {
    document.report(startOf(node), `${what} is empty`, EXAMPLE);
    return undefined;
  }
  const [daysNode, fromNode, toNode] = [map.get("days")?.value, map.get("from")?.value, map.get("to")?.value];
  const days = daysNode === undefined ? EVERY_DAY : readDays(document, daysNode, `${what}.days`);
  const fromMinute = fromNode === undefined ? 0 : readTime(document, fromNode, `${what}.from`);
  const end = toNode === undefined ? 1_440 : readTime(document, toNode, `${what}.to`);
  if (days === undefined || fromMinute === undefined || end === undefined) return undefined;
  const toMinute = end === 0 ? 1_440 : end; // 00:00 as an end is the end of the day
  if (fromMinute === 1_440 || fromMinute === toMinute) {
    const place = fromNode === undefined ? startOf(node) : fromNode.place;
    document.report(place, `${what} begins when it ends`, "Leave from and to out for the whole day.");
    return undefined;
  }
  return { days, fromMinute, toMinute };
}

/** Days and ranges of days; `fri-mon` passes the end of the week. */
function readDays(document: Document, node: Node, what: string): readonly number[] | undefined {
  const items = node.type === "list" ? node.items : [node];
  if (items.length === 0) document.report(node.place, `${what} is an empty list`, "Leave the key out for every day.");
  const found = new Set<number>();
  let sound = items.length > 0;
  for (const item of items) {
    const text = readText(document, item, items.length === 1 ? what : `an item of ${what}`);
    const range = text === undefined ? undefined : daysOf(text);
    if (range === undefined) {
      sound = false;
      if (text === undefined) continue;
      const near = text.split("-").map((day) => nearest(day, DAYS) ?? day);
      const help =
        daysOf(near.join("-")) === undefined ? "Write days as mon, tue-fri." : `Did you mean "${near.join("-")}"?`;
      document.report(item.place, `${what} has no such day`, help);
    } else for (const day of range) found.add(day);
  }
  return sound ? [...found].toSorted((a, b) => a - b) : undefined;
}

function daysOf(text: string): readonly number[] | undefined {
  const [first = "", last, ...more] = text.split("-");
  const from = DAYS.findIndex((day) => day === first);
  const to = last === undefined ? from : DAYS.findIndex((day) => day === last);
  if (from === -1 || to === -1 || more.length > 0) return undefined;
  return Array.from({ length: ((to - from + 7) % 7) + 1 }, (_, i) => ((from + i) % 7) + 1);
}

/** Minutes after midnight, 0 to 1440. */
function readTime(document: Document, node: Node, what: string): number | undefined {
  const text = node.type === "scalar" && typeof node.value === "string" ? node.value : "";
  const match = /^([01]\d|2[0-3]):([0-5]\d)$|^24:00$/.exec(text);
  if (match !== null) return match[1] === undefined ? 1_440 : Number(match[1]) * 60 + Number(match[2]);
  document.report(startOf(node), `${what} is not a time of day`, 'Write it as "08:00", from 00:00 to 24:00.');
  return undefined;
}

/** An IANA name of a time zone, such as Europe/Berlin. */
export function readZone(document: Document, node: Node, what: string): string | undefined {
  const text = readText(document, node, what);
  if (text === undefined || isZone(text)) return text;
  const help = (): string =>
    suggest(text.slice(0, 64), Intl.supportedValuesOf("timeZone")) ?? "Write it as Europe/Berlin, or UTC.";
  document.report(node.place, `${what} is not a time zone`, help);
  return undefined;
}

/** By name alone: an offset such as +01:00 would be wrong for half of the year. */
function isZone(text: string): boolean {
  if (text.length > 64 || !/^[A-Z][A-Za-z]*(?:[/_+-][A-Za-z0-9]+)*$/.test(text)) return false;
  try {
    return new Intl.DateTimeFormat("en", { timeZone: text }).resolvedOptions().timeZone !== "";
  } catch {
    return false;
  }
}
