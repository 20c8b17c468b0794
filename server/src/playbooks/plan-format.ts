import type { Change, Plan } from "./plan.ts";
import type { Effect } from "./plan-rules.ts";

const MAX_NAMES = 8; // shown of a list; the JSON form has all
const MAX_CHANGES = 40; // shown of each effect; a pull request's comment has 65,536 characters at most
const MAX_CLASSES = 20;
const MAX_TEXT = 300; // of one phrase
const COLUMNS = 80;

const TITLES: readonly (readonly [Effect, string, string])[] = [
  ["widens", "Widens", "allows what was not allowed"],
  ["unproved", "Needs eyes", "not proved to allow nothing new"],
  ["narrows", "Narrows", "only takes away"],
  ["neutral", "Changes nobody's access", ""],
];

/**
 * A plan for people: `text` for a terminal, in 80 columns and without colours; `markdown` as a pull request's comment.
 * What comes from the files is hostile input: it is shown without anything unseen, and in Markdown only as code.
 */
export function formatPlan(plan: Plan, as: "text" | "markdown"): string {
  return as === "text" ? textOf(plan) : markdownOf(plan);
}

/** One line that says it all. */
function summaryOf({ widened, changes }: Plan): string {
  const count = (wanted: Effect): number => changes.filter(({ effect }) => effect === wanted).length;
  if (changes.length === 0) return "Access stays the same: no difference.";
  const verdict = count("widens") > 0 ? "Access widens" : widened ? "Access may widen" : "Access does not widen";
  const parts = [
    [count("widens"), "widening"],
    [count("unproved"), "needing eyes"],
    [count("narrows"), "narrowing"],
    [count("neutral"), "neutral"],
  ] as const;
  const told = parts.filter(([many]) => many > 0).map(([many, word]) => `${many} ${word}`);
  return `${verdict}: ${told.join(", ")} ${changes.length === 1 ? "change" : "changes"}.`;
}

function textOf(plan: Plan): string {
  const lines = [summaryOf(plan)];
  for (const [effect, title, meaning] of TITLES) {
    const changes = plan.changes.filter((change) => change.effect === effect);
    if (changes.length === 0) continue;
    lines.push("", meaning === "" ? title : `${title} (${meaning})`);
    for (const change of changes.slice(0, MAX_CHANGES)) lines.push(...changeLines(change));
    lines.push(...moreLine(changes.length, MAX_CHANGES, "  "));
  }
  if (plan.people.length > 0) {
    lines.push("", "By people (numbers are of the changes above)");
    for (const { people, gains, losses } of plan.people.slice(0, MAX_CLASSES)) {
      const parts = [gains.length > 0 ? `gain ${some(gains)}` : "", losses.length > 0 ? `lose ${some(losses)}` : ""];
      lines.push(...wrap(`${some(people)}: ${parts.filter((part) => part !== "").join("; ")}`, "  ", "    "));
    }
    lines.push(...moreLine(plan.people.length, MAX_CLASSES, "  "));
  }
  if (plan.unwitnessed > 0) lines.push("", ...wrap(unwitnessedText(plan), "", ""));
  return `${lines.join("\n")}\n`;
}

function changeLines(change: Change): readonly string[] {
  const { id, rule, what, playbooks, people, witness } = change;
  const gains = change.effect === "narrows" ? "loses" : "gains";
  return [
    ...wrap(`${id}. ${plain(rule)}: ${plain(what)}`, "  ", "     "),
    ...(playbooks.length === 0 ? [] : wrap(`in ${some(playbooks)}`, "     ", "       ")),
    ...(people.length === 0 || change.effect === "neutral"
      ? []
      : wrap(`${gains}: ${some(people)}`, "     ", "       ")),
    ...(witness === undefined
      ? byRule(change, "     ")
      : [
          ...wrap(`now yes: ${plain(witness.text)}`, "     ", "       "),
          ...wrap(`was no: ${plain(witness.old)}`, "     ", "       "),
        ]),
  ];
}

function byRule({ effect }: Change, indent: string): readonly string[] {
  return effect === "widens" ? [`${indent}by rule only: no question shows it`] : [];
}

