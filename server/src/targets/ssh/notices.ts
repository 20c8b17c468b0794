import type { OpenSession } from "../target.ts";

/**
 * What Glasskey says to the person at a terminal or on stderr. Plain text of one line or more; how it gets on a screen
 * without spoiling what is there is screen-state.ts' business.
 */

/** First words on a new shell. */
export function welcome(session: OpenSession): string {
  return (
    `${session.person} is on ${session.target} until ${timeOf(session.endsAt)}; everything you send is recorded. ` +
    `Reason: ${session.reason}. Playbook ${session.playbook}, grant ${session.grant}.`
  );
}

/** The line on a program's stderr. */
export function onStderr(text: string): Buffer {
  return Buffer.from(`glasskey: ${text}\n`, "utf8");
}

/** A line on a terminal whose program never ran, or has ended: nothing else is on that screen. */
export function onFreshTerminal(text: string): Buffer {
  return Buffer.from(`glasskey: ${text.replaceAll("\n", "\r\n")}\r\n`, "utf8");
}

/** `2026-11-21T14:32Z`, or with the seconds where they matter to somebody: never. */
function timeOf(at: Date): string {
  return `${at.toISOString().slice(0, 16)}Z`;
}
