import type { MessagePort } from "node:worker_threads";
import { sleep } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { OpenRequest, SessionEnd } from "../targets/target.ts";
import type { JournalHealth } from "../recording/room.ts";
import { createLink, type Link } from "./link.ts";
import type { Activity, CutReason, DownVerbs, OpenedGrant, PlaneReady, UpVerbs } from "./messages.ts";

/** What the gateway needs from the control plane. Every method may take as long as it takes: no deadline depends on it. */
export interface GateBackend {
  /** The connect secret of that grant, or a decoy that is always the same for the same name. */
  challenge(user: string): Promise<{ connectSecret: string }>;
  /** The secret was proved. @throws GlassError for the person at the client. */
  open(request: OpenRequest): Promise<OpenedGrant>;
  /**
   * A session that `open` answered is over and its sockets are, or are about to be, gone. Called for each of them, also
   * when the data plane died; called again, with pauses, while it rejects.
   */
  closed(session: string, end: SessionEnd, cut: CutReason | undefined): Promise<void>;
  /** Somebody failed to prove the secret. Must not throw. */
  failed(user: string, remoteAddress: string): void;
  /** What live sessions do, every few seconds. Must not throw. */
  activity(reports: readonly Activity[]): void;
  /** Recording has stopped: all sessions are cut, new ones refused until it can go on. Must not throw. */
  journalFailed(message: string): void;
  /** Whether the journal has room, and both of its folders; told each time that it changes. Must not throw. */
  journalHealth?(health: JournalHealth): void;
  /** One line for the server's output. Must not throw. */
  log(line: string): void;
}

/** The control plane's end of the link: answers the data plane from a backend, and keeps track of what is open. */
export interface ControlEnd {
  readonly link: Link<DownVerbs>;
  /** Resolves when the data plane listens. @throws GlassError why it cannot. */
  readonly ready: Promise<PlaneReady>;
  /** The data plane is no more, and every socket with it: tells the backend of each session that it held. */
  lost(why: string): void;
  /** Resolves when the backend has taken every end, or after that time. */
  drained(timeoutMs: number): Promise<void>;
}

const MAX_UNANSWERED = 1_024;
const RETRY_FIRST_MS = 250;
const RETRY_LAST_MS = 30_000;

export function createControlEnd(port: MessagePort, backend: GateBackend): ControlEnd {
  const open = new Set<string>();
  const telling = new Set<Promise<void>>();
  const ready = Promise.withResolvers<PlaneReady>();
  const givenUp = new AbortController();
  let lostBecause: string | undefined;

  const tellUntilTaken = async (session: string, end: SessionEnd, cut: CutReason | undefined): Promise<void> => {
    for (let pauseMs = RETRY_FIRST_MS; !givenUp.signal.aborted; pauseMs = Math.min(RETRY_LAST_MS, pauseMs * 2)) {
      try {
        await backend.closed(session, end, cut);
        return;
      } catch (error) {
        backend.log(`the end of session ${session} is not stored yet: ${describe(error)}`);
        await sleep(pauseMs, givenUp.signal).catch(() => undefined);
      }
    }
  };

  const tell = (session: string, end: SessionEnd, cut: CutReason | undefined): void => {
    if (!open.delete(session)) return;
    const task = tellUntilTaken(session, end, cut).finally(() => telling.delete(task));
    telling.add(task);
  };

  const tellLost = (session: string, why: string): void => {
    const counts = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
    tell(session, { cause: "cut", detail: why, ...counts }, { code: "error", text: why });
  };

  const link = createLink<UpVerbs, DownVerbs>(port, {
    peer: "the data plane",
    maxUnanswered: MAX_UNANSWERED,
    onDefect: (verb, error) => backend.log(`control plane, ${verb}: ${describe(error)}`),
    handlers: {
      ready: (said) => {
        ready.resolve(said);
        return null;
      },
      cannotStart: ({ code, text, next }) => {
        ready.reject(new GlassError(code, text, next === undefined ? {} : { next }));
        return null;
      },
      challenge: ({ user }) => backend.challenge(user),
      open: async (request) => {
        const granted = await backend.open(request);
        open.add(granted.session);
        if (lostBecause !== undefined) tellLost(granted.session, lostBecause);
        return granted;
      },
      // Answered at once: from here on the end is this side's to keep, and the data plane may go.
      closed: ({ session, end, cut }) => {
        tell(session, end, cut);
        return null;
      },
      failed: ({ user, remoteAddress }) => {
        backend.failed(user, remoteAddress);
        return null;
      },
      activity: (reports) => {
        backend.activity(reports);
        return null;
      },
      journalFailed: (message) => {
        backend.journalFailed(message);
        return null;
      },
      journalHealth: (health) => {
        backend.journalHealth?.(health);
        return null;
      },
      log: (line) => {
        backend.log(line);
        return null;
      },
    },
  });

  return {
    link,
    ready: ready.promise,
    lost(why) {
      lostBecause = why;
      ready.reject(new GlassError("internal", why));
      for (const session of open) tellLost(session, why);
    },
    async drained(timeoutMs) {
      const waited = new AbortController();
      await Promise.race([Promise.all(telling), sleep(timeoutMs, waited.signal).catch(() => undefined)]);
      waited.abort();
      if (telling.size > 0)
        backend.log(`${telling.size} sessions ended without the store knowing; a restart finds them`);
      givenUp.abort();
    },
  };
}
