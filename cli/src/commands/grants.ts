import type { AlarmList, GrantView, KillAnswer, PlaybookView } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { CliError, usage } from "../errors.ts";
import { readLogin, removeGrantDir, type Login } from "../home.ts";
import { grantArgument, grantOrSessionArgument } from "../ids.ts";
import { clock, duration, plain, table, type Output } from "../output.ts";
import { runClient } from "./connect.ts";
import { sayStanding } from "./standing.ts";

const LOST_MS = 120_000;
const RETRY_MS = 2_000;

const POLL_WAIT_MS = 20_000; // one long poll; the loop goes on for as long as the approvers have

export async function breakGlass({ args, options, command, out }: Invocation): Promise<number> {
  const login = readLogin();
  const playbook = args[0] ?? "";
  const { reason, why } = options as { reason?: string; why?: string };
  if (reason === undefined || why === undefined) throw await missing(login, playbook, reason, why);
  const body = {
    ...{ playbook, reason, why },
    ...(options["incident"] === undefined ? {} : { incident: options["incident"] }),
    ...(options["for"] === undefined ? {} : { forMs: readDuration(String(options["for"])) }),
  };
  const asked: { grant?: GrantView } = {};
  const interrupted = (): void => {
    out.hint(
      asked.grant === undefined
        ? "Interrupted. The request may have arrived; look: glass status"
        : `Interrupted. ${asked.grant.grant} goes on, ${asked.grant.state}. To take it back: glass end ${asked.grant.grant}`,
    );
    process.exit(130);
  };
  process.once("SIGINT", interrupted);
  let grant = (asked.grant = await call<GrantView>(login, "POST", "/v1/grants", body));
  if (isWaiting(grant)) {
    if (grant.state === "pending") {
      const verb = options["no-wait"] === true ? "Needs" : `${out.yellow("Waiting")} for`;
      out.hint(`${verb} ${approvals(grant.missing)} of ${who(grant)}, until ${clock(grant.decideBy)}.`);
      for (const line of circumstances(grant)) out.hint(`  ${line}`);
      out.hint(`  They run: ${out.bold(`glass approve ${grant.grant}`)}`);
    }
    if (options["no-wait"] === true) {
      out.value(grant);
      out.say(`${grant.grant} is pending. Next: glass status ${grant.grant}`);
      return 4;
    }
    grant = await waitOpen(login, grant, out);
  }
  process.off("SIGINT", interrupted);
  if (grant.state !== "active") throw notOpened(grant);
  if (grant.openedUnanswered) {
    const few = grant.approvals.length === 0 ? "Nobody" : "Too few";
    out.hint(out.yellow(`${few} answered: it opened by itself, and every channel was told.`));
  }
  if (command.length > 0) {
    out.hint(`${out.green("Open")}: ${grant.grant} on ${grant.target} until ${clock(grant.endsAt ?? "")}`);
    return runClient(login, grant.grant, command, out);
  }
  out.value(grant);
  out.say(
    `${out.green("Open")}: ${out.bold(grant.grant)} on ${grant.target} until ${clock(grant.endsAt ?? "")} (${duration(grant.forMs)}). Everything is recorded.`,
  );
  out.say();
  // Whether its playbook has a shell is the gateway's to say: without one, it lists the commands.
  const ssh = grant.kind === "ssh";
  const pad = ssh ? "          " : "";
  out.say(
    `  glass connect ${grant.grant}    ${pad}${out.dim(ssh ? "a shell, or the list of what runs" : "work there")}`,
  );
  if (ssh) out.say(`  glass connect ${grant.grant} -- COMMAND   ${out.dim("one command")}`);
  out.say(`  glass end ${grant.grant}        ${pad}${out.dim("close it and see the proof")}`);
  return 0;
}

