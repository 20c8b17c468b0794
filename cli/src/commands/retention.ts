import { createInterface } from "node:readline/promises";
import type { EraseAnswer, HoldList, HoldView } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { usage } from "../errors.ts";
import { readLogin } from "../home.ts";
import { grantOrSessionArgument, holdArgument, sessionArgument } from "../ids.ts";
import { clock, duration, paragraph, plain, table } from "../output.ts";

export async function hold({ args, options, out }: Invocation): Promise<number> {
  const why = options["why"];
  if (typeof why !== "string") throw usage("--why is missing", 'glass hold GRANT|SESSION --why "…"');
  const id = grantOrSessionArgument(args);
  const made = await call<HoldView>(readLogin(), "POST", "/v1/holds", { id, why });
  out.value(made);
  const what = made.session === null ? `every recording of ${made.grant}` : `the recording of ${made.session}`;
  out.say(`${out.green("Held")}: ${what}, until somebody lifts ${out.bold(made.hold)}.`);
  return 0;
}

export async function release({ args, out }: Invocation): Promise<number> {
  const id = holdArgument(args);
  const lifted = await call<HoldView>(readLogin(), "POST", `/v1/holds/${id}/release`, {});
  out.value(lifted);
  const then = "Who lifts a hold does not erase: another security officer does, or time.";
  out.sayAll(paragraph(`${lifted.hold} is lifted. ${then}`, 0));
  return 0;
}

export async function holds({ options, out }: Invocation): Promise<number> {
  const lifted = options["all"] === true;
  const list = await call<HoldList>(readLogin(), "GET", `/v1/holds${lifted ? "?lifted=true" : ""}`);
  out.value(list);
  if (list.holds.length === 0) out.say(lifted ? "No holds." : "No recording is held.");
  const rows = table(
    list.holds.map(({ hold: id, session, grant, heldBy, heldAt, releasedBy, releasedAt }) => [
      ...[out.bold(id), session ?? `${grant}, all of it`, `${heldBy} since ${clock(heldAt)}`],
      releasedAt === null ? "" : out.dim(`lifted by ${releasedBy ?? ""} at ${clock(releasedAt)}`),
    ]),
  );
  list.holds.forEach(({ why }, i) => {
    out.sayAll(rows[i] ?? []);
    out.sayAll(paragraph(plain(why), 4).map(out.dim));
  });
  const kept = list.keepMs === null ? "for ever" : `for ${duration(list.keepMs)} after their session`;
  out.hint(`Recordings are kept ${kept}, unless their playbook says otherwise.`);
  return 0;
}

export async function erase({ args, options, out }: Invocation): Promise<number> {
  const why = options["why"];
  const session = sessionArgument(args);
  if (typeof why !== "string") throw usage("--why is missing", 'glass erase SESSION --why "…"');
  if (options["yes"] !== true) await confirmed(session);
  const { chunks } = await call<EraseAnswer>(readLogin(), "POST", `/v1/sessions/${session}/erase`, { why });
  out.value({ session, chunks });
  const left =
    chunks === 1
      ? "Its encrypted chunk stays, and still matches"
      : `Its ${chunks} encrypted chunks stay, and still match`;
  out.sayAll(paragraph(`${out.green("Erased")}: nobody reads ${session} again. ${left} the log.`, 0));
  out.hint("Backups of the store from before still have its key: see docs/retention.md.");
  return 0;
}

/** Whoever destroys something types its name, or says --yes in a script. */
async function confirmed(session: string): Promise<void> {
  if (!process.stdin.isTTY) throw usage("nobody is there to confirm", `Add --yes to erase ${session} for ever.`);
  const reader = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const typed = await reader.question(`This cannot be undone. Type ${session} to erase its recording: `);
    if (typed.trim() !== session)
      throw usage("that is not its id; nothing was erased", "Give the command again to try once more.");
  } finally {
    reader.close();
  }
}
