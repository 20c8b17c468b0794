import type { PolicyChange, PolicyHistory, PolicyInForce, PolicyReload } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { CliError, usage } from "../errors.ts";
import { readLogin } from "../home.ts";
import { clock, plain, table, type Output } from "../output.ts";

/** `glass policy`: what is in force. */
export async function policy({ out }: Invocation): Promise<number> {
  const inForce = await call<PolicyInForce>(readLogin(), "GET", "/v1/policy");
  out.value(inForce);
  const { generation, hash, source, commit, author, signer, node, since } = inForce;
  out.say(`Policy ${out.bold(hash.slice(0, 12))} is in force since ${clock(since)}.`);
  const rows = [
    ["  hash", hash],
    ["  source", plain(source)],
    ...(commit === null ? [] : [["  commit", commit]]),
    ...(author === null ? [] : [["  author", plain(author)]]),
    ...(signer === null ? [] : [["  signer", plain(signer)]]),
    ["  change", `number ${generation}, by process ${node}`],
  ];
  for (const lines of table(rows)) out.sayAll(lines);
  out.say("Who gained and who lost: glass policy history");
  return 0;
}

/** `glass policy history [GENERATION]`: the changes, or one of them with its plan. */
export async function history({ args, out }: Invocation): Promise<number> {
  const wanted = args[0];
  if (wanted !== undefined && !/^[1-9]\d{0,9}$/.test(wanted))
    throw usage(`"${wanted}" is not the number of a change`, "Use: glass policy history [NUMBER]");
  const query = wanted === undefined ? "" : `?limit=1&before=${Number(wanted) + 1}`;
  const { changes } = await call<PolicyHistory>(readLogin(), "GET", `/v1/policy/history${query}`);
  if (wanted === undefined) {
    out.value({ changes });
    const rows = changes.map((change) => [
      String(change.generation),
      clock(change.since),
      change.hash.slice(0, 12),
      widening(out, change),
      plain(
        [change.commit?.slice(0, 12), change.author ?? change.source].filter((text) => text !== undefined).join(" "),
      ),
    ]);
    for (const lines of table([["change", "since", "policy", "access", "by"], ...rows])) out.sayAll(lines);
    out.say("One of them, with its plan: glass policy history NUMBER");
    return 0;
  }
  const [change] = changes;
  if (change === undefined || change.generation !== Number(wanted))
    throw new CliError("not_found", `there is no change ${wanted}`, { next: "List them: glass policy history" });
  out.value(change);
  out.say(
    `Change ${out.bold(wanted)}, ${clock(change.since)}: policy ${change.hash.slice(0, 12)}, ${widening(out, change)}`,
  );
  out.say(`  from ${plain(change.source)}${change.commit === null ? "" : `, commit ${change.commit}`}`);
  if (change.author !== null) out.say(`  by ${plain(change.author)}`);
  for (const line of planLines(change.plan)) out.say(line);
  return 0;
}

/** `glass policy reload`. */
export async function reload({ out }: Invocation): Promise<number> {
  const answer = await call<PolicyReload>(readLogin(), "POST", "/v1/policy/reload");
  out.value(answer);
  if (!answer.inForce)
    throw new CliError("config_invalid", answer.problems ?? "the policy did not load", {
      next: "The policy that was in force stays so.",
    });
  out.say(`In force: policy ${answer.hash.slice(0, 12)}.`);
  return 0;
}

function widening(out: Output, { widened }: PolicyChange): string {
  if (widened === null) return "first";
  return widened ? out.yellow("wider") : "not wider";
}

/** The plan's changes as lines; what has another form is left to `--json`. */
function planLines(plan: unknown): readonly string[] {
  const changes = isRecord(plan) && Array.isArray(plan["changes"]) ? (plan["changes"] as readonly unknown[]) : [];
  const lines = changes.filter(isRecord).map((change) => {
    const text = (key: string): string => (typeof change[key] === "string" ? plain(change[key]) : "");
    const names = Array.isArray(change["playbooks"])
      ? change["playbooks"].filter((name) => typeof name === "string")
      : [];
    const where = names.length === 0 ? "" : ` (${plain(names.slice(0, 5).join(", "))}${names.length > 5 ? ", …" : ""})`;
    return `  ${text("effect")}: ${text("rule")} ${text("what")}${where}`;
  });
  return lines.length > MAX_LINES
    ? [...lines.slice(0, MAX_LINES), `  … and ${lines.length - MAX_LINES} more, with --json`]
    : lines;
}

const MAX_LINES = 40; // a screen; a change of everything has thousands

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
