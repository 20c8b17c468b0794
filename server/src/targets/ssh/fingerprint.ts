import { GlassError } from "../../core/errors.ts";
import type { DriverTools, Fingerprint } from "../target.ts";
import type { SshPlan } from "./config.ts";
import { askControl, valuesOf } from "./control.ts";
import type { Lanes } from "./lanes.ts";
import { hostKeyShown } from "./login.ts";

/**
 * Who can do what on a host, one fact per line, sorted: users and groups, authorised keys by fingerprint, sudoers, sshd's
 * effective settings, services, timers and cron, setuid files, and the target file's own paths by SHA-256. No password
 * hashes, no file contents. Without a control login only the host's own key can be seen, and a line says so.
 *
 * A lease leaves nothing of its own in any of these, so there is nothing to leave out; the list of revoked keys is not read.
 */
export async function readFingerprint(
  plan: SshPlan,
  { tools, lanes }: { tools: DriverTools; lanes: Lanes },
  signal: AbortSignal,
): Promise<Fingerprint> {
  if (plan.control === null) {
    const key = await lanes(`${plan.host}:${plan.port}`, signal, () => hostKeyShown(plan, signal));
    return { lines: [`host key ${key}`, "nothing else is seen: this target has no control login"].toSorted() };
  }
  const answer = await askControl(
    { ...plan, control: plan.control },
    tools,
    lanes,
    ["fingerprint", ...plan.fingerprint.paths],
    signal,
  );
  const lines = valuesOf(answer, "fact");
  if (lines.length === 0) throw new GlassError("target_unfit", "the host told nothing about itself");
  return { lines: [...new Set(lines)].toSorted() };
}
