import { stripVTControlCharacters } from "node:util";
import type { LogEntryView, LogKeyList, LogKeyView, LogPage, LogProof, LogStatus } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { CliError, usage } from "../errors.ts";
import { lastServer, readLogin } from "../home.ts";
import { clock, duration, plain, table, type Output } from "../output.ts";
import { FormatError, parseProof } from "@glasskey/verify";
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
    for (const entry of page.entries) out.sayAll(lines(entry, page, out));
    const words = legend(page);
    if (page.entries.length > 0 && words !== "") out.say(out.dim(words));
    if (page.entries.length === 0) out.say("No entries.");
    return 0;
  }
  for (let next = from ?? 0; ;) {
    for (const entry of page.entries) {
      if (out.json) process.stdout.write(`${JSON.stringify(entry)}\n`);
      else out.sayAll(lines(entry, page, out));
      next = entry.index + 1;
    }
    page = await call<LogPage>(login, "GET", `/v1/log?from=${next}&waitMs=${FOLLOW_WAIT_MS}`);
    if (typeof options["grant"] === "string")
      page = { ...page, entries: page.entries.filter(({ entry }) => entry["grant"] === options["grant"]) };
  }
}

export async function prove({ args, out }: Invocation): Promise<number> {
  const wanted = index(args[0] ?? "");
  const answer = await call<LogProof>(readLogin(), "GET", `/v1/log/proof/${wanted}`);
  mustBeProofOf(wanted, answer.proof);
  out.value(answer);
  if (!out.json) process.stdout.write(answer.proof);
  out.hint(`The entry itself: ${plain(answer.entry)}`);
  const covers = `The checkpoint in it covers ${answer.size} entries`;
  out.hint(answer.witnessed ? `${covers}, and has its witnesses' cosignatures.` : `${covers}; no witness signed it.`);
  return 0;
}

/** What goes to standard output byte for byte must be harmless on a terminal, and of the entry that was asked for. */
function mustBeProofOf(wanted: number, proof: string): void {
  try {
    if (proof.split("\n").every((line) => plain(line) === line) && parseProof(proof).index === wanted) return;
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
  }
  throw new CliError("integrity", `the server's answer is no proof of entry ${wanted}`);
}

export async function verify({ args, options, out }: Invocation): Promise<number> {
  const given = Object.entries(options).flatMap(([name, value]) => {
    if (name === "json" || value === undefined || value === false) return [];
    return value === true ? [`--${name}`] : [`--${name}=${value}`];
  });
  return runCli(
    [...args, ...given, ...(out.json ? ["--json"] : [])],
    (text) => process.stdout.write(text),
    (text) => process.stderr.write(text),
    { loginFor },
  );
}

/** The login's token and CA, for the server that they are of and for no other. */
function loginFor(origin: string): { token?: string | undefined; ca?: string | undefined } | undefined {
  const login = lastServer();
  if (login === undefined || new URL(login.server).origin !== origin) return undefined;
  const { token, ca } = { token: "", ...login };
  return { ca, token: token === "" ? undefined : token };
}

function index(text: string): number {
  if (!/^\d{1,15}$/.test(text))
    throw usage(`"${plain(text)}" is not an index`, "Indexes are the numbers at the left of `glass log`.");
  return Number(text);
}

/** `glass log status`: how far it is, at a glance. */
export async function status({ out }: Invocation): Promise<number> {
  const found = await call<LogStatus>(readLogin(), "GET", "/v1/log/status");
  out.value(found);
  const ago = (time: string): string => duration(Math.max(0, Date.parse(found.now) - Date.parse(time)));
  const late = (text: string, time: string | null): string => {
    const ms = time === null ? 0 : Date.parse(found.now) - Date.parse(time);
    return ms > LATE_MS ? out.yellow(text) : text;
  };
  const { size, signedAt, waiting, waitingSince, witnessed, unwitnessedSince, archived, keys } = found;
  const since = (time: string | null): string => (time === null ? "" : `, for ${ago(time)}`);
  const waits = waiting === 0 ? "nothing waits" : late(`${count(waiting)} wait${since(waitingSince)}`, waitingSince);
  const behind = size - (witnessed ?? size);
  const unwitnessed = behind <= 0 ? "all" : late(`${count(behind)} wait${since(unwitnessedSince)}`, unwitnessedSince);
  const unarchived = size - (archived ?? size);
  const rows = [
    ["  signed", count(size), signedAt === null ? waits : `last ${ago(signedAt)} ago; ${waits}`],
    ["  witnessed", witnessed === null ? "-" : count(witnessed), witnessed === null ? "no witnesses" : unwitnessed],
    [
      "  archived",
      archived === null ? "-" : count(archived),
      archived === null ? "no archive" : unarchived <= 0 ? "all" : `${count(unarchived)} wait`,
    ],
    ["  keys", String(keys.length), keys.map((key) => `${key.generation} since ${clock(key.addedAt)}`).join(", ")],
  ];
  out.say(`Log ${out.bold(found.origin)}`);
  for (const row of table(rows)) out.sayAll(row);
  return 0;
}