/** Tells a tired person what to add, with this playbook's own codes, rather than only that something is missing. */
async function missing(
  login: Login,
  playbook: string,
  reason: string | undefined,
  why: string | undefined,
): Promise<CliError> {
  const { playbooks } = await call<{ playbooks: PlaybookView[] }>(login, "GET", "/v1/playbooks");
  const view = playbooks.find((candidate) => candidate.playbook === playbook);
  if (view === undefined) {
    return new CliError("not_found", `there is no playbook "${playbook.slice(0, 64)}"`, {
      next: "`glass ls` lists the playbooks.",
    });
  }
  const codes = view.reasonCodes.join("|");
  const lacking = [reason === undefined ? "--reason" : "", why === undefined ? "--why" : ""]
    .filter(Boolean)
    .join(" and ");
  return usage(
    `${lacking} ${lacking.includes("and") ? "are" : "is"} missing`,
    `glass break ${playbook} --reason ${codes} --why "what is broken, in a few words"${view.incident.length === 0 ? "" : " --incident REF"}`,
  );
}

/** Milliseconds of `30m`, `1h30m` or `7d`. @throws CliError */
export function readDuration(text: string): number {
  const match = /^(?:(\d{1,4})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?$/.exec(text);
  const [d = 0, h = 0, m = 0, s = 0] = (match ?? []).slice(1).map((part) => Number(part ?? 0));
  const ms = (d * 86_400 + h * 3600 + m * 60 + s) * 1000;
  if (match === null || ms === 0) throw usage(`"${plain(text)}" is not a duration`, "Write it as 30m, 90s or 1h30m.");
  return ms;
}

/** What a person should know while a grant waits: why it needs more than usual, and what happens if nobody answers. */
function circumstances(grant: GrantView): string[] {
  const lines = grant.quorum.map((why) => plain(why));
  for (const fact of grant.evidence.filter(({ value }) => value === "unknown"))
    lines.push(`Nobody knows, so a human decides: ${evidenceLine(fact)}.`);
  if (grant.sidesMissing.length > 0) lines.push(`Not spoken for yet: ${plain(grant.sidesMissing.join("; "))}.`);
  if (grant.unansweredAt !== null) {
    lines.push(
      grant.paged
        ? `If nobody answers, it opens by itself at ${clock(grant.unansweredAt)}.`
        : `If nobody answers, it opens by itself, at ${clock(grant.unansweredAt)} at the earliest: the wait begins when a page was delivered, and none was yet.`,
    );
  }
  return lines;
}

/** `oncall:payments true, says static, 12s old`. */
function evidenceLine({ fact, value, severity, source, ageMs, detail }: GrantView["evidence"][number]): string {
  const known = severity === undefined ? value : `${value} (${severity})`;
  const age = ageMs < 1_000 ? "fresh" : `${duration(ageMs)} old`;
  return plain(`${fact} ${known}, says ${source}, ${age}${detail === undefined ? "" : `: ${detail}`}`);
}

const approvals = (n: number): string => `${n} approval${n === 1 ? "" : "s"}`;
const isWaiting = (grant: GrantView): boolean => ["pending", "approved", "opening"].includes(grant.state);
const who = (grant: GrantView): string => grant.mayApprove.join(", ") || "nobody: no approver is left";

async function waitOpen(login: Login, first: GrantView, out: Output): Promise<GrantView> {
  let grant = first;
  let said = grant.approvals.length;
  let lostAtMs: number | undefined;
  while (isWaiting(grant)) {
    try {
      grant = await call<GrantView>(login, "GET", `/v1/grants/${first.grant}?until=open&waitMs=${POLL_WAIT_MS}`);
      lostAtMs = undefined;
    } catch (error) {
      if (!(error instanceof CliError) || !["server_unreachable", "store_unavailable"].includes(error.code))
        throw error;
      if (lostAtMs === undefined)
        out.hint(`The server does not answer. Your request ${first.grant} stands; trying again …`);
      lostAtMs ??= performance.now();
      if (performance.now() - lostAtMs > LOST_MS) {
        throw new CliError("server_unreachable", "the server does not come back", {
          next: `Look again with: glass status ${first.grant}`,
        });
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
    for (const { person, verdict } of grant.approvals.slice(said)) {
      out.hint(`  ${person}: ${verdict === "approve" ? out.green("yes") : out.red("no")}`);
    }
    said = grant.approvals.length;
  }
  return grant;
}

function notOpened(grant: GrantView): CliError {
  const text = grant.endText ?? grant.lastError ?? grant.state;
  switch (grant.state) {
    case "denied":
      return new CliError("policy_denied", `${grant.grant} was denied: ${text}`);
    case "timed_out":
      return new CliError("policy_denied", `nobody decided on ${grant.grant} in time`, {
        next: "Break the glass again, or reach an approver another way.",
      });
    case "failed":
      return new CliError("policy_denied", `${grant.grant} did not open: ${text}`, {
        next: "glass ls says what you may break now.",
      });
    case "withdrawn":
      return new CliError("grant_over", `${grant.grant} was withdrawn`);
    default:
      return new CliError("target_unreachable", `${grant.grant} did not open: ${text}`, {
        next: `Is the target all right? glass status ${grant.grant}`,
      });
  }
}

export async function status({ args, options, out }: Invocation): Promise<number> {
  const login = readLogin();
  if (args[0] !== undefined) {
    const grant = await call<GrantView>(login, "GET", `/v1/grants/${grantArgument(args)}`);
    out.value(grant);
    show(grant, out);
    return 0;
  }
  const { grants } = await call<{ grants: GrantView[] }>(
    login,
    "GET",
    `/v1/grants${options["all"] === true ? "" : "?open=true"}`,
  );
  // Whoever may see alarms sees them first; everybody else is simply not told.
  const { alarms } = await call<AlarmList>(login, "GET", "/v1/alarms").catch(() => ({ alarms: [] }));
  const standing = await sayStanding(login, out);
  out.value({ grants, alarms, ...(standing === undefined ? {} : { opening: standing.opening, shut: standing.shut }) });
  for (const alarm of alarms) out.say(`${out.red("ALARM")} since ${clock(alarm.raisedAt)}: ${plain(alarm.text)}`);
  if (grants.length === 0)
    out.say(options["all"] === true ? "No grants." : "Nothing is open. `glass status --all` shows what was.");
  const lines = table(
    grants.map((grant) => [
      ...[out.bold(grant.grant), stateOf(grant, out), grant.playbook, grant.target, grant.requester],
      whatNext(grant, login.person),
    ]),
  );
  grants.forEach((grant, i) => {
    out.sayAll(lines[i] ?? []);
    if (grant.gateway !== null && grant.kind === "ssh") out.say(out.dim(`    ${sshLine(grant)}`));
    if (grant.state === "pending") out.say(out.dim(`    ${grant.reason}: ${plain(grant.why)}`));
    if (grant.state === "pending" && grant.mayApprove.includes(login.person))
      out.say(out.dim(`    glass approve ${grant.grant}`));
  });
  return 0;
}

/** The last column: what this grant waits for, or when it ends or ended. */
function whatNext(grant: GrantView, me: string): string {
  if (grant.state === "pending") {
    const decided = grant.approvals.some(({ person }) => person === me);
    return grant.mayApprove.includes(me) && !decided
      ? "waits for you"
      : `needs ${approvals(grant.missing)} of ${who(grant)}`;
  }
  if (grant.extensionWanted && grant.mayApprove.includes(me)) return "more time is asked for: it waits for you";
  if (grant.closedAt !== null)
    return `ended ${clock(grant.closedAt)}${grant.endText === null ? "" : `, ${plain(grant.endText)}`}`;
  return grant.endsAt === null ? "" : `ends ${clock(grant.endsAt)}`;
}

/** The line that works without `glass`, for whoever has the secret. */
function sshLine({ grant, gateway }: GrantView): string {
  const port = gateway === null || gateway.port === 22 ? "" : `-p ${gateway.port} `;
  return plain(`ssh ${port}${grant}@${gateway?.host ?? ""}`);
}

function stateOf(grant: GrantView, out: Output): string {
  const text = grant.state.replace("_", " ");
  if (grant.state === "active") return out.green(text);
  return grant.state === "closed" || grant.state === "reviewed" ? text : out.yellow(text);
}

export function show(grant: GrantView, out: Output): void {
  out.say(`${out.bold(grant.grant)} is ${stateOf(grant, out)}`);
  const rows: [string, string][] = [
    ["playbook", `${grant.playbook} on ${grant.target} (${grant.kind})`],
    ...grant.mayDo.map((line, i): [string, string] => [i === 0 ? "may do" : "", plain(line)]),
    ["who", grant.requester],
    ["why", `${grant.reason}: ${plain(grant.why)}${grant.incident === null ? "" : ` [${plain(grant.incident)}]`}`],
    ["asked", `${clock(grant.createdAt)} for ${duration(grant.forMs)}`],
  ];
  for (const fact of grant.evidence) rows.push(["evidence", evidenceLine(fact)]);
  if (grant.openedUnanswered)
    rows.push(["approvals", `${grant.approvals.length === 0 ? "nobody" : "too few"} answered: it opened by itself`]);
  if (grant.need > 0 && (!grant.openedUnanswered || grant.approvals.length > 0)) {
    const given = grant.approvals.map(
      ({ person, verdict, at }) => `${verdict === "approve" ? "yes" : "no"} by ${person} at ${clock(at)}`,
    );
    rows.push(["approvals", `${given.join("; ") || "none yet"} (needs ${grant.need})`]);
  }
  for (const why of grant.quorum) rows.push(["quorum", plain(why)]);
  if (grant.state === "pending") {
    rows.push(["waits for", `${approvals(grant.missing)} of ${who(grant)}, until ${clock(grant.decideBy)}`]);
    for (const side of grant.sidesMissing) rows.push(["", `nobody has spoken for: ${plain(side)}`]);
    rows.push(["paged", grant.paged ? "yes, and delivery is confirmed" : "no delivery is confirmed"]);
    if (grant.unansweredAt !== null)
      rows.push([
        "unanswered",
        `opens by itself at ${clock(grant.unansweredAt)}${grant.paged ? "" : ", once a page was delivered"}`,
      ]);
  }
  if (grant.extensionWanted) rows.push(["more time", `asked for; needs ${approvals(grant.missing)} of ${who(grant)}`]);
  if (grant.endsAt !== null && grant.state === "active")
    rows.push(["ends", `${clock(grant.endsAt)}, in ${duration(Date.parse(grant.endsAt) - Date.now())}`]);
  if (grant.gateway !== null && grant.kind === "ssh")
    rows.push(["plain ssh", `${sshLine(grant)}; its secret and known_hosts: glass connect ${grant.grant} --print`]);
  if (grant.endText !== null)
    rows.push(["ended", `${plain(grant.endText)}${grant.closedAt === null ? "" : ` (${clock(grant.closedAt)})`}`]);
  if (grant.lastError !== null)
    rows.push(["last answer", `${plain(grant.lastError)} (tried ${grant.attempts} times, goes on)`]);
  const { review } = grant;
  if (review !== null) {
    const signed = `${review.verdict?.replace("_", " ") ?? ""}, signed by ${review.signedBy ?? ""} at ${clock(review.signedAt ?? "")}`;
    const waits = `${review.overdue ? out.red("overdue since") : "due"} ${clock(review.dueAt)}: glass review ${grant.grant}`;
    rows.push(["review", review.signedAt === null ? waits : signed]);
  }
  out.sayAll(table(rows.map(([key, value]) => [`  ${key}`, value])).flat());
  if (grant.proof !== null) proof(grant, out);
}

/** The proof, as the target itself gave it. */
function proof(grant: GrantView, out: Output): void {
  if (grant.proof === null) return;
  out.say();
  out.say(`Proof, asked of ${grant.target} itself at ${clock(grant.proof.provedAt)}:`);
  const { drift, leases } = grant.proof;
  const rows = leases.flatMap(({ evidence }) =>
    evidence.map(({ asked, answered }) => [`  ${out.green("✓")} ${plain(asked)}`, plain(answered)]),
  );
  const same = drift.known && drift.added.length + drift.removed.length === 0;
  rows.push([
    `  ${same ? out.green("✓") : out.yellow("!")} access state of the target`,
    same ? "as it was before" : drift.known ? "differs from before:" : "could not be compared",
  ]);
  out.sayAll(table(rows).flat());
  for (const line of drift.added) out.say(`      ${out.green("+")} ${plain(line)}`);
  for (const line of drift.removed) out.say(`      ${out.red("-")} ${plain(line)}`);
}

export async function extend({ args, out }: Invocation): Promise<number> {
  const { extended, grant } = await call<{ extended: boolean; grant: GrantView }>(
    readLogin(),
    "POST",
    `/v1/grants/${grantArgument(args)}/extend`,
  );
  out.value({ extended, grant });
  if (extended) {
    out.say(`${grant.grant} now ends at ${out.bold(clock(grant.endsAt ?? ""))}.`);
    return 0;
  }
  out.say(
    `${out.yellow("Asked")}. It needs ${approvals(grant.missing)} of ${who(grant)}: glass approve ${grant.grant}`,
  );
  return 4;
}

export async function end({ args, out }: Invocation): Promise<number> {
  const id = grantArgument(args);
  const started = performance.now();
  const grant = await call<GrantView>(readLogin(), "POST", `/v1/grants/${id}/end`, {});
  removeGrantDir(grant.grant);
  out.value(grant);
  return ended(grant, started, out);
}

function ended(grant: GrantView, started: number, out: Output): number {
  if (grant.state === "closing") {
    out.say(
      `${out.red("Not proved yet")}: ${grant.grant} is closing. Sessions are cut; what the target says: ${plain(grant.lastError ?? "nothing")}`,
    );
    out.say(
      `  Glasskey keeps trying, and raises an alarm when it takes too long. Watch it: glass status ${grant.grant}`,
    );
    return 5;
  }
  if (grant.proof === null) {
    out.say(`${grant.grant} is ${grant.state.replace("_", " ")}; nothing was opened.`);
    return 0;
  }
  const tookMs = performance.now() - started;
  const before = Date.now() - Date.parse(grant.closedAt ?? "") > tookMs + 2_000; // it was closed before this was asked
  out.say(
    before
      ? `${out.green("Closed")} already, at ${clock(grant.closedAt ?? "")}: ${grant.grant}, ${plain(grant.endText ?? "")}`
      : `${out.green("Closed")}: ${grant.grant}, ${plain(grant.endText ?? "")} (${Math.round(tookMs)} ms)`,
  );
  proof(grant, out);
  return 0;
}

async function decide(verdict: "approve" | "deny", { args, out }: Invocation): Promise<number> {
  const grant = await call<GrantView>(readLogin(), "POST", `/v1/grants/${grantArgument(args)}/${verdict}`);
  out.value(grant);
  if (verdict === "deny") {
    out.say(
      grant.state === "denied"
        ? `${out.red("Denied")}: ${grant.grant}`
        : `No extension for ${grant.grant}; it ends at ${clock(grant.endsAt ?? "")}.`,
    );
    return 0;
  }
  if (grant.state === "pending" || grant.extensionWanted) {
    out.say(`Noted. ${grant.grant} waits for ${grant.missing} more approval${grant.missing === 1 ? "" : "s"}.`);
    for (const line of circumstances(grant)) out.say(`  ${line}`);
  } else if (grant.state === "failed") {
    out.say(`${out.red("Not opened")}: ${plain(grant.endText ?? grant.state)}`);
    return 3;
  } else
    out.say(
      `${out.green("Approved")}: ${grant.requester} may work on ${grant.target} until ${clock(grant.endsAt ?? "")}.`,
    );
  return 0;
}

export const approve = (invocation: Invocation): Promise<number> => decide("approve", invocation);
export const deny = (invocation: Invocation): Promise<number> => decide("deny", invocation);

export async function kill({ args, options, out }: Invocation): Promise<number> {
  const started = performance.now();
  const body = { id: grantOrSessionArgument(args), ...(options["why"] === undefined ? {} : { why: options["why"] }) };
  const answer = await call<KillAnswer>(readLogin(), "POST", "/v1/kill", body);
  out.value(answer);
  out.say(
    `${out.red("Killed")}: ${answer.id}; ${answer.sessionsCut} session${answer.sessionsCut === 1 ? "" : "s"} cut.`,
  );
  if (answer.id === answer.grant.grant) return ended(answer.grant, started, out);
  if (answer.grant.state === "active")
    out.say(`  The grant is still open. To stop it: glass kill ${answer.grant.grant}`);
  return 0;
}
