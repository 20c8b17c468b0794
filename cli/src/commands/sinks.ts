import type { SinkList, SinkRetry, SinkView } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { readLogin } from "../home.ts";
import { clock, duration, plain, table, type Output } from "../output.ts";

const BEHIND_S = 15 * 60; // as the server's alarm

export async function sinks({ out }: Invocation): Promise<number> {
  const { sinks: list } = await call<SinkList>(readLogin(), "GET", "/v1/sinks");
  out.value({ sinks: list });
  if (list.length === 0) out.say("The log goes nowhere else. `sinks:` in glasskey.yaml says where it should.");
  const rows = table(
    list.map((sink) => [
      markOf(sink, out),
      out.bold(plain(sink.node === null ? sink.sink : `${sink.sink} (${sink.node})`)),
      plain(sink.kind),
      lagOf(sink),
      stateOf(sink, out),
    ]),
  );
  for (const [i, lines] of rows.entries()) {
    out.sayAll(lines);
    for (const { index, error } of list[i]?.parked ?? []) out.say(`    entry ${index} was refused: ${plain(error)}`);
  }
  return 0;
}

export async function retry({ args, out }: Invocation): Promise<number> {
  const name = args[0] ?? "";
  const answer = await call<SinkRetry>(readLogin(), "POST", `/v1/sinks/${encodeURIComponent(name)}/retry`);
  out.value(answer);
  const parked = answer.retried === 1 ? "1 refused entry" : `${answer.retried} refused entries`;
  out.say(answer.retried === 0 ? `${name} is tried now.` : `${name} is tried now, and ${parked} with it.`);
  out.say("See: glass sinks");
  return 0;
}

/** A check mark only for what is in order: no lag that is an alarm, and nothing that nobody works on. */
export function markOf({ configured, failures, parked, lagSeconds }: SinkView, out: Output): string {
  if (parked.length > 0 || (configured && failures > 0)) return out.red("✗");
  return !configured || lagSeconds >= BEHIND_S ? out.yellow("!") : out.green("✓");
}

function lagOf({ lagEntries, lagSeconds }: SinkView): string {
  if (lagEntries === 0) return "up to date";
  return `${lagEntries} behind, ${duration(lagSeconds * 1_000)}`;
}

function stateOf(
  { node, configured, failures, failingSince, lastError, deliveredAt, nextIndex }: SinkView,
  out: Output,
): string {
  const at = `at entry ${nextIndex}`;
  if (!configured) {
    return out.yellow(
      node === null ? `${at}; not in this server's glasskey.yaml` : `${at}; of another Glasskey process`,
    );
  }
  if (failures > 0) {
    const since = failingSince === null ? "" : ` since ${clock(failingSince)}`;
    return `${at}; ${out.red(`fails${since}: ${plain(lastError ?? "")}`)}`;
  }
  return deliveredAt === null ? `${at}; nothing delivered yet` : `${at}; last delivered ${clock(deliveredAt)}`;
}
