import { describe, GlassError } from "../core/errors.ts";
import type { Access } from "./access.ts";
import { clearAlarm, raiseAlarm } from "./alarms.ts";

/**
 * Somebody may be standing in a target's place, or it was rebuilt: either way a person has to look. Whoever met it has
 * refused to go on already.
 */
export async function alarmIfUntrusted(access: Access, target: string, error: unknown): Promise<void> {
  if (!(error instanceof GlassError && error.code === "target_untrusted")) return;
  const text = `${target} is not the target that its file describes: ${describe(error)}`;
  await raiseAlarm(access.store, access.warn, alarmKey(target), text, access.notifier);
}

/** The target was reached, and was the right one. */
export async function trusted(access: Access, target: string): Promise<void> {
  await clearAlarm(access.store, access.warn, alarmKey(target), access.notifier);
}

const alarmKey = (target: string): string => `untrusted ${target}`;