/** `glass log keys`: every key that signs or did. */
export async function keys({ out }: Invocation): Promise<number> {
  const found = await call<LogKeyList>(readLogin(), "GET", "/v1/log/keys");
  out.value(found);
  for (const { generation, vkey, addedAt, retiredAt } of found.keys) {
    const life = retiredAt === null ? out.green("signs") : out.dim(`retired ${clock(retiredAt)}`);
    out.say(`${String(generation).padStart(3)}  ${life}, added ${clock(addedAt)}`);
    out.say(`     ${plain(vkey)}`);
  }
  return 0;
}

/** `glass log key add`. */
export async function keyAdd({ out }: Invocation): Promise<number> {
  const { generation, vkey } = await call<LogKeyView>(readLogin(), "POST", "/v1/log/keys");
  out.value({ generation, vkey });
  out.say(`Key ${generation} signs from now on, beside what signed before:`);
  out.say(plain(vkey));
  out.say("Auditors and witnesses must learn it by another way than this server: on paper, by telephone, by contract.");
  out.say("When all of them have it, retire the old one: glass log keys, then glass log key retire GENERATION");
  return 0;
}

/** `glass log key retire GENERATION`. */
export async function keyRetire({ args, out }: Invocation): Promise<number> {
  const given = args[0] ?? "";
  if (!/^[1-9]\d{0,5}$/.test(given))
    throw usage(`"${plain(given)}" is not a key's generation`, "Generations are the numbers of `glass log keys`.");
  const key = await call<LogKeyView>(readLogin(), "POST", `/v1/log/keys/${given}/retire`);
  out.value(key);
  out.say(`Key ${key.generation} signs no more. What it signed still verifies: auditors keep it.`);
  out.say("A witness that has not learned the newer key cosigns no more; in a minute, see: glass log status");
  return 0;
}

const LATE_MS = 60_000; // a checkpoint takes a tenth of a second, a witness a few

const count = (n: number): string => n.toLocaleString("en-GB");

/** How far entries came, one letter each; nothing where nothing but the checkpoint is configured. */
const MARKS = { checkpointed: "c", witnessed: "w", archived: "a" } as const;

function marked({ witnessed, archived }: LogPage): boolean {
  return witnessed !== null || archived !== null;
}

function legend(page: LogPage): string {
  if (!marked(page)) return "";
  const words = Object.entries(MARKS).filter(
    ([state]) => state === "checkpointed" || page[state as "witnessed"] !== null,
  );
  return words.map(([state, mark]) => `${mark} ${state}`).join("  ");
}

function lines({ index, entry, people, state }: LogEntryView, page: LogPage, out: Output): readonly string[] {
  const { type, at, actor, grant, session, lease, target, playbook, data } = entry;
  if (typeof type !== "string" || typeof at !== "string" || Number.isNaN(Date.parse(at))) {
    const what = plain(JSON.stringify(entry));
    return [
      `${String(index).padStart(6)}  ${out.yellow("not an entry of Glasskey's")}  ${out.dim(what.slice(0, 160))}`,
    ];
  }
  const who = people[String(actor)] ?? String(actor);
  const about = [grant, session, lease, playbook, target].filter((id) => id !== undefined).map(String);
  const facts = data === undefined || data === null ? "" : JSON.stringify(data);
  const paint = /denied|refused|failed|killed|orphan_found|alarm\.raised|drift|rejected/.test(type)
    ? out.yellow
    : out.bold;
  const mark = marked(page) ? [out.dim(MARKS[state])] : [];
  const head = [String(index).padStart(6), ...mark, clock(at), paint(plain(type).padEnd(18))];
  const text = `${plain(who)}  ${plain(about.join(" "))}`.trimEnd();
  // On a terminal the facts keep to what is left of the line; --json has all of them.
  const taken = stripVTControlCharacters(head.join("  ")).length + 2 + text.length;
  const room = out.tty ? (process.stdout.columns ?? 120) - taken - 3 : 160;
  const some = facts.length > room ? `${facts.slice(0, room - 1)}…` : facts;
  return table([[...head, room < LEAST_FACTS ? text : `${text}  ${out.dim(plain(some))}`.trimEnd()]]).flat();
}

const LEAST_FACTS = 12; // fewer characters tell nothing
