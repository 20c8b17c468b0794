import type { MessagePort } from "node:worker_threads";
import type { Clock } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { TargetKind } from "../targets/target.ts";
import { createGate, createThrottle } from "./gate.ts";
import { createLink, type Link } from "./link.ts";
import { createLobby, startListener, type Listener } from "./listener.ts";
import type { DownVerbs, OpenJournal, PlaneOptions, Refusal, SessionJournal, UpVerbs } from "./messages.ts";
import { createRegistry, type Registry } from "./registry.ts";

export interface PlaneParts {
  kinds: readonly Pick<TargetKind, "kind" | "serve" | "handshakeMs">[];
  openJournal: OpenJournal;
  clock: Clock;
}

const MAX_UNANSWERED = 2_048;
const HEALTH_MS = 250; // a full disk is known a file ahead; so much later nobody may break the glass

/**
 * The data plane: listeners, sessions, deadlines and the journal. Runs in a thread of its own, and goes on without the
 * control plane: running sessions last until their end, new ones are refused.
 * Resolves when it listens; what keeps it from that is told over the port.
 */
export async function startPlane(port: MessagePort, options: PlaneOptions, parts: PlaneParts): Promise<void> {
  const { limits } = options;
  const lobby = createLobby(limits);
  const throttle = createThrottle(parts.clock, limits);
  const listeners: Listener[] = [];
  const identities = new Map(Object.entries(options.identities));
  let refusal: Refusal | undefined;
  let stopping: Refusal | undefined;
  let registry: Registry | undefined;
  let journal: SessionJournal | undefined;
  let activityTimer: NodeJS.Timeout | undefined;
  let healthTimer: NodeJS.Timeout | undefined;

  const log = (line: string): void => void link.tell("log", line);

  const closeDoors = (): void => {
    clearInterval(activityTimer);
    clearInterval(healthTimer);
    for (const listener of listeners) listener.close();
    lobby.clear();
  };

  const link: Link<UpVerbs> = createLink<DownVerbs, UpVerbs>(port, {
    peer: "the control plane",
    maxUnanswered: MAX_UNANSWERED,
    onDefect: (verb, error) => {
      if (verb !== "log") log(`data plane, ${verb}: ${describe(error)}`);
    },
    onGone: () => {
      closeDoors();
      void registry?.settled().then(() => journal?.close());
    },
    handlers: {
      ping: () => null,
      cut: ({ filter, reason }) => registry?.cut(filter, reason) ?? 0,
      extend: ({ grant, endsAtMs }) => {
        registry?.extend(grant, endsAtMs);
        return null;
      },
      identify: ({ kind, identity }) => {
        identities.set(kind, identity);
        return null;
      },
      sessions: () => registry?.views() ?? [],
      refuseNew: (reason) => {
        refusal = reason ?? undefined;
        return null;
      },
      stop: async ({ text }) => {
        stopping = { code: "store_unavailable", text };
        closeDoors();
        await registry?.cutAll({ code: "stopping", text });
        await registry?.settled();
        await journal?.close();
        return null;
      },
    },
  });

  const whyNot = (): GlassError | undefined => {
    if (journal?.unavailable() !== undefined) {
      return new GlassError("recording_unavailable", "the recording cannot be written, so nothing is opened");
    }
    if (link.isGone) return new GlassError("store_unavailable", "Glasskey's control plane is gone");
    const reason = stopping ?? refusal;
    return reason === undefined ? undefined : new GlassError(reason.code, reason.text);
  };

  const start = async (): Promise<void> => {
    const opened = await parts.openJournal({
      ...options.journal,
      onFailure: (error) => {
        registry?.journalFailed();
        link.tell("journalFailed", describe(error));
      },
    });
    journal = opened;
    const sessions = createRegistry({
      ...{ clock: parts.clock, journal: opened, limits, log },
      report: async (session, end, cut) => {
        await link.ask("closed", { session, end, ...(cut === undefined ? {} : { cut }) }, { must: true });
      },
    });
    registry = sessions;
    for (const at of options.listeners) {
      const kind = parts.kinds.find((kind) => kind.kind === at.kind);
      if (kind === undefined) throw new GlassError("config_invalid", `there is no target kind "${at.kind}"`);
      const { tls, plaintextLoopback } = options;
      const listener = await startListener({
        ...{ kind, at, tls, plaintextLoopback, limits, lobby, log },
        identity: () => identities.get(kind.kind) ?? {},
        gate: (connection, proved) =>
          createGate({ connection, link, registry: sessions, throttle, limits, refusal: whyNot, proved }),
      });
      listeners.push(listener);
    }
    // One report under way at a time: a control plane that hangs must not find an hour of them.
    let reporting = false;
    activityTimer = setInterval(() => {
      const activity = sessions.activity();
      if (reporting || activity.length === 0) return;
      reporting = true;
      link
        .ask("activity", activity)
        .catch(() => undefined)
        .finally(() => (reporting = false));
    }, limits.activityMs);
    let told = JSON.stringify({ unavailable: null, degraded: null });
    const tellHealth = (): void => {
      const why = opened.unavailable();
      const next = why?.next === undefined ? {} : { next: why.next };
      const unavailable = why === undefined ? null : { text: why.message, ...next };
      const health = { unavailable, degraded: opened.degraded?.() ?? null };
      const text = JSON.stringify(health);
      if (text !== told && link.tell("journalHealth", health)) told = text;
    };
    tellHealth();
    healthTimer = setInterval(tellHealth, HEALTH_MS);
    if (opened.rebuilt !== undefined) log(`recording: ${opened.rebuilt}`);
    await link.ask(
      "ready",
      {
        ports: listeners.map((listener) => listener.at),
        journal: { id: opened.id, openedSequence: opened.openedSequence, spans: opened.spans },
      },
      { must: true },
    );
  };

  try {
    await start();
  } catch (error) {
    closeDoors();
    await journal?.close().catch(() => undefined);
    const known = error instanceof GlassError ? error : new GlassError("internal", describe(error));
    const next = known.next === undefined ? {} : { next: known.next };
    await link
      .ask("cannotStart", { code: known.code, text: known.message, ...next }, { must: true })
      .catch(() => undefined);
  }
}
