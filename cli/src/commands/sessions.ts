import type { SessionView } from "@glasskey/contract";
import { call, callLines } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { readLogin } from "../home.ts";
import { bytes, clock, plain, table, type Output } from "../output.ts";

export async function sessions({ args, options, out }: Invocation): Promise<number> {
  const query = new URLSearchParams();
  if (args[0] !== undefined) query.set("grant", args[0]);
  if (options["open"] === true) query.set("open", "true");
  const { sessions: found } = await call<{ sessions: SessionView[] }>(readLogin(), "GET", `/v1/sessions?${query}`);
  out.value({ sessions: found });
  if (found.length === 0) out.say("No sessions.");
  const head = ["SESSION", "ENDED BY", "WHO", "TARGET", "BEGAN", "STATEMENTS", "OUT", ""].map((text) => out.dim(text));
  const rows = found.map((session) => {
    const open = session.closedAt === null; // counts come with its end
    const refused = session.refused === 0 ? "" : `, ${session.refused} refused`;
    return [
      ...[
        out.bold(session.session),
        open ? out.green("open") : plain(session.cause ?? ""),
        session.person,
        session.target,
      ],
      ...[
        clock(session.openedAt),
        open ? "–" : `${session.statements}${refused}`,
        open ? "–" : bytes(session.bytesOut),
      ],
      session.recordingComplete ? "" : out.dim("recording goes on"),
    ];
  });
  out.sayAll(found.length === 0 ? [] : table([head, ...rows]).flat());
  return 0;
}

/** One record as the API gives it; what else it has depends on its kind. */
interface RecordLine {
  seq: number;
  at: string;
  kind: string;
  n?: number;
  via?: string;
  text?: string;
  params?: readonly (string | null | { base64: string })[];
  tag?: string;
  rows?: number;
  error?: { sqlstate?: string; message?: string };
  us?: number;
  reason?: string;
  /** Length of a statement that was too long for one record. */
  overflow?: number;
  person?: string;
  target?: string;
  playbook?: string;
  cause?: string;
  detail?: string;
  what?: string;
  bytes?: string;
}

/** What has begun in a recording and is not told yet. */
interface Pending {
  readonly statements: Map<number, RecordLine>;
  /** Texts that were prepared and that no statement has repeated so far. */
  readonly prepared: Map<string, RecordLine>;
}

export async function replay({ args, out }: Invocation): Promise<number> {
  const pending: Pending = { statements: new Map(), prepared: new Map() };
  const all: RecordLine[] = [];
  const path = `/v1/sessions/${encodeURIComponent(args[0] ?? "")}/recording`;
  for await (const record of callLines<RecordLine>(readLogin(), path)) {
    if (out.json) all.push(record);
    else print(record, pending, out);
  }
  for (const record of pending.statements.values()) {
    say(out, `${out.dim(clock(record.at))}  `, textOf(record));
    out.say(`          → ${out.yellow("no answer recorded")}`);
  }
  for (const record of pending.prepared.values()) {
    say(out, `${out.dim(clock(record.at))}  ${out.yellow("prepared, never run:")} `, textOf(record));
  }
  out.value({ records: all });
  return 0;
}

function print(record: RecordLine, { statements, prepared }: Pending, out: Output): void {
  const when = out.dim(clock(record.at));
  switch (record.kind) {
    case "statementStarted":
      statements.set(record.n ?? 0, record);
      prepared.delete(record.text ?? "");
      return;
    case "statementCompleted": {
      const started = statements.get(record.n ?? 0);
      statements.delete(record.n ?? 0);
      const ms = `${((record.us ?? 0) / 1000).toFixed(1)} ms`;
      const result =
        record.error === undefined
          ? out.dim(
              `${plain(record.tag ?? "")}${record.rows === undefined || /\d$/.test(record.tag ?? "") ? "" : ` ${record.rows} rows`}, ${ms}`,
            )
          : out.red(`${record.error.sqlstate ?? ""} ${plain(record.error.message ?? "")}, ${ms}`);
      say(out, `${out.dim(clock(started?.at ?? record.at))}  `, `${textOf(started)}${parameters(started)}`);
      out.say(`          → ${result}`);
      return;
    }
    case "statementRefused":
      say(out, `${when}  `, (record.text ?? "").trim());
      out.say(`          → ${out.red(`refused: ${plain(record.reason ?? "")}`)}`);
      return;
    case "sessionStarted":
      out.say(
        `${when}  ${out.bold("session begins")}: ${plain(record.person ?? "")} on ${plain(record.target ?? "")}, playbook ${plain(record.playbook ?? "")}`,
      );
      return;
    case "sessionEnded":
      out.say(`${when}  ${out.bold("session ends")}: ${plain(record.detail ?? record.cause ?? "")}`);
      return;
    case "notice":
      out.say(`${when}  ${out.yellow(`told: ${plain(record.text ?? "")}`)}`);
      return;
    case "data":
      return; // belongs to a statement: rows of COPY, or the rest of a very long text; --json has it
    case "action":
      // Steps of the extended protocol run nothing; a text that no statement repeats is told at the end.
      if (record.what === "prepare") prepared.set(record.text ?? "", record);
      if (["prepare", "bind", "describe", "close"].includes(record.what ?? "")) return;
      out.say(`${when}  ${out.yellow(plain(record.what ?? "action"))}`);
      return;
    default:
      out.say(
        `${when}  ${plain(record.kind)}${typeof record.bytes === "string" ? ` (${bytes(Math.floor((record.bytes.length * 3) / 4))})` : ""}`,
      );
  }
}

/** Statements of several lines keep their lines, each marked as a part of the first: none can pass for a line of ours. */
function say(out: Output, head: string, text: string): void {
  const [first = "", ...rest] = text.split(/\r?\n/);
  out.say(`${head}${plain(first)}`);
  for (const line of rest) out.say(`        ${out.dim("│")} ${plain(line)}`);
}

function textOf(record: RecordLine | undefined): string {
  if (record?.overflow !== undefined) return `(a statement of ${bytes(record.overflow)}; --json has it whole)`;
  return (record?.text ?? "?").trim();
}

function parameters(record: RecordLine | undefined): string {
  if (record?.params === undefined || record.params.length === 0) return "";
  const values = record.params.map(
    (value, i) =>
      `$${i + 1} = ${value === null ? "null" : typeof value === "string" ? `'${plain(value)}'` : `(binary) ${value.base64}`}`,
  );
  return `  [${values.join(", ")}]`;
}
