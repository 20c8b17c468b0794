import type { EventLine, ReplayLine, ShownLine, StatementLine } from "@glasskey/contract";
import { bytes, clock, plain, quoted, type Output } from "./output.ts";

/** Prints what was done in a session, one line after the other. */
export interface Story {
  tell(line: Exclude<ReplayLine, { what: "screen" | "terminals" }>): void;
  /** Nothing comes after it. */
  end(): void;
}

/** Statements whose beginning was printed, and which wait for their answer. */
const MAX_RUNNING = 1_000;
/** Lines that wait for the command that printed them. */
const MAX_HELD = 1_000;

/** @param live the session goes on: what its programs print is not kept back for their command. */
export function tellStory(out: Output, live = false): Story {
  /** Of a watched session: what was printed when it was sent. The last one printed needs no number beside its answer. */
  const running = new Map<number, number>();
  let printed = 0;
  /** A replay has a command once it has ended, behind what it printed; people read it the other way round. */
  let held: ShownLine[] = [];

  const release = (n?: number): void => {
    const lines = held;
    held = n === undefined ? [] : lines.filter((line) => line.n !== n);
    for (const line of lines) if (n === undefined || line.n === n) shown(out, line);
  };

  const statement = (line: StatementLine): void => {
    const sent = running.get(line.n);
    running.delete(line.n);
    if (sent === undefined) {
      printed++;
      out.sayAll(quoted(out, `${out.dim(clock(line.at))}  `, `${textOf(line)}${parameters(line)}`));
      if (line.outcome === "running") {
        running.set(line.n, printed);
        const [oldest] = running.keys();
        if (running.size > MAX_RUNNING && oldest !== undefined) running.delete(oldest);
        return;
      }
      release(line.n);
    }
    const which = sent === undefined || sent === printed ? "" : `${out.dim(`#${line.n}`)} `;
    const [result, paint] = resultOf(line, out);
    out.sayAll(quoted(out, `          → ${which}`, result, paint));
    if (line.detail !== undefined) out.sayAll(quoted(out, "          · ", plain(detailOf(line.detail)), out.dim));
  };

  return {
    tell(line) {
      if (line.what === "statement") return statement(line);
      if (line.what === "output" && !live) {
        held.push(line);
        if (held.length > MAX_HELD) release();
        return;
      }
      printed++;
      if (line.what === "ended") release();
      return "content" in line ? event(out, line) : shown(out, line);
    },
    end: () => release(),
  };
}

function resultOf(
  { outcome, tag, rows, us, error, bytes: length, detail }: StatementLine,
  out: Output,
): [string, (text: string) => string] {
  const long = length === undefined || detail === undefined ? "" : `, ${bytes(length)}`;
  const ms = `${long}${us === undefined ? "" : `, ${(us / 1000).toFixed(1)} ms`}`;
  switch (outcome) {
    case "refused":
      return [`refused: ${plain(error?.message ?? "")}`, out.red];
    case "failed":
      return [`${plain(error?.sqlstate ?? error?.code ?? "")} ${plain(error?.message ?? "")}${ms}`, out.red];
    case "done":
      return [
        `${plain(tag ?? (detail === undefined ? "" : "done"))}${rows === undefined || /\d$/.test(tag ?? "") ? "" : ` ${rows} rows`}${ms}`,
        out.dim,
      ];
    case "running":
      return ["sent", out.yellow];
    default:
      return ["no answer recorded", out.yellow];
  }
}

function event(out: Output, { what, at, content }: EventLine): void {
  const when = out.dim(clock(at));
  const text = (key: string): string => (typeof content[key] === "string" ? plain(content[key]) : "");
  switch (what) {
    case "started":
      return out.say(
        `${when}  ${out.bold("session begins")}: ${text("person")} on ${text("target")}, playbook ${text("playbook")}`,
      );
    case "ended":
      return out.say(`${when}  ${out.bold("session ends")}: ${text("detail") || text("cause")}`);
    case "notice":
      return out.say(`${when}  ${out.yellow(`told: ${text("text")}`)}`);
    case "prepared":
      return out.sayAll(quoted(out, `${when}  ${out.yellow("prepared, never run:")} `, text("text").trim()));
    default:
      return out.say(`${when}  ${out.yellow(text("what") || "action")}`);
  }
}

const MARKS: Readonly<Record<ShownLine["what"], string>> = { shown: "│", command: "$", output: "»" };

function shown(out: Output, { what, at, text }: ShownLine): void {
  out.sayAll(quoted(out, `${out.dim(clock(at))}  ${out.dim(MARKS[what] ?? "│")} `, text));
}

/** `path /srv/app.conf, sha256 9f86…, stdout 12 bytes`: what the kind says of a statement, as people read it. */
function detailOf(detail: Readonly<Record<string, unknown>>): string {
  const words = (value: unknown): string => {
    if (typeof value === "string") return value;
    if (typeof value !== "object" || value === null || Array.isArray(value)) return JSON.stringify(value);
    return Object.entries(value)
      .map(([name, inner]) => (name === "bytes" ? `${words(inner)} bytes` : `${name} ${words(inner)}`))
      .join(" ");
  };
  return Object.entries(detail)
    .map(([name, value]) => `${name} ${words(value)}`)
    .join(", ");
}

function textOf({ n, via, text, leftOutBytes, outcome, detail }: StatementLine): string {
  // Its answer came while somebody watches, and its text before.
  if (via === "" && text === "" && outcome !== "running") return `(statement #${n}, sent earlier)`;
  return leftOutBytes === undefined
    ? `${detail === undefined ? "" : `${plain(via)}: `}${text.trim()}`
    : `(a statement of ${bytes(leftOutBytes)}; glass export --format raw has it whole)`;
}

function parameters({ params }: StatementLine): string {
  if (!Array.isArray(params) || params.length === 0) return "";
  const values = (params as unknown[]).map((value, i) => `$${i + 1} = ${parameter(value)}`);
  return `  [${values.join(", ")}]`;
}

function parameter(value: unknown): string {
  if (value === null) return "null";
  if (typeof value === "string") return `'${plain(value)}'`;
  const binary = typeof value === "object" && "base64" in value ? value.base64 : undefined;
  return typeof binary === "string" ? `(binary) ${plain(binary)}` : plain(JSON.stringify(value));
}
