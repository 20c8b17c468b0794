import { formatDuration } from "../core/duration.ts";
import { NO_USAGE } from "../playbooks/facts.ts";
import type { Decision, Playbook, Usage } from "../playbooks/policy.ts";
import type { Access } from "./access.ts";
import { countUsage, rotasOf } from "./facts.ts";

/** A playbook as one person finds it at this moment. */
export interface Listed {
  readonly playbook: Playbook;
  /** Whatever the reason, the duration and the incident. */
  readonly decision: Decision;
  /** Why it needs a quorum, and what ends that. */
  readonly quorum: readonly string[];
  /** What nobody can tell now, so that a human has to agree. */
  readonly unknown: readonly string[];
  /** When it may be used, in words; null: at any time. */
  readonly hours: string | null;
}

/** What may this person break now? The sources are asked once for all playbooks, and the store is. */
export async function playbooksFor(access: Access, person: string): Promise<readonly Listed[]> {
  const policy = access.policy();
  const { playbooks } = policy;
  const observed = await access.evidence.observe({ policy, person, rotas: rotasOf(policy, playbooks) });
  const names = playbooks.map(({ name }) => name);
  const { atMs, usage } = await countUsage(access, access.store, { person, playbooks: names });
  return playbooks.map((playbook) => {
    const used = usage.get(playbook.name) ?? NO_USAGE;
    const facts = { oncall: observed.oncall, incident: observed.incident, usage: used, atMs };
    const decision = policy.canRequest(person, playbook.name, facts);
    const hours = decision.clauses.find(({ clause }) => clause === "when.hours")?.text ?? null;
    const raised = decision.need > playbook.approve.need && decision.quorum.length === 0;
    const unknown = decision.clauses.filter((clause) => clause.unknown && raised).map(({ text }) => text);
    return {
      playbook,
      decision,
      hours,
      unknown,
      quorum: [...decision.quorum, ...quorumEnds(playbook, used, decision)],
    };
  });
}

function quorumEnds({ limit }: Playbook, { overdue, unsigned }: Usage, { quorum }: Decision): readonly string[] {
  if (quorum.length === 0) return [];
  if (overdue > 0 || (limit.uses !== undefined && unsigned >= limit.uses.count)) {
    return ["It ends when its reviews are signed: glass review."];
  }
  return limit.cooldownMs === undefined ? [] : [`It ends ${formatDuration(limit.cooldownMs)} after the last use.`];
}
