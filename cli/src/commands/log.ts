import { stripVTControlCharacters } from "node:util";
import type { LogEntryView, LogPage, LogProof } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { usage } from "../errors.ts";
import { readLogin } from "../home.ts";
import { clock, plain, table, type Output } from "../output.ts";
import { runCli } from "@glasskey/verify/cli";

const FIRST_PAGE = 50; // what a person who asks "what happened" can read
const FOLLOW_WAIT_MS = 25_000;

export async function log({ options, out }: Invocation): Promise<number> {
  const login = readLogin();
  const query = new URLSearchParams();
  if (typeof options["grant"] === "string") query.set("grant", options["grant"]);
  let from = options["from"] === undefined ? undefined : index(String(options["from"]));
  if (from === undefined && options["grant"] === undefined) {
    const { size } = await call<LogPage>(login, "GET", "/v1/log?from=0&limit=1");
    from = Math.max(0, size - FIRST_PAGE);
  }
  if (from !== undefined) query.set("from", String(from));
  let page = await call<LogPage>(login, "GET", `/v1/log?${query}`);
  if (options["follow"] !== true) {
    out.value(page);
    for (const entry of page.entries) out.sayAll(lines(entry, out));
    if (page.entries.length === 0) out.say("No entries.");
    return 0;
  }
  for (let next = from ?? 0; ;) {
    for (const entry of page.entries) {
      if (out.json) process.stdout.write(`${JSON.stringify(entry)}\n`);
      else out.sayAll(lines(entry, out));
      next = entry.index + 1;
    }
    page = await call<LogPage>(login, "GET", `/v1/log?from=${next}&waitMs=${FOLLOW_WAIT_MS}`);
    if (typeof options["grant"] === "string")
      page = { ...page, entries: page.entries.filter(({ entry }) => entry["grant"] === options["grant"]) };
  }
}

export async function prove({ args, out }: Invocation): Promise<number> {
  const answer = await call<LogProof>(readLogin(), "GET", `/v1/log/proof/${index(args[0] ?? "")}`);
  out.value(answer);
  if (!out.json) process.stdout.write(answer.proof);
  out.hint(`The entry itself: ${answer.entry}`);
  return 0;
}

export async function verify({ args, options, out }: Invocation): Promise<number> {
  const given = ["key", "since", "pin"].flatMap((name) =>
    typeof options[name] === "string" ? [`--${name}`, options[name]] : [],
  );
  return runCli(
    [
      ...args,
      ...given,
      ...(options["no-recordings"] === true ? ["--no-recordings"] : []),
      ...(out.json ? ["--json"] : []),
    ],
    (text) => process.stdout.write(text),
    (text) => process.stderr.write(text),
  );
}

function index(text: string): number {
  if (!/^\d{1,15}$/.test(text))
    throw usage(`"${plain(text)}" is not an index`, "Indexes are the numbers at the left of `glass log`.");
  return Number(text);
}

function lines({ index, entry, people }: LogEntryView, out: Output): readonly string[] {
  const { type, at, actor, grant, session, lease, target, playbook, data } = entry;
  const who = people[String(actor)] ?? String(actor);
  const about = [grant, session, lease, playbook, target].filter((id) => id !== undefined).map(String);
  const facts = data === undefined || data === null ? "" : JSON.stringify(data);
  const paint = /denied|refused|failed|killed|orphan_found|alarm\.raised|drift|rejected/.test(String(type))
    ? out.yellow
    : out.bold;
  const head = [String(index).padStart(6), clock(String(at)), paint(String(type).padEnd(18))];
  const text = `${plain(who)}  ${plain(about.join(" "))}`.trimEnd();
  // On a terminal the facts keep to what is left of the line; --json has all of them.
  const taken = stripVTControlCharacters(head.join("  ")).length + 2 + text.length;
  const room = out.tty ? (process.stdout.columns ?? 120) - taken - 3 : 160;
  const some = facts.length > room ? `${facts.slice(0, room - 1)}…` : facts;
  return table([[...head, room < LEAST_FACTS ? text : `${text}  ${out.dim(plain(some))}`.trimEnd()]]).flat();
}

const LEAST_FACTS = 12; // fewer characters tell nothing
