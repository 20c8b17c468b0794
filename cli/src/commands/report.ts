import type { ReportView } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { readLogin } from "../home.ts";
import { clock, duration, plain, table } from "../output.ts";
import { readDuration } from "./grants.ts";

export async function report({ options, out }: Invocation): Promise<number> {
  const since = options["since"];
  const query = since === undefined ? "" : `?sinceMs=${readDuration(String(since))}`;
  const found = await call<ReportView>(readLogin(), "GET", `/v1/report${query}`);
  out.value(found);
  const { requests, approvals } = found;
  out.say(
    `From ${clock(found.from)} to ${clock(found.to)}: ${requests.total} request${requests.total === 1 ? "" : "s"}`,
  );
  const median = found.medianApproveMs === null ? "" : `; half of them within ${duration(found.medianApproveMs)}`;
  const rows: [string, string][] = [
    ["opened at once", String(requests.openedAtOnce)],
    ["opened unanswered", requests.openedUnanswered > 0 ? out.yellow(String(requests.openedUnanswered)) : "0"],
    ["approvals", `${approvals.given} yes, ${approvals.denied} no${median}`],
    [
      "not opened",
      `${requests.denied} denied, ${requests.timedOut} timed out, ${requests.withdrawn} withdrawn, ${requests.failed} failed`,
    ],
  ];
  for (const lines of table(rows.map(([key, value]) => [`  ${key}`, value]))) out.sayAll(lines);
  out.say();
  out.say("Uses by reason:");
  const reasons = found.reasons.map(({ code, means, uses }) => [
    ...[`  ${plain(code)}`, String(uses)],
    means === null ? "not declared any more" : plain(means),
  ]);
  for (const lines of table(reasons)) out.sayAll(lines);
  out.say();
  out.say("Uses by playbook:");
  const playbooks = found.playbooks.map(({ playbook, uses, unsigned, overdue, notJustified }) => {
    const notes = [
      ...(unsigned > 0 ? [`${unsigned} without a signed review`] : []),
      ...(overdue > 0 ? [out.red(`${overdue} overdue`)] : []),
      ...(notJustified > 0 ? [out.red(`${notJustified} not justified`)] : []),
    ];
    return [`  ${plain(playbook)}`, String(uses), notes.join(", ")];
  });
  for (const lines of table(playbooks)) out.sayAll(lines);
  if (found.overdueReviews.length > 0) {
    out.say();
    out.say(out.red("Overdue reviews:"));
    const overdue = found.overdueReviews.map(({ grant, playbook, dueAt }) => [
      `  ${grant}`,
      plain(playbook),
      `since ${clock(dueAt)}`,
    ]);
    for (const lines of table(overdue)) out.sayAll(lines);
  }
  return 0;
}
