import { describe, GlassError } from "../core/errors.ts";
import type { Clock } from "../core/clock.ts";
import {
  RECORD,
  type ClientConnection,
  type OpenRequest,
  type OpenSession,
  type Recorder,
  type SessionEnd,
  type SessionHandle,
} from "../targets/target.ts";
import type { Deadline } from "./deadline.ts";
import { deriveSecret } from "../core/derive.ts";
import type { Activity, CutReason, OpenedGrant, SessionView } from "./messages.ts";

/** An accepted client connection, and the sessions it carries. */
export interface Connection extends ClientConnection {
  readonly kind: string;
  readonly sessions: Set<Session>;
}

/** One session from the control plane's yes until its sockets are gone and its end was told. */
export interface Session {
  readonly id: string;
  readonly grant: string;
  /** What the protocol sees. */
  readonly door: OpenSession;
  /** Resolves once the start is committed in the recording. @throws GlassError why it was cut before that. */
  readonly started: Promise<void>;
  /** Resolves once the end is in the recording, or cannot be, and the control plane was told. */
  readonly finished: Promise<void>;
  readonly isOver: boolean;
  /** Undefined once it is over. */
  view(): SessionView | undefined;
  activity(): Activity;
  /** Warns or cuts, where that is due by now. Returns the milliseconds until the next time something is. */
  tick(): number;
  extend(endsAtMs: number): void;
  /** Idempotent; the first reason stays the true one. Resolves when the sockets are gone. */
  cut(reason: CutReason): Promise<void>;
  /** Recording has stopped: cuts the session, and waits only shortly for its last record. */
  journalFailed(): void;
}

export interface SessionParts {
  granted: OpenedGrant;
  request: OpenRequest;
  connection: Connection;
  deadline: Deadline;
  recorder: Recorder;
  clock: Clock;
  limits: { handshakeMs: number; journalMs: number; lingerMs: number };
  /** Tells the control plane. Called exactly once. */
  report(end: SessionEnd, cut: CutReason | undefined): Promise<void>;
  /** Nothing of the session is left. */
  forget: (session: Session) => void;
  log: (line: string) => void;
}

/** From `cut` to the end of the sockets, whatever the protocol does: enough to send a last message over a slow line. */
const CUT_MS = 50;
/** After its sockets are gone, how long a protocol may take to tell its counts. */
const COUNTS_MS = 250;
/**
 * After the client left, how long a protocol may take to close the other side in good order: the target's answer to a
 * statement that still runs belongs into the recording. Longer than the protocol's own limit (PostgreSQL: 6 s).
 */
const LEAVE_MS = 7_000;
/** A full disk has a reserve for last records; a broken one commits nothing, and is not worth a long wait. */
const RESERVE_MS = 500;
const DEFECT: CutReason = { code: "error", text: "Glasskey ended this session because of a defect in Glasskey" };
const NOT_RECORDED: CutReason = {
  code: "recording_unavailable",
  text: "the recording cannot be written, so access closes",
};
const WARN_BEFORE_MS = [300_000, 60_000];
const MAX_WARNINGS = 10;

type State = { is: "opening" } | { is: "live" } | { is: "cut"; reason: CutReason } | { is: "over" };