function markdownOf(plan: Plan): string {
  if (plan.changes.length === 0) return `**${summaryOf(plan)}**\n`;
  const lines = [
    `**${summaryOf(plan)}**`,
    "",
    `Policy ${code(plan.old.slice(0, 12))} → ${code(plan.next.slice(0, 12))}`,
  ];
  for (const [effect, title, meaning] of TITLES) {
    const changes = plan.changes.filter((change) => change.effect === effect);
    if (changes.length === 0) continue;
    const folded = effect === "neutral";
    const heading = meaning === "" ? title : `${title}: ${meaning}`;
    lines.push("", ...(folded ? [`<details><summary>${heading}</summary>`] : [`### ${heading}`]), "");
    lines.push("| # | rule | change | playbooks | people |", "| --- | --- | --- | --- | --- |");
    for (const { id, rule, what, playbooks, people } of changes.slice(0, MAX_CHANGES)) {
      const who = people.length === 0 ? "whoever they let in" : codes(people);
      const nobody = effect === "neutral" || (people.length === 0 && playbooks.length === 0);
      lines.push(`| ${id} | ${code(rule)} | ${code(what)} | ${codes(playbooks)} | ${nobody ? "" : who} |`);
    }
    lines.push(...moreLine(changes.length, MAX_CHANGES, "\n"));
    lines.push(...witnessDetails(changes));
    if (folded) lines.push("", "</details>");
  }
  if (plan.people.length > 0) {
    lines.push(
      "",
      "<details><summary>By people</summary>",
      "",
      "| people | gain by | lose by |",
      "| --- | --- | --- |",
    );
    for (const { people, gains, losses } of plan.people.slice(0, MAX_CLASSES)) {
      lines.push(`| ${codes(people)} | ${some(gains)} | ${some(losses)} |`);
    }
    lines.push(...moreLine(plan.people.length, MAX_CLASSES, "\n"), "", "</details>");
  }
  if (plan.unwitnessed > 0) lines.push("", unwitnessedText(plan));
  return `${lines.join("\n")}\n`;
}

function witnessDetails(changes: readonly Change[]): readonly string[] {
  if (changes.every(({ effect }) => effect !== "widens")) return [];
  const lines = ["", "<details><summary>Witnesses: asked of both versions</summary>", ""];
  for (const { id, witness } of changes.slice(0, MAX_CHANGES)) {
    if (witness === undefined) lines.push(`- ${id}: by rule only, no question shows it`);
    else lines.push(`- ${id}: now yes to ${code(witness.text)}`, `  before no: ${code(witness.old)}`);
  }
  return [...lines, "", "</details>"];
}

function unwitnessedText({ unwitnessed }: Plan): string {
  return `For ${unwitnessed} of the widening changes no witness was looked for, because there are so many.`;
}

function moreLine(length: number, shown: number, indent: string): readonly string[] {
  return length <= shown ? [] : [`${indent}… and ${length - shown} more; the JSON form has all.`];
}

/** The first of a list, and how many there are. */
function some(items: readonly (string | number)[]): string {
  const shown = items.slice(0, MAX_NAMES).map((item) => plain(String(item)));
  return items.length <= MAX_NAMES ? shown.join(", ") : `${shown.join(", ")} and ${items.length - MAX_NAMES} more`;
}

function codes(items: readonly string[]): string {
  const shown = items.slice(0, MAX_NAMES).map(code).join(", ");
  return items.length <= MAX_NAMES ? shown : `${shown} and ${items.length - MAX_NAMES} more`;
}

/** On one line, without anything that is not seen. */
function plain(text: string): string {
  const short = text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text;
  return short.replaceAll(/\s+/g, " ").replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
}

/** A code span: nothing in it is a link, a mention or HTML. A pipe would end a table's cell even there. */
function code(text: string): string {
  const safe = plain(text)
    .replaceAll("`", "'")
    .replaceAll("\\", "/")
    .replaceAll("|", String.raw`\|`)
    .trim();
  return safe === "" ? "" : `\`${safe}\``;
}

/** Breaks at spaces; a word that is longer than a line is cut. */
function wrap(text: string, first: string, rest: string): readonly string[] {
  const lines: string[] = [];
  let line = first;
  let empty = true;
  for (const word of text.split(" ").flatMap((long) => long.match(/.{1,72}/gsu) ?? [])) {
    if (!empty && line.length + 1 + word.length > COLUMNS) {
      lines.push(line);
      [line, empty] = [rest, true];
    }
    line += empty ? word : ` ${word}`;
    empty = false;
  }
  return empty ? lines : [...lines, line];
}
