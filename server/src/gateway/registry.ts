import { GlassError } from "../core/errors.ts";
import type { Clock } from "../core/clock.ts";
import type { OpenRequest, SessionEnd } from "../targets/target.ts";
import { createDeadlines } from "./deadline.ts";
import type {
  Activity,
  CutFilter,
  CutReason,
  GatewayLimits,
  OpenedGrant,
  SessionJournal,
  SessionView,
} from "./messages.ts";
import { createSession, type Connection, type Session } from "./session.ts";

/** A session that the control plane was asked for. What is decided meanwhile applies to it when the answer is there. */
export interface Expected {
  begin(granted: OpenedGrant, request: OpenRequest, connection: Connection): Session;
  /** The answer is there, or will not be waited for. Idempotent. */
  done(): void;
}

/** All sessions of the data plane, with their deadlines. */
export interface Registry {
  expect(): Expected;
  /** Resolves to the number of sessions cut, after their sockets are gone. */
  cut(filter: CutFilter, reason: CutReason): Promise<number>;
  cutAll(reason: CutReason): Promise<number>;
  extend(grant: string, endsAtMs: number): void;
  views(): SessionView[];
  activity(): Activity[];
  /** Cuts every session: recording has stopped. */
  journalFailed(): void;
  /** Resolves when every session's end is recorded and told. */
  settled(): Promise<void>;
}

export interface RegistryParts {
  clock: Clock;
  journal: SessionJournal;
  limits: GatewayLimits;
  report(session: string, end: SessionEnd, cut: CutReason | undefined): Promise<void>;
  log: (line: string) => void;
}

/**
 * The wall clock is looked at this often: if it jumps forward past a session's end, that is how late the cut can be. It
 * also keeps every timer far below the 2^31 ms at which `setTimeout` fires at once.
 */
const LOOK_MS = 100;
/** Decisions remembered for sessions that are being opened. */
const MAX_DECISIONS = 10_000;

export function createRegistry(parts: RegistryParts): Registry {
  const deadlines = createDeadlines(parts.clock);
  const sessions = new Set<Session>();
  let timer: NodeJS.Timeout | undefined;

  // A cut or an extension that comes while the control plane's yes is under way must not miss that session. Each open
  // that is under way has a number; decisions taken since are applied when the session begins.
  const underWay = new Set<number>();
  let decisions: { at: number; apply(session: Session): void }[] = [];
  let counter = 0;

  const decide = (apply: (session: Session) => void): void => {
    if (underWay.size === 0) return;
    if (decisions.length >= MAX_DECISIONS) {
      const reason: CutReason = { code: "error", text: "Glasskey could not open the session in time" };
      decisions = [{ at: counter++, apply: (session) => void session.cut(reason) }];
    }
    decisions.push({ at: counter++, apply });
  };

  const look = (): void => {
    let nextMs = LOOK_MS;
    for (const session of sessions) nextMs = Math.min(nextMs, session.tick());
    clearTimeout(timer);
    timer = sessions.size === 0 ? undefined : setTimeout(look, Math.max(1, Math.ceil(nextMs)));
  };

  const cutSome = async (chosen: readonly Session[], reason: CutReason): Promise<number> => {
    const running = chosen.filter((session) => !session.isOver).length;
    await Promise.all(chosen.map((session) => session.cut(reason)));
    return running;
  };

  const begin = (granted: OpenedGrant, request: OpenRequest, connection: Connection): Session => {
    const session = createSession({
      ...{ granted, request, connection, clock: parts.clock, limits: parts.limits, log: parts.log },
      deadline: deadlines.start(granted.grant, granted.endsAtMs),
      recorder: parts.journal.recorder(granted.session),
      report: (end, cut) => parts.report(granted.session, end, cut),
      forget: (session) => sessions.delete(session),
    });
    sessions.add(session);
    return session;
  };

  return {
    expect() {
      const at = counter++;
      underWay.add(at);
      return {
        begin(granted, request, connection) {
          const session = begin(granted, request, connection);
          for (const decision of decisions) {
            if (decision.at > at) decision.apply(session);
          }
          look(); // its end may be nearer than the next look
          return session;
        },
        done() {
          underWay.delete(at);
          if (underWay.size === 0) decisions = [];
        },
      };
    },
    cut(filter, reason) {
      const matches = (session: Session): boolean => {
        if ("grant" in filter) return session.grant === filter.grant;
        return session.id === filter.session;
      };
      decide((session) => {
        if (matches(session)) void session.cut(reason);
      });
      return cutSome([...sessions].filter(matches), reason);
    },
    cutAll(reason) {
      decide((session) => void session.cut(reason));
      return cutSome([...sessions], reason);
    },
    extend(grant, endsAtMs) {
      if (!Number.isFinite(endsAtMs)) throw new GlassError("internal", "an extension needs an end");
      const apply = (session: Session): void => {
        if (session.grant === grant) session.extend(endsAtMs);
      };
      decide(apply);
      for (const session of sessions) apply(session);
      look();
    },
    views: () => [...sessions].map((session) => session.view()).filter((view) => view !== undefined),
    activity: () => [...sessions].filter((session) => !session.isOver).map((session) => session.activity()),
    journalFailed() {
      for (const session of sessions) session.journalFailed();
    },
    async settled() {
      await Promise.all([...sessions].map((session) => session.finished));
    },
  };
}