/** @throws GlassError `internal` for a lease key that is too short to derive secrets from; nothing has happened then. */
export function createSession(parts: SessionParts): Session {
  const { granted, connection, deadline, clock, limits } = parts;
  deriveSecret(granted.leaseKey, "check");
  const { socket } = connection;
  const startedAtMs = clock.now().getTime();
  const startedMs = clock.monotonicMs();
  const warnBeforeMs = (granted.warnBeforeMs ?? WARN_BEFORE_MS).slice(0, MAX_WARNINGS);
  const started = Promise.withResolvers<void>();
  const finished = Promise.withResolvers<void>();
  const gone = Promise.withResolvers<void>();
  const timers = new Set<NodeJS.Timeout>();

  let state: State = { is: "opening" };
  let handle: SessionHandle | undefined;
  let begun = false;
  let busy = false;
  let idleSinceMs = startedMs;
  let warnings: number[] = [];
  let destroyed = false;
  let socketClosed = socket.closed;
  let lastRecordMs = limits.journalMs;

  started.promise.catch(() => undefined); // a session may be cut before anybody waits for its start

  const after = (ms: number, act: () => void): void => {
    const timer = setTimeout(() => {
      timers.delete(timer);
      act();
    }, ms);
    timers.add(timer);
  };

  /** Runs the protocol's code. What it throws must not keep the gateway from ending the session. */
  const safely = (what: string, act: () => void): void => {
    try {
      act();
    } catch (error) {
      parts.log(`session ${granted.session}: ${connection.kind} failed in ${what}: ${describe(error)}`);
    }
  };

  const record = (kind: typeof RECORD.notice | typeof RECORD.sessionEnded, payload: object, done?: () => void): void =>
    safely("its recording", () => parts.recorder.write(kind, JSON.stringify(payload), done));

  const settle = (): void => {
    if (destroyed && socketClosed) gone.resolve();
    if (state.is === "over" && destroyed && socketClosed) forget();
  };

  const forget = (): void => {
    void finished.promise.then(() => {
      for (const timer of timers) clearTimeout(timer);
      timers.clear();
      socket.off("close", onSocketClosed);
      parts.forget(session);
    });
  };

  const destroy = (): void => {
    if (destroyed) return;
    destroyed = true;
    if (handle !== undefined) safely("destroy", () => handle?.destroy());
    socket.destroy();
    // A protocol that was never handed the session has nothing to say of it.
    if (state.is !== "over") after(begun ? COUNTS_MS : 0, () => finish(nothingKnown("the connection closed")));
    settle();
  };

  const finish = (said: SessionEnd): void => {
    if (state.is === "over") return;
    const cut = state.is === "cut" ? state.reason : undefined;
    const end = trueEnd(said, cut);
    const waitForRecord = Promise.withResolvers<void>();
    record(RECORD.sessionEnded, cut === undefined ? end : { ...end, code: cut.code }, waitForRecord.resolve);
    state = { is: "over" };
    connection.sessions.delete(session);
    started.reject(endedBeforeStart(cut));
    after(lastRecordMs, waitForRecord.resolve);
    void waitForRecord.promise
      .then(() => parts.report(end, cut))
      .catch((error: unknown) => parts.log(`session ${granted.session}: its end was not told: ${describe(error)}`))
      .then(finished.resolve);
    if (!destroyed) {
      after(limits.lingerMs, () => {
        if (connection.sessions.size === 0) destroy();
        else forget();
      });
    }
    settle();
  };

  const cut = (reason: CutReason): Promise<void> => {
    switch (state.is) {
      case "opening":
      case "live": {
        state = { is: "cut", reason };
        record(RECORD.notice, { what: "cut", ...reason });
        started.reject(endedBeforeStart(reason));
        if (handle !== undefined) safely("cut", () => handle?.cut(reason.text));
        if (socketClosed) destroy();
        else after(CUT_MS, destroy);
        break;
      }
      case "over":
        destroy(); // it said that it was over, and may still be sending its last bytes
        break;
      case "cut":
        break;
    }
    return gone.promise;
  };

  const onSocketClosed = (): void => {
    socketClosed = true;
    if (state.is === "opening" || state.is === "live") {
      after(begun ? LEAVE_MS : 0, () => {
        destroy();
        finish({ ...nothingKnown("the client closed the connection"), cause: "client" });
      });
      return;
    }
    destroy();
    settle();
  };

  const armWarnings = (): void => {
    const left = deadline.remainingMs();
    warnings = warnBeforeMs.filter((before) => before < left);
  };

  const warn = (leftMs: number): void => {
    const due = warnings.filter((before) => leftMs <= before);
    if (due.length === 0 || state.is !== "live") return;
    warnings = warnings.filter((before) => leftMs > before);
    // The time of day, not what is left: a client such as psql shows a notice with the next command only.
    const text = `this session ends at ${timeOfDay(deadline.endsAtMs)} UTC`;
    record(RECORD.notice, { what: "warning", text });
    safely("warn", () => handle?.warn(text));
  };

  const mayForward = (): boolean => (state.is === "opening" || state.is === "live") && deadline.remainingMs() > 0;

  /** It runs inside the journal's own turn: what it throws costs this session, and no other. */
  const guarded = (committed: () => void): void => {
    try {
      committed();
    } catch (error) {
      parts.log(`session ${granted.session}: ${connection.kind} failed to forward: ${describe(error)}`);
      void cut(DEFECT);
    }
  };

  const recorder: Recorder = {
    write(kind, payload, committed) {
      if (state.is === "over") return; // never committed, so never forwarded
      const commit =
        committed === undefined
          ? undefined
          : (): void => {
              if (mayForward()) guarded(committed);
            };
      parts.recorder.write(kind, payload, commit);
    },
    get pendingBytes() {
      return parts.recorder.pendingBytes;
    },
  };

  const door: OpenSession = {
    session: granted.session,
    grant: granted.grant,
    person: granted.person,
    playbook: granted.playbook,
    target: granted.target,
    reason: granted.reason,
    get endsAt() {
      return new Date(deadline.endsAtMs);
    },
    plan: granted.plan,
    scope: granted.scope,
    credential: granted.credential,
    secrets: { derive: (purpose) => deriveSecret(granted.leaseKey, purpose) },
    mask: granted.mask,
    recorder,
    attach(given) {
      if (handle !== undefined || state.is === "over" || destroyed) {
        safely("destroy", () => given.destroy());
        if (state.is === "live") void cut(DEFECT);
        return;
      }
      handle = given;
      if (state.is === "cut") {
        const { text } = state.reason;
        safely("cut", () => given.cut(text));
        return;
      }
      state = { is: "live" };
    },
    busy(now) {
      if (busy && !now) idleSinceMs = clock.monotonicMs();
      busy = now;
    },
    close: finish,
  };

  const session: Session = {
    id: granted.session,
    grant: granted.grant,
    door,
    started: started.promise,
    finished: finished.promise,
    get isOver() {
      return state.is === "over";
    },
    view() {
      if (state.is === "over" || (destroyed && socketClosed)) return undefined;
      const { session: id, grant, person, playbook, target, kind } = granted;
      return {
        ...{ session: id, grant, person, playbook, target, kind, startedAtMs, endsAtMs: deadline.endsAtMs },
        ...{ remoteAddress: connection.remoteAddress, state: state.is, busy, idleMs: session.activity().idleMs },
      };
    },
    activity: () => ({
      ...{ session: granted.session, grant: granted.grant, busy },
      idleMs: busy ? 0 : Math.max(0, Math.round(clock.monotonicMs() - idleSinceMs)),
    }),
    tick() {
      const leftMs = deadline.remainingMs();
      if (leftMs <= 0) {
        void cut({ code: "expired", text: expiredText(granted.grant, deadline.endsAtMs) });
        return Number.POSITIVE_INFINITY;
      }
      if (state.is === "opening" && clock.monotonicMs() - startedMs >= limits.handshakeMs) {
        void cut({ code: "error", text: `${granted.target} did not let Glasskey in, in time` });
      }
      warn(leftMs);
      return Math.min(leftMs, ...warnings.map((before) => leftMs - before).filter((ms) => ms > 0));
    },
    extend(endsAtMs) {
      deadline.move(endsAtMs);
      armWarnings();
    },
    cut,
    journalFailed() {
      lastRecordMs = Math.min(lastRecordMs, RESERVE_MS);
      void cut(NOT_RECORDED);
    },
  };

  connection.sessions.add(session);
  armWarnings();
  after(limits.journalMs, () => {
    if (state.is === "opening" && !begun) void cut(NOT_RECORDED);
  });
  try {
    parts.recorder.write(RECORD.sessionStarted, JSON.stringify(startRecord(parts, startedAtMs)), () => {
      if (state.is !== "opening") return;
      begun = true;
      started.resolve();
    });
  } catch {
    void cut(NOT_RECORDED);
  }
  if (socketClosed) onSocketClosed();
  else socket.once("close", onSocketClosed);
  return session;
}

