import { MessageChannel, Worker, type MessagePort } from "node:worker_threads";
import { describe } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { createControlEnd, type ControlEnd, type GateBackend } from "./control.ts";
import {
  DEFAULT_LIMITS,
  type CutFilter,
  type CutReason,
  type GatewayLimits,
  type ListenerOptions,
  type PlaneOptions,
  type PlaneReady,
  type Refusal,
  type SessionView,
} from "./messages.ts";

export interface GatewayOptions extends Omit<PlaneOptions, "limits" | "identities"> {
  limits?: Partial<GatewayLimits>;
  identities?: PlaneOptions["identities"];
  /** The worker thread's program; the server's own data plane unless a test brings another. */
  entry: URL;
}

/** What the worker thread is given as `workerData`. */
export interface PlaneStart {
  port: MessagePort;
  options: PlaneOptions;
}

/** The data plane, as the control plane holds it. */
export interface Gateway {
  /** Where it listens, with the ports that were really taken. */
  readonly ports: readonly ListenerOptions[];
  /** The journal that was opened, for the sealer. */
  readonly journal: PlaneReady["journal"];
  /** Resolves to the number of sessions cut, once their sockets are gone. Cutting what is not there is success: 0. */
  cut(filter: CutFilter, reason: CutReason): Promise<number>;
  /** Moves the deadline of a grant's sessions. */
  extend(grant: string, endsAtMs: number): Promise<void>;
  sessions(): Promise<SessionView[]>;
  /** Who the gateway is in a kind's protocol, for connections from now on. */
  identify(kind: string, identity: JsonObject): Promise<void>;
  /** While a reason is set, nobody may begin a session; running ones go on. */
  refuseNew(reason: Refusal | null): Promise<void>;
  /** Tells and cuts every session, flushes the journal and ends the thread. Idempotent. */
  stop(text: string): Promise<void>;
  /** Resolves, with why, if the data plane ends without having been stopped. Its sockets are gone by then. */
  readonly whenDead: Promise<Error>;
}

/**
 * Node allocates 64 KiB for every read of a socket. In a small young generation they are freed while they are still in
 * the processor's cache; in the default one they wait for major collections, which cost a third of the throughput.
 */
const YOUNG_GENERATION_MB = 3;
const START_MS = 30_000;
const ANSWER_MS = 10_000;
const STOP_MS = 20_000;
const DRAIN_MS = 5_000;
const BEAT_MS = 500;
/** A data plane that hangs holds no deadline. After so many beats without an answer it is ended, which closes its sockets. */
const MISSED_BEATS = 10;

/**
 * Starts the data plane in a thread of its own.
 * @throws GlassError `config_invalid` if it cannot listen, or why the journal does not open.
 */
export async function startGateway(options: GatewayOptions, backend: GateBackend): Promise<Gateway> {
  const { entry, limits, identities = {}, ...plane } = options;
  const { port1, port2 } = new MessageChannel();
  const workerData: PlaneStart = {
    port: port2,
    options: { ...plane, identities, limits: { ...DEFAULT_LIMITS, ...limits } },
  };
  const worker = new Worker(entry, {
    ...{ workerData, transferList: [port2], name: "data-plane" },
    resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
  });
  const control = createControlEnd(port1, backend);
  const dead = Promise.withResolvers<Error>();
  let stopped: Promise<void> | undefined;
  let heart: NodeJS.Timeout | undefined;
  let exited = false;
  let failure: unknown;

  worker.on("error", (error) => (failure ??= error));
  worker.on("exit", (code) => {
    exited = true;
    clearInterval(heart);
    const why = `the data plane ended: ${failure === undefined ? `exit code ${code}` : describe(failure)}`;
    control.lost(why);
    port1.close();
    if (stopped === undefined) dead.resolve(new Error(why, failure === undefined ? {} : { cause: failure }));
  });

  const start = setTimeout(() => {
    failure ??= new Error("it did not start in time");
    void worker.terminate();
  }, START_MS);
  let ready: PlaneReady;
  try {
    ready = await control.ready;
  } catch (error) {
    stopped = Promise.resolve();
    await worker.terminate();
    throw error;
  } finally {
    clearTimeout(start);
  }
  // Not before: a thread that still loads its code and verifies its journal answers nothing, and holds no deadline yet.
  heart = watch(control, () => {
    failure ??= new Error("it did not answer for 5 seconds");
    void worker.terminate();
  });
  if (exited) clearInterval(heart);

  const stop = async (text: string): Promise<void> => {
    try {
      if (!exited) await control.link.ask("stop", { text }, { timeoutMs: STOP_MS });
    } finally {
      clearInterval(heart);
      await worker.terminate();
      await control.drained(DRAIN_MS);
    }
  };

  const ask = { timeoutMs: ANSWER_MS };
  return {
    ...ready,
    cut: async (filter, reason) => (exited ? 0 : control.link.ask("cut", { filter, reason }, ask)),
    extend: async (grant, endsAtMs) => {
      await control.link.ask("extend", { grant, endsAtMs }, ask);
    },
    identify: async (kind, identity) => {
      if (!exited) await control.link.ask("identify", { kind, identity }, ask);
    },
    sessions: async () => (exited ? [] : control.link.ask("sessions", null, ask)),
    refuseNew: async (reason) => {
      await control.link.ask("refuseNew", reason, ask);
    },
    stop: (text) => (stopped ??= stop(text)),
    whenDead: dead.promise,
  };
}

/** Asks for a sign of life. Beats that this thread itself missed, because it was held up, do not count against the other. */
function watch(control: ControlEnd, onDead: () => void): NodeJS.Timeout {
  let missed = 0;
  let waiting = false;
  let lastMs = performance.now();
  return setInterval(() => {
    const nowMs = performance.now();
    const heldUp = nowMs - lastMs > 2 * BEAT_MS;
    lastMs = nowMs;
    if (waiting && !heldUp && ++missed >= MISSED_BEATS) onDead();
    if (waiting) return;
    waiting = true;
    control.link
      .ask("ping", null, { must: true })
      .then(() => {
        waiting = false;
        missed = 0;
      })
      .catch(() => undefined);
  }, BEAT_MS);
}
