import type { Socket } from "node:net";
import { RECORD, type OpenSession, type SessionEnd } from "../target.ts";
import { createAnswers, type Sent } from "./answers.ts";
import { createClientReader, createServerReader } from "./framing.ts";
import { createMask, type Mask } from "./mask.ts";
import { createRequests } from "./requests.ts";
import type { ScopeChecker } from "./scope.ts";
import { createStatements, type Change } from "./statements.ts";
import { createTape } from "./tape.ts";
import * as wire from "./wire.ts";

export interface RelayOptions {
  /** Both sides logged in and silent; whatever they have sent since is still to be read. */
  client: Socket;
  target: Socket;
  session: OpenSession;
  checker: ScopeChecker;
  /** Sends a CancelRequest for the target's backend, on a connection of its own. Never throws. */
  cancelTarget(): Promise<void>;
  /** Ends a side at once: what is still under way to it is given up. */
  resetClient(): void;
  resetTarget(): void;
  /** Both sockets are done with; called once. */
  closed(): void;
}

/** One open session between two sockets. */
export interface Relay {
  warn(text: string): void;
  cut(text: string): void;
  destroy(): void;
  /** The user's client asked to cancel what runs, on another connection. Recorded before it is done. */
  cancel(done: () => void): void;
}

/** Reading stops above these and goes on when the other side has caught up. */
const MAX_WAITING_BYTES = 1024 * 1024;
const MAX_OUTSTANDING = 16_384; // messages; their answers may stay in the target's buffer of 8 KiB, 1,638 of them at most
/** Chunks below this are an answer, written at once; larger ones are bulk, and worth collecting for one write. */
const BULK_BYTES = 4096;
/** How long a side may take to close after it was told to. */
const LINGER_MS = 1_000;
/** A client that is gone leaves its statements this long to finish before they are cancelled. */
const ORPHAN_MS = 5_000;
/** … and this long to say that they were. Both together are less than the gateway waits for a client that left. */
const CANCELLED_MS = 1_000;
const EMPTY = Buffer.alloc(0);

type State =
  | "open"
  | "leaving" // the client said goodbye or is gone; the target finishes what it was sent
  | "closing" // the client is being told why, as soon as the target's current message ends
  | "closed";