function startRecord(parts: SessionParts, startedAtMs: number): object {
  const { session, grant, person, playbook, target, kind, reason, endsAtMs } = parts.granted;
  return {
    ...{ session, grant, person, playbook, target, kind, reason },
    ...{ remoteAddress: parts.connection.remoteAddress, client: parts.request.client },
    ...{ startedAt: new Date(startedAtMs).toISOString(), endsAt: new Date(endsAtMs).toISOString() },
  };
}

function nothingKnown(detail: string): SessionEnd {
  return { cause: "error", detail, statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
}

/** Who really ended it: a protocol that sees its socket close cannot know that the gateway had cut it. */
function trueEnd(said: SessionEnd, cut: CutReason | undefined): SessionEnd {
  const { statements, refused, bytesIn, bytesOut } = said;
  const counts = { statements, refused, bytesIn, bytesOut };
  if (cut !== undefined) return { cause: "cut", detail: cut.text, ...counts };
  const code = said.code === undefined ? {} : { code: said.code };
  return { cause: said.cause === "cut" ? "error" : said.cause, detail: said.detail.slice(0, 500), ...code, ...counts };
}

function endedBeforeStart(cut: CutReason | undefined): GlassError {
  if (cut === undefined) return new GlassError("grant_over", "the session ended before it began");
  return new GlassError(cut.code === "recording_unavailable" ? "recording_unavailable" : "grant_over", cut.text);
}

function expiredText(grant: string, endsAtMs: number): string {
  return `grant ${grant} ended at ${timeOfDay(endsAtMs)} UTC; break the glass again if you still need access`;
}

function timeOfDay(ms: number): string {
  return new Date(ms).toISOString().slice(11, 19);
}
