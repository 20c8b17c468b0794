import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { MessageChannel } from "node:worker_threads";
import { systemClock, type Clock } from "../../core/clock.ts";
import { GlassError } from "../../core/errors.ts";
import type { SessionEnd } from "../../targets/target.ts";
import { createControlEnd, type ControlEnd, type GateBackend } from "../control.ts";
import {
  DEFAULT_LIMITS,
  type Activity,
  type CutReason,
  type GatewayLimits,
  type OpenedGrant,
  type PlaneOptions,
} from "../messages.ts";
import { startPlane } from "../plane.ts";
import { brokenKind, createLineKind, type Mode } from "./line-kind.ts";
import { createMemoryJournal, type MemoryJournal } from "./memory-journal.ts";

const MASK = { parameters: false, literals: false, key: new Uint8Array(32).fill(9) };

export const SECRET = "connect-secret";

/** A control plane in memory: every grant in `grants` is live. */
export interface TestBackend extends GateBackend {
  readonly grants: Map<string, { endsInMs: number } & Partial<OpenedGrant>>;
  readonly opened: string[];
  readonly ended: { session: string; end: SessionEnd; cut: CutReason | undefined }[];
  readonly failures: string[];
  readonly reports: (readonly Activity[])[];
  readonly journalFailures: string[];
  readonly lines: string[];
  /** Runs before `open` answers, after it has decided. */
  beforeAnswer: (() => Promise<void>) | undefined;
}

export function createTestBackend(clock: Clock = systemClock): TestBackend {
  let count = 0;
  const backend: TestBackend = {
    ...{ grants: new Map(), opened: [], ended: [], failures: [], reports: [], journalFailures: [], lines: [] },
    beforeAnswer: undefined,
    challenge: async (user) => ({ connectSecret: backend.grants.has(user) ? SECRET : "decoy" }),
    async open(request) {
      const grant = backend.grants.get(request.user);
      if (grant === undefined) throw new GlassError("grant_over", "the grant is over", { next: "Break it again." });
      const { endsInMs, ...rest } = grant;
      const granted = {
        ...{
          session: `se_${++count}`,
          grant: request.user,
          person: "pe_ann",
          playbook: "orders",
          target: "orders-prod",
        },
        ...{ kind: "line", reason: "checkout is broken", endsAtMs: clock.now().getTime() + endsInMs },
        ...{ plan: {}, scope: {}, leaseKey: new Uint8Array(32).fill(7), credential: {}, mask: MASK, ...rest },
      };
      backend.opened.push(granted.session);
      await backend.beforeAnswer?.();
      return granted;
    },
    async closed(session, end, cut) {
      backend.ended.push({ session, end, cut });
    },
    failed: (user) => void backend.failures.push(user),
    activity: (reports) => void backend.reports.push(reports),
    journalFailed: (message) => void backend.journalFailures.push(message),
    log: (line) => void backend.lines.push(line),
  };
  return backend;
}

/** Both ends in one thread, with listeners for the kinds `line`, `line-tls`, `line-patient` and `broken`. */
export interface Rig {
  readonly backend: TestBackend;
  readonly journal: MemoryJournal;
  readonly control: ControlEnd;
  readonly ports: Record<string, number>;
  /** Breaks the link, as the death of the control plane does. */
  breakLink(): void;
  close(): Promise<void>;
}

export async function startRig(
  options: {
    clock?: Clock;
    limits?: Partial<GatewayLimits>;
    tls?: { key: string; cert: string };
    identities?: PlaneOptions["identities"];
    backend?: TestBackend;
  } = {},
): Promise<Rig> {
  const { clock = systemClock, tls = { key: "", cert: "" } } = options;
  const backend = options.backend ?? createTestBackend(clock);
  const journal = createMemoryJournal();
  const { port1, port2 } = new MessageChannel();
  const control = createControlEnd(port1, backend);
  const patient = createLineKind({ name: "line-patient", handshakeMs: 3_600_000 });
  const kinds = [createLineKind(), createLineKind({ name: "line-tls", tls: true }), patient, brokenKind];
  await startPlane(
    port2,
    {
      listeners: kinds.map(({ kind }) => ({ kind, host: "127.0.0.1", port: 0 })),
      ...{
        tls,
        plaintextLoopback: true,
        identities: options.identities ?? {},
        limits: { ...DEFAULT_LIMITS, ...options.limits },
      },
      journal: { dir: "unused", key: new Uint8Array(32), mode: "durable" },
    },
    { kinds, openJournal: journal.open, clock },
  );
  const listening = await control.ready;
  let broken = false;
  return {
    ...{ backend, journal, control },
    ports: Object.fromEntries(listening.ports.map(({ kind, port }) => [kind, port])),
    breakLink() {
      broken = true;
      port1.close();
    },
    async close() {
      if (!broken) await control.link.ask("stop", { text: "the test is over" });
      port1.close();
      await control.drained(1_000);
    },
  };
}

export interface LineClient {
  readonly socket: Socket;
  readonly lines: string[];
  say(line: string): void;
  /** The first line, past or future, that begins so. Rejects if the connection ends without it. */
  line(start: string): Promise<string>;
  /** When the connection was closed, on the monotonic clock. */
  readonly closedMs: Promise<number>;
}

export async function connectLine(port: number, tls = false): Promise<LineClient> {
  const socket = tls
    ? connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false })
    : connect({ host: "127.0.0.1", port });
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  let rest = "";
  let over = false;
  const closedMs = new Promise<number>((resolve) => {
    socket.on("close", () => {
      over = true;
      resolve(performance.now());
      for (const look of waiting) look();
    });
  });
  socket.on("error", () => undefined);
  socket.on("data", (bytes: Buffer) => {
    const parts = (rest + bytes.toString()).split("\n");
    rest = parts.pop() ?? "";
    lines.push(...parts);
    for (const look of waiting) look();
  });
  await once(socket, tls ? "secureConnect" : "connect");
  return {
    ...{ socket, lines, closedMs },
    say: (line) => void socket.write(`${line}\n`),
    line: (start) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          const found = lines.find((line) => line.startsWith(start));
          if (found !== undefined) resolve(found);
          else if (over) reject(new Error(`closed without a line "${start}": ${lines.join(" | ")}`));
          else return;
          waiting.delete(look);
        };
        waiting.add(look);
        look();
      }),
  };
}

/** Connects and logs in; resolves when welcomed. */
export async function login(port: number, grant: string, mode: Mode = "good", tls = false): Promise<LineClient> {
  const client = await connectLine(port, tls);
  client.say(`hello ${grant} ${SECRET} ${mode}`);
  await client.line("welcome");
  return client;
}

/** Polls until it holds; the test's own time-out ends it otherwise. */
export async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}

export function testClock(): Clock & { jumpWall(ms: number): void } {
  let jumpedMs = 0;
  return {
    now: () => new Date(Date.now() + jumpedMs),
    monotonicMs: () => performance.now(),
    jumpWall: (ms) => void (jumpedMs += ms),
  };
}
