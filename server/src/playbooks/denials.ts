import type { Denial } from "./policy.ts";

/** Whether a denial can hold for a target: it names the target, one of its tags, or neither targets nor tags at all. */
export function concerns(
  { targets, tags }: Denial,
  target: { readonly name: string; readonly tags: readonly string[] },
): boolean {
  if (targets.length === 0 && tags.length === 0) return true;
  return targets.includes(target.name) || target.tags.some((tag) => tags.includes(tag));
}
