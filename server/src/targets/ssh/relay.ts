import { describe } from "../../core/errors.ts";
import type { OpenSession, SessionEnd } from "../target.ts";
import { createActivity } from "./activity.ts";
import { createBacklog } from "./backlog.ts";
import type { SshPlan } from "./config.ts";
import { createForwards } from "./forwards.ts";
import { startKeepalive } from "./keepalive.ts";
import { createLine, said, type EndCode } from "./line.ts";
import { serveProgram } from "./program.ts";
import type { SshScope } from "./scope.ts";
import { createTape } from "./tape.ts";
import {
  DISCONNECT,
  OPEN_FAILURE,
  SshError,
  type Accept,
  type ChannelOpen,
  type Connection,
  type ConnectionHandlers,
  type Request,
} from "./types.ts";

export interface RelayParts {
  readonly session: OpenSession;
  readonly plan: SshPlan;
  readonly scope: SshScope;
  readonly client: Connection;
  readonly target: Connection;
  readonly keepalive: { readonly everyMs: number; readonly clientMissed: number; readonly targetMissed: number };
}

/** One session between two connections: every channel and request is judged, recorded, and only then passed on. */
export interface Relay {
  /** For the connection to the user's client, and for the one to the target. */
  readonly client: ConnectionHandlers;
  readonly target: ConnectionHandlers;
  warn(text: string): void;
  /** Tells the person why and closes both sides. Waits for nobody. */
  cut(text: string): void;
  destroy(): void;
}

/** How long a side may take to close after it was told to. */
const LINGER_MS = 1_000;
/** Channel types for connections through the target. */
const DIRECT = new Set(["direct-tcpip", "direct-streamlocal@openssh.com"]);

export function startRelay(parts: RelayParts): Relay {
  const { session, client, target, keepalive } = parts;
  let over = false;

  const backlog = createBacklog(session.recorder, (on) => client.hold(on));
  const tape = createTape({ recorder: backlog.recorder, mask: session.mask }, {});
  const activity = createActivity((busy) => session.busy(busy));
  const line = createLine({
    ...{ session, plan: parts.plan, scope: parts.scope, tape, client, target, activity },
    defect: (error) => defect(error),
    tooManyRefused(whose) {
      if (whose === "client") end("error", "error", "too much was asked for that this grant does not allow");
      else end("target", "error", `${session.target} opened one channel after the other that nobody asked for`);
    },
  });
  const forwards = createForwards(line);
  const stopKeepalives = [
    startKeepalive(client, keepalive.everyMs, keepalive.clientMissed, () =>
      end("client", "client_gone", "the client gave no sign of life"),
    ),
    startKeepalive(target, keepalive.everyMs, keepalive.targetMissed, () =>
      end("target", "target_gone", `${session.target} gave no sign of life`),
    ),
  ];

  /** The one end. The target goes first: nothing more reaches it while the client reads why. */
  const end = (
    cause: SessionEnd["cause"],
    code: EndCode,
    text: string,
    reason: number = DISCONNECT.byApplication,
    detail = text,
  ): void => {
    if (over) return;
    over = true;
    for (const stop of stopKeepalives) stop();
    target.disconnect(DISCONNECT.byApplication, "the session has ended");
    for (const open of line.open) {
      try {
        open.end(code, text);
      } catch {
        // What is broken in one must not keep the others open, nor the session.
      }
    }
    activity.stop();
    backlog.stop();
    line.stop();
    client.farewell(reason, text);
    session.close({ cause, detail, ...tape.counts, ...line.counts() });
    setTimeout(destroySides, LINGER_MS).unref();
    tape.close();
  };
  const defect = (error: unknown): void =>
    end(
      "error",
      "error",
      "a defect in Glasskey ended this session",
      DISCONNECT.byApplication,
      `a defect: ${describe(error)}`,
    );
  const destroySides = (): void => {
    client.destroy();
    target.destroy();
  };

  /** Runs the handling of what a peer sent; a message that is damaged ends the session. */
  const guarded = (act: () => void): void => {
    try {
      act();
    } catch (error) {
      if (error instanceof SshError) end("error", "error", said(error.message), error.reason);
      else defect(error);
    }
  };

  const clientOpens = (open: ChannelOpen, accept: Accept): void => {
    if (over) return accept.refuse(OPEN_FAILURE.administrativelyProhibited, "the session has ended");
    if (open.type === "session") return serveProgram(line, accept);
    if (DIRECT.has(open.type)) return forwards.fromClient(open, accept);
    const what = said(open.type);
    const verdict = line.decide({ ask: "unknown", what: `channel ${what}` });
    const why = verdict.ok ? { reason: `channels of type ${what} do not pass through Glasskey` } : verdict;
    accept.refuse(OPEN_FAILURE.unknownChannelType, line.refuse("channel", what, why));
  };

  const clientAsks = (request: Request): Promise<{ ok: boolean; data?: Uint8Array }> => {
    if (over) return Promise.resolve({ ok: false });
    const forwarded = forwards.request(request);
    if (forwarded !== undefined) return forwarded;
    const what = said(request.type);
    const verdict = line.decide({ ask: "unknown", what: `request ${what}` });
    line.refuse("request", what, verdict.ok ? { reason: `requests ${what} do not pass through Glasskey` } : verdict);
    return Promise.resolve({ ok: false });
  };

  return {
    client: {
      onOpen: (open, accept) => guarded(() => clientOpens(open, accept)),
      async onRequest(request) {
        let answer: Promise<{ ok: boolean; data?: Uint8Array }> | undefined;
        guarded(() => void (answer = clientAsks(request)));
        return (await answer) ?? { ok: false };
      },
      onDefect: defect,
      onClose(error) {
        const text = error === undefined ? "the client closed the connection" : `client: ${said(error.message)}`;
        end("client", "client_gone", text);
      },
    },
    target: {
      onOpen: (open, accept) => guarded(() => forwards.fromTarget(open, accept)),
      // Its keepalives want any answer; announcements of host keys want none.
      onRequest: () => Promise.resolve({ ok: false }),
      onDefect: defect,
      onClose(error) {
        // Of a stream that just ends there is no more to say.
        const ended = error === undefined || (error.reason === DISCONNECT.connectionLost && error.cause === undefined);
        const why = ended ? "" : `: ${said(error.message)}`;
        end("target", "target_gone", `${session.target} closed the connection${why}`, DISCONNECT.connectionLost);
      },
    },
    warn(text) {
      for (const open of line.open) open.warn(text);
    },
    cut: (text) => end("cut", "cut", text),
    destroy() {
      end("cut", "cut", "destroyed by the gateway");
      destroySides();
    },
  };
}
