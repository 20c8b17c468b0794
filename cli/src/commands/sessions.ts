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
  const rows = found.map((session) => [
    ...[
      out.bold(session.session),
      session.closedAt === null ? out.green("open") : plain(session.cause ?? ""),
      session.person,
      session.target,
      clock(session.openedAt),
    ],
    `${session.statements} statements${session.refused === 0 ? "" : `, ${session.refused} refused`}, ${bytes(session.bytesOut)} out`,
    session.recordingComplete ? "" : out.dim("recording goes on"),
  ]);
  for (const line of table(rows)) out.say(line);
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

export async function replay({ args, out }: Invocation): Promise<number> {
  const open = new Map<number, RecordLine>();
  const all: RecordLine[] = [];
  for await (const record of callLines<RecordLine>(
    readLogin(),
    `/v1/sessions/${encodeURIComponent(args[0] ?? "")}/recording`,
  )) {
    if (out.json) {
      all.push(record);
      continue;
    }
    print(record, open, out);
  }
  for (const started of open.values())
    out.say(`${clock(started.at)}  ${plain(started.text ?? "")}  ${out.yellow("no answer recorded")}`);
  out.value({ records: all });
  return 0;
}

/** Steps of the extended protocol that say nothing a statement does not say too; --json has them. */
const QUIET = new Set(["prepare", "bind", "describe", "close"]);

function print(record: RecordLine, open: Map<number, RecordLine>, out: Output): void {
  const when = out.dim(clock(record.at));
  switch (record.kind) {
    case "statementStarted":
      open.set(record.n ?? 0, record);
      return;
    case "statementCompleted": {
      const started = open.get(record.n ?? 0);
      open.delete(record.n ?? 0);
      const ms = `${((record.us ?? 0) / 1000).toFixed(1)} ms`;
      const result =
        record.error === undefined
          ? out.dim(
              `${plain(record.tag ?? "")}${record.rows === undefined || /\d$/.test(record.tag ?? "") ? "" : ` ${record.rows} rows`}, ${ms}`,
            )
          : out.red(`${record.error.sqlstate ?? ""} ${plain(record.error.message ?? "")}, ${ms}`);
      say(out, `${out.dim(clock(started?.at ?? record.at))}  `, `${plain(textOf(started))}${parameters(started)}`);
      out.say(`          → ${result}`);
      return;
    }
    case "statementRefused":
      say(out, `${when}  `, plain((record.text ?? "").trim()));
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
      if (record.what === undefined || QUIET.has(record.what)) return;
      out.say(`${when}  ${out.yellow(plain(record.what ?? "action"))}`);
      return;
    default:
      out.say(
        `${when}  ${plain(record.kind)}${typeof record.bytes === "string" ? ` (${bytes(Math.floor((record.bytes.length * 3) / 4))})` : ""}`,
      );
  }
}

/** Statements of several lines keep their lines, each under the first. */
function say(out: Output, head: string, text: string): void {
  const [first = "", ...rest] = text.split("\n");
  out.say(`${head}${first}`);
  for (const line of rest) out.say(`          ${line}`);
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
