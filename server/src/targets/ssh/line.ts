import type { JsonObject } from "../../core/json.ts";
import type { OpenSession } from "../target.ts";
import type { Activity } from "./activity.ts";
import { authorize, type Question, type Verdict } from "./authorize.ts";
import type { SshPlan } from "./config.ts";
import type { SshScope } from "./scope.ts";
import type { Tape } from "./tape.ts";
import type { Channel, Connection } from "./types.ts";
import { printable } from "./wire.ts";

/** What all channels of one session share. */
export interface Line {
  readonly session: OpenSession;
  readonly plan: SshPlan;
  readonly scope: SshScope;
  readonly tape: Tape;
  readonly client: Connection;
  readonly target: Connection;
  readonly activity: Activity;
  /** What is open and has to be told when the session is about to end. */
  readonly open: Set<Open>;
  /**
   * The target may open channels of that type, agent or X11, because a program's client asked for it and was allowed to.
   * @returns takes it back; to be called when that program is over
   */
  expect(type: string): () => void;
  expects(type: string): boolean;
  /** Something of our own failed: ends the session. */
  defect(error: unknown): void;
  decide(question: Question): Verdict;
  /** Records a refusal. @returns the sentence for the person */
  refuse(
    via: string,
    text: string | Uint8Array,
    verdict: { reason: string; next?: string },
    detail?: JsonObject,
  ): string;
  moved(direction: "in" | "out", bytes: number): void;
  /** Gives a channel's window back, once the recorder has caught up with what was written to it. */
  paced(channel: Channel, bytes: number): void;
}

/** One program or forward. */
export interface Open {
  /** On a terminal, where there is one. */
  warn(text: string): void;
  /** Tells the reason where the channel has a place for it, and ends its statement with that. */
  end(code: EndCode, text: string): void;
}
export type EndCode = "cut" | "target_gone" | "client_gone" | "error" | "cancelled";

/** Above this much that the recorder has not taken yet, nobody gets window back. */
const MAX_PENDING_BYTES = 1024 * 1024;
const PACE_MS = 2;
/** A client that asks for what it may not have so often is not a person at work, and each refusal is a record. */
const MAX_REFUSED = 1_000;

export interface LineParts extends Pick<
  Line,
  "session" | "plan" | "scope" | "tape" | "client" | "target" | "activity" | "defect"
> {
  /** Too much was refused of what that side asked for. */
  tooManyRefused(whose: "client" | "target"): void;
}

export function createLine(parts: LineParts): Line & { counts(): { bytesIn: number; bytesOut: number }; stop(): void } {
  const { tape } = parts;
  let bytesIn = 0;
  let bytesOut = 0;
  const refused = { client: 0, target: 0 };
  const expected = new Map<string, number>();
  let owed = new Map<Channel, number>();
  let timer: NodeJS.Timeout | undefined;

  const pay = (): void => {
    timer = undefined;
    if (tape.pendingBytes > MAX_PENDING_BYTES) {
      timer = setTimeout(pay, PACE_MS);
      return;
    }
    const debts = owed;
    owed = new Map();
    for (const [channel, bytes] of debts) channel.consumed(bytes);
  };

  return {
    ...parts,
    open: new Set(),
    expect(type) {
      expected.set(type, (expected.get(type) ?? 0) + 1);
      let held = true;
      return () => {
        if (held) expected.set(type, (expected.get(type) ?? 1) - 1);
        held = false;
      };
    },
    expects: (type) => (expected.get(type) ?? 0) > 0,
    decide: (question) => authorize(question, parts.scope),
    refuse(via, text, { reason, next }, detail) {
      const whose = via === "target" ? "target" : "client";
      refused[whose] += 1;
      if (refused[whose] > MAX_REFUSED) parts.tooManyRefused(whose);
      else tape.refuse(via, text, reason, detail);
      return next === undefined || next === "" ? reason : `${reason}. ${next}`;
    },
    moved(direction, bytes) {
      if (direction === "in") bytesIn += bytes;
      else bytesOut += bytes;
    },
    paced(channel, bytes) {
      if (owed.size === 0 && tape.pendingBytes <= MAX_PENDING_BYTES) return channel.consumed(bytes);
      owed.set(channel, (owed.get(channel) ?? 0) + bytes);
      timer ??= setTimeout(pay, PACE_MS);
    },
    counts: () => ({ bytesIn, bytesOut }),
    stop() {
      clearTimeout(timer);
      owed.clear();
    },
  };
}

/** A text that a stranger wrote, for a record's `text`: printable, one line, bounded. */
export function said(text: string): string {
  return printable(text, 500);
}
