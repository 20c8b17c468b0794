import type { ReviewAnswer, ReviewList } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { usage } from "../errors.ts";
import { readLogin } from "../home.ts";
import { grantArgument } from "../ids.ts";
import { clock, duration, paragraph, plain, table, type Output } from "../output.ts";
import { show } from "./grants.ts";

export async function review({ args, options, out }: Invocation): Promise<number> {
  const { sign, note } = options as { sign?: string; note?: string };
  if (args[0] === undefined) {
    if (sign !== undefined || note !== undefined) throw usage("which grant?", SIGN);
    return list(out);
  }
  const path = `/v1/grants/${grantArgument(args)}/review`;
  if (sign === undefined && note === undefined) {
    const answer = await call<ReviewAnswer>(readLogin(), "GET", path);
    out.value(answer);
    story(answer, out);
    return 0;
  }
  const verdict = sign?.replace("-", "_");
  if (verdict !== "justified" && verdict !== "not_justified")
    throw usage("--sign says justified or not-justified", SIGN);
  if (note === undefined) throw usage("--note is missing: say what you looked at", SIGN);
  const answer = await call<ReviewAnswer>(readLogin(), "POST", path, { verdict, note });
  out.value(answer);
  out.say(
    `${out.green("Reviewed")}: ${answer.grant.grant}, ${verdict.replace("_", " ")}. It cannot be changed any more.`,
  );
  return 0;
}

const SIGN = 'glass review GRANT --sign justified|not-justified --note "what you looked at"';

async function list(out: Output): Promise<number> {
  const answer = await call<ReviewList>(readLogin(), "GET", "/v1/reviews");
  out.value(answer);
  if (answer.reviews.length === 0) out.say("No review waits.");
  const rows = answer.reviews.map(({ grant, playbook, target, requester, dueAt, overdue, state, maySign }) => [
    ...[out.bold(grant), playbook, target, requester],
    overdue ? out.red(`overdue since ${clock(dueAt)}`) : `due ${clock(dueAt)}`,
    state !== "closed" ? `still ${state}` : maySign ? `glass review ${grant}` : "not yours to sign",
  ]);
  for (const lines of table(rows)) out.sayAll(lines);
  return 0;
}

/** What happened, in the order in which it did; then what a signer needs to judge it. */
function story({ grant, sessions, timeline, complete, maySign }: ReviewAnswer, out: Output): void {
  show(grant, out);
  out.say();
  out.say("What happened, from the log:");
  for (const lines of table(timeline.map(({ at, text }) => [`  ${clock(at)}`, plain(text)]))) out.sayAll(lines);
  if (!complete) out.say(`  … and more: glass log --grant ${grant.grant}`);
  if (sessions.length > 0) {
    out.say();
    out.say("Sessions:");
    const rows = sessions.map((session) => {
      const until = session.closedAt === null ? Date.now() : Date.parse(session.closedAt);
      const lasted = duration(until - Date.parse(session.openedAt));
      const refused = session.refused === 0 ? "" : `, ${out.red(`${session.refused} refused`)}`;
      const recording = session.recordingComplete ? `glass replay ${session.session}` : "recording not complete yet";
      return [
        `  ${session.session}`,
        `${lasted}, ${session.statements} statement${session.statements === 1 ? "" : "s"}${refused}`,
        recording,
      ];
    });
    for (const lines of table(rows)) out.sayAll(lines);
  }
  const { review } = grant;
  out.say();
  if (review === null) out.say("It was never open: there is nothing to review.");
  else if (review.signedAt !== null) {
    out.say(
      `Reviewed by ${review.signedBy ?? ""} at ${clock(review.signedAt)}: ${review.verdict?.replace("_", " ") ?? ""}`,
    );
    if (review.note !== null) out.sayAll(paragraph(plain(review.note), 2));
  } else if (maySign && grant.state === "closed") {
    out.say(`Sign it: glass review ${grant.grant} --sign justified|not-justified --note "…"`);
  } else {
    out.say(
      grant.state === "closed"
        ? "It waits for a signature that is not yours to give."
        : "It is signed once it is closed.",
    );
  }
}