export function startRelay(options: RelayOptions): Relay {
  const { client, target, session } = options;
  const { recorder } = session;
  let state: State = "open";
  let end: Pick<SessionEnd, "cause" | "detail"> | undefined;
  let farewell: Buffer | undefined; // the report that ends the session
  let busy = false;
  let settledSome = false;
  let waiting = false; // the client's next message depends on an answer
  let clientPaused = false;
  let targetPaused = false;
  let bytesIn = 0;
  let bytesOut = 0;
  let out: Buffer[] = [];
  let flushScheduled = false;
  let targetSaidWhy = false;
  let timer: NodeJS.Timeout | undefined;

  const mask = createMask(session.mask);
  const statements = createStatements();
  const answers = createAnswers({
    completed: (sent) => recorder.write(RECORD.statementCompleted, completedJson(sent, mask)),
    settled: (sent, done) => {
      statements.settled(sent.subject as Change, done);
      settledSome = true;
    },
    skip: () => requests.skip(),
    oweSync: () => {
      answers.sync(performance.now());
      forward([wire.SYNC]);
    },
    fatal: () => {
      targetSaidWhy = true;
    },
    idle: () => {},
  });
  const tape = createTape(recorder, (buffers) => {
    forward(buffers);
    resumeClient();
    if (state === "leaving" && tape.waitingBytes === 0) target.end();
  });
  const requests = createRequests({
    ...{ checker: options.checker, answers, statements, tape, mask },
    refusalDetail: `Glasskey did not send this to ${session.target} (grant ${session.grant}, playbook ${session.playbook}).`,
  });
  const clientReader = createClientReader(requests);
  const serverReader = createServerReader({
    rows: answers.rows,
    pass(bytes) {
      if (state === "closed") return;
      out.push(bytes);
      bytesOut += bytes.length;
      if (bytes === farewell) sayFarewell();
    },
    message(type, bytes, start, stop) {
      if (type === wire.BACKEND.parameterStatus) checkParameter(bytes, start, stop);
      const outcome = answers.answer(type, bytes, start, stop);
      if (type === wire.BACKEND.readyForQuery) {
        if (statements.reported()) settledSome = true;
        if (bytes[start + 5] === wire.STATUS.idle) statements.endTransaction();
      }
      return outcome;
    },
  });

  // ------------------------------------------------------------------------------------------- client → target

  const forward = (buffers: readonly Buffer[]): void => {
    if (state === "closed" || state === "closing" || target.destroyed) return;
    if (buffers.length === 1) {
      target.write(buffers[0] ?? EMPTY);
    } else {
      target.cork();
      for (const buffer of buffers) target.write(buffer);
      target.uncork();
    }
  };

  const overloaded = (): boolean =>
    recorder.pendingBytes > MAX_WAITING_BYTES ||
    tape.waitingBytes > MAX_WAITING_BYTES ||
    target.writableLength > MAX_WAITING_BYTES ||
    answers.outstanding > MAX_OUTSTANDING;

  const resumeClient = (): void => {
    if (!clientPaused || waiting || overloaded()) return;
    clientPaused = false;
    client.resume();
  };

  const updateBusy = (): void => {
    if (answers.outstanding > 0 === busy) return;
    busy = !busy;
    session.busy(busy);
  };

  const onClientData = (chunk: Buffer): void => {
    if (state !== "open") return;
    bytesIn += chunk.length;
    readClient(chunk);
  };

  const readClient = (chunk: Buffer): void => {
    try {
      clientReader.feed(chunk);
      requests.endTurn();
    } catch (error) {
      return violated(error, "client");
    }
    waiting = requests.waiting;
    if (requests.yielded) setImmediate(readOn);
    updateBusy();
    if (waiting || overloaded()) {
      clientPaused = true;
      client.pause();
    }
    if (requests.terminated) leave("client", "the client ended the session");
  };

  const readOn = (): void => {
    if (!waiting || state !== "open") return;
    waiting = false;
    readClient(EMPTY);
    resumeClient();
  };

  // ------------------------------------------------------------------------------------------- target → client

  const flush = (): void => {
    flushScheduled = false;
    const buffers = out;
    if (buffers.length === 0) return;
    out = [];
    if (client.destroyed || client.writableEnded) return;
    if (buffers.length === 1) {
      client.write(buffers[0] ?? EMPTY);
    } else {
      client.cork();
      for (const buffer of buffers) client.write(buffer);
      client.uncork();
    }
    if (!targetPaused && client.writableLength > MAX_WAITING_BYTES) {
      targetPaused = true;
      target.pause();
    }
  };

  const onTargetData = (chunk: Buffer): void => {
    if (state === "closed") return;
    try {
      serverReader.feed(chunk);
    } catch (error) {
      return violated(error, "target");
    }
    if (chunk.length < BULK_BYTES && !flushScheduled) flush();
    else if (!flushScheduled) {
      flushScheduled = true;
      setImmediate(flush);
    }
    if (settledSome) {
      settledSome = false;
      if (!requests.yielded) readOn();
    }
    updateBusy();
    resumeClient();
  };

  /** Another encoding, or another way to write strings, would make the target read another statement than was checked. */
  const checkParameter = (bytes: Buffer, start: number, stop: number): void => {
    const { name, value } = wire.decodeParameterStatus(bytes, start + 5, stop);
    if (name !== "client_encoding" && name !== "standard_conforming_strings") return;
    const verdict = options.checker.parameter(name, value);
    if (!verdict.ok) throw new wire.ProtocolViolation(`${name} became ${value}: ${verdict.reason}`, "42501");
  };

  const onDrain = (): void => {
    if (!targetPaused) return;
    targetPaused = false;
    target.resume();
  };

  // ------------------------------------------------------------------------------------------- ends

  const violated = (error: unknown, side: "client" | "target"): void => {
    if (state === "closed" || state === "closing") return finish();
    const known = error instanceof wire.ProtocolViolation;
    const text = known ? error.message : "a defect in Glasskey ended this session";
    const report = { severity: "FATAL" as const, sqlstate: known ? error.sqlstate : "XX000", message: text };
    close(
      "error",
      `${side}: ${error instanceof Error ? error.message : String(error)}`,
      report,
      known && side === "client",
    );
  };

  /** Tells the client why, at the next boundary between messages, and lets go of the target. */
  const close = (cause: SessionEnd["cause"], detail: string, report: wire.Report, mayWait = true): void => {
    if (state === "closing" || state === "closed") return;
    state = "closing";
    end ??= { cause, detail };
    clearTimeout(timer);
    timer = setTimeout(finish, LINGER_MS);
    client.pause();
    if (answers.outstanding > 0) void options.cancelTarget();
    farewell = wire.encodeReport(report);
    // In the middle of a message the client would take the report for data: the rest of that message goes first.
    if (serverReader.atBoundary || mayWait) serverReader.insert(farewell);
    else finish();
    if (state === "closing") onDrain();
  };

  const sayFarewell = (): void => {
    state = "closed";
    flush();
    client.end();
    // What it still sends is dropped, not left unread: a socket that is closed with that is reset, and the report lost.
    client.resume();
    target.destroy();
    conclude();
  };

  /** The client wants no more: what it was promised to the target is delivered, then the target closes. */
  const leave = (cause: SessionEnd["cause"], detail: string): void => {
    if (state !== "open") return;
    state = "leaving";
    end ??= { cause, detail };
    if (tape.waitingBytes === 0) target.end();
    timer = setTimeout(() => {
      if (answers.outstanding === 0) return finish();
      // The target's answer, not ours, goes into the recording: it may have finished just now.
      void options.cancelTarget();
      timer = setTimeout(finish, CANCELLED_MS);
    }, ORPHAN_MS);
  };

  const onTargetGone = (): void => {
    if (state === "leaving") {
      flush();
      client.end();
      return finishSoon();
    }
    if (state !== "open") return finish();
    end = { cause: "target", detail: "the target closed the connection" };
    if (targetSaidWhy || !serverReader.atBoundary) {
      flush();
      client.end();
      return finishSoon();
    }
    close("target", end.detail, {
      severity: "FATAL",
      sqlstate: "08006",
      message: `${session.target} closed the connection`,
    });
  };

  /** The client reads what was written to it, within limits. */
  const finishSoon = (): void => {
    state = "closed";
    client.resume(); // as above
    conclude();
    clearTimeout(timer);
    timer = setTimeout(finish, LINGER_MS);
  };

  const finish = (): void => {
    state = "closed";
    clearTimeout(timer);
    // A client that did not take everything by now shall not take the rest later, at its leisure.
    if (!client.destroyed && client.writableLength > 0) options.resetClient();
    client.destroy();
    if (!concluded && answers.outstanding > 0) {
      // The running statement is cancelled; by the reset the target finds nobody there, and drops what is queued behind it.
      void options.cancelTarget();
      if (!target.destroyed) options.resetTarget();
    }
    target.destroy();
    conclude();
  };

  let concluded = false;
  const conclude = (): void => {
    if (concluded) return;
    concluded = true;
    const { cause, detail } = end ?? { cause: "error", detail: "the connection was destroyed" };
    answers.abandon(`the session ended before the answer, and the target was told to cancel: ${detail}`);
    updateBusy();
    session.close({ cause, detail: mask.words(detail, false), ...requests.counts, bytesIn, bytesOut });
    options.closed();
  };

  client.on("data", onClientData);
  client.on("drain", onDrain);
  client.on("error", () => {});
  client.on("end", () => leave("client", "the client closed the connection without a goodbye"));
  client.on("close", () => {
    if (state === "closed") return finish();
    leave("client", "the client is gone");
    onDrain(); // nobody reads any more: the target need not wait
  });
  target.on("data", onTargetData);
  target.on("drain", resumeClient);
  target.on("error", () => {});
  target.on("end", onTargetGone);
  target.on("close", onTargetGone);
  client.resume();
  target.resume();

  return {
    warn(text) {
      if (state !== "open") return;
      serverReader.insert(wire.encodeReport({ severity: "WARNING", sqlstate: "01000", message: text }));
      flush();
    },
    cut(text) {
      end ??= { cause: "cut", detail: text };
      close("cut", text, { severity: "FATAL", sqlstate: "57P01", message: text });
    },
    destroy() {
      end ??= { cause: "cut", detail: "destroyed by the gateway" };
      finish();
    },
    cancel(done) {
      if (state !== "open") return done();
      recorder.write(RECORD.action, `{"what":"cancel"}`, () => {
        void options.cancelTarget().finally(done);
      });
    },
  };
}

function completedJson(sent: Sent, mask: Mask): string {
  const us = Math.round((performance.now() - sent.startedAtMs) * 1000);
  const tag = sent.tag === "" ? "" : `,"tag":${JSON.stringify(sent.tag)}`;
  const counted = sent.rows > 0 || sent.bytes > 0 ? `,"rows":${sent.rows},"bytes":${sent.bytes}` : "";
  const { error } = sent;
  const failed =
    error === undefined
      ? ""
      : `,"error":${JSON.stringify({ sqlstate: error.sqlstate, message: mask.words(error.message, sent.errorMasked).slice(0, 2_000) })}`;
  return `{"n":${sent.n}${tag}${counted}${failed},"us":${us}}`;
}
