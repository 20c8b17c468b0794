import { DROP, KEEP, type Outcome } from "./framing.ts";
import { BACKEND, decodeError, ProtocolViolation, STATUS, type ServerError } from "./wire.ts";

/**
 * Which answer of the target belongs to which message of the client. Pure: a queue of what was sent and is not answered.
 *
 * The rules are those of "Message Flow" (54.2): a simple query or a function call ends with ReadyForQuery; the messages of
 * the extended protocol are answered one by one; after an error among them the target ignores everything up to Sync. In
 * COPY … FROM STDIN it ignores Sync and Flush as well.
 */

export const SENT = {
  query: 1,
  parse: 2,
  bind: 3,
  describe: 4,
  execute: 5,
  close: 6,
  sync: 7,
  functionCall: 8,
  /** CopyDone or CopyFail: has no answer of its own, and shows that the COPY before it got all of its data. */
  copyEnd: 9,
} as const;
export type SentKind = (typeof SENT)[keyof typeof SENT];

/** One message that was sent, or is waiting to be, and its answer so far. */
export interface Sent {
  readonly kind: SentKind;
  /** The statement's number, 0 for messages that run nothing. */
  readonly n: number;
  readonly startedAtMs: number;
  /** In the place of a refused statement: what the client is told instead of the target's error. */
  readonly refusal: Buffer | undefined;
  /** What the message defines or removes, for the caller. */
  readonly subject: unknown;
  /** Sent by the gateway of its own accord: the client does not see that it was done, only that it failed. */
  readonly own: boolean;
  /** Something of it is masked in the recording, and so is what the target says of it. */
  readonly masked: boolean;
  tag: string;
  rows: number;
  bytes: number;
  error: ServerError | undefined;
  /** The error may tell of something that is masked, of this message or of the one that failed ahead of it. */
  errorMasked: boolean;
  next: Sent | undefined;
}

export interface AnswersEvents {
  /** A statement (`n` > 0) has its whole answer. */
  completed(sent: Sent): void;
  /** The target has done what `sent` asked (true), or never will (false). Called for every message with a subject. */
  settled(sent: Sent, done: boolean): void;
  /** An error came and the Sync that ends it was not sent yet: everything until then is void. */
  skip(): void;
  /** A Sync that was held back during COPY is owed to the target after all. */
  oweSync(): void;
  /** The target ended the session itself, and says why. */
  fatal(error: ServerError): void;
  /** Nothing is outstanding. */
  idle(): void;
}

export interface Answers {
  push(
    kind: SentKind,
    n: number,
    startedAtMs: number,
    refusal?: Buffer,
    subject?: unknown,
    own?: boolean,
    masked?: boolean,
  ): void;
  /** What the target sent. @throws ProtocolViolation when no message sent so far has that answer. */
  answer(type: number, bytes: Buffer, start: number, end: number): Outcome;
  rows(messages: number, contentBytes: number): void;
  /** The client sent Sync. False: in COPY, hold it back. */
  sync(atMs: number): boolean;
  /** The client ended its COPY data, with CopyDone or CopyFail. */
  endCopy(): void;
  /** Ends everything outstanding: the connection is gone. */
  abandon(reason: string): void;
  readonly outstanding: number;
  /** The statement that takes COPY data now, 0 when none does. */
  readonly copyInto: number;
  /** Whether the COPY data of that statement is masked in the recording. */
  readonly copyMasked: boolean;
  /** The client's CopyData reached the statement that takes it. */
  copied(contentBytes: number): void;
  /** Transaction status by the last ReadyForQuery. */
  readonly status: number;
}

export function createAnswers(events: AnswersEvents): Answers {
  let head: Sent | undefined;
  let tail: Sent | undefined;
  let outstanding = 0;
  let status: number = STATUS.idle;
  let copying: "no" | "yes" | "yes, and owes a Sync" = "no";

  const add = (
    kind: SentKind,
    n: number,
    startedAtMs: number,
    refusal?: Buffer,
    subject?: unknown,
    own = false,
    masked = false,
  ): void => {
    const sent: Sent = {
      ...{ kind, n, startedAtMs, refusal, subject, own, masked },
      ...{ tag: "", rows: 0, bytes: 0, error: undefined, errorMasked: masked, next: undefined },
    };
    if (tail === undefined) head = sent;
    else tail.next = sent;
    tail = sent;
    outstanding += 1;
  };

  const drop = (): void => {
    head = head?.next;
    if (head === undefined) tail = undefined;
    outstanding -= 1;
  };

  /** The head is answered by a message that has nothing for the client but that it was done. */
  const acknowledge = (kind: SentKind): Outcome => {
    expect(kind);
    const outcome = head?.own === true ? DROP : KEEP;
    pop(true);
    return outcome;
  };

  /** Removes and returns the head, unless it is of that kind. */
  const takeUnless = (kind: SentKind | 0): Sent | undefined => {
    const sent = head;
    if (sent === undefined || sent.kind === kind) return undefined;
    drop();
    return sent;
  };

  /** The head has its whole answer. */
  const pop = (done: boolean): void => {
    const sent = head;
    if (sent === undefined) return;
    drop();
    while (head?.kind === SENT.copyEnd) drop();
    if (sent.n > 0) events.completed(sent);
    if (sent.subject !== undefined) events.settled(sent, done);
    if (head === undefined) events.idle();
  };

  const expect = (kind: SentKind): void => {
    if (head?.kind !== kind) throw unexpected();
  };

  /** An error in the extended protocol: what is queued up to the next Sync will not be answered. */
  const failSegment = (error: ServerError): void => {
    let shown = error;
    const masked = head?.masked ?? false;
    for (let sent = takeUnless(SENT.sync); sent !== undefined; sent = takeUnless(SENT.sync)) {
      if (sent.n > 0) {
        sent.error = shown;
        sent.errorMasked ||= masked;
        events.completed(sent);
        shown = { ...error, message: `not run: ${error.message}` };
      }
      if (sent.subject !== undefined) events.settled(sent, false);
    }
    if (head === undefined) {
      events.skip();
      events.idle();
    }
  };

  const fail = (bytes: Buffer, start: number, end: number): Outcome => {
    const error = decodeError(bytes, start + 5, end);
    if (error.severity === "FATAL" || error.severity === "PANIC") {
      events.fatal(error);
      return KEEP;
    }
    if (head === undefined || head.kind === SENT.sync) return KEEP; // such as a deferred constraint, at commit
    const refusal = head.refusal;
    const owes = copying === "yes, and owes a Sync";
    copying = "no";
    if (head.kind === SENT.query || head.kind === SENT.functionCall) head.error ??= error;
    else {
      failSegment(error);
      if (owes) events.oweSync();
    }
    return refusal ?? KEEP;
  };

  /** The target asks for COPY data. What was sent behind the statement is data by now, or a mistake. */
  const copyIn = (): void => {
    if (head?.kind !== SENT.query && head?.kind !== SENT.execute) throw unexpected();
    while (head.next?.kind === SENT.sync) {
      head.next = head.next.next; // ignored in COPY
      outstanding -= 1;
    }
    if (head.next === undefined) {
      tail = head;
      copying = "yes";
    } else if (head.next.kind === SENT.copyEnd) {
      head.next = head.next.next;
      if (head.next === undefined) tail = head;
      outstanding -= 1;
    } else {
      throw new ProtocolViolation("the client sent another message where COPY data was due");
    }
  };

  return {
    push(kind, n, startedAtMs, refusal, subject, own, masked) {
      if (copying !== "no") throw new ProtocolViolation("the client sent another message where COPY data was due");
      add(kind, n, startedAtMs, refusal, subject, own, masked);
    },
    answer(type, bytes, start, end) {
      switch (type) {
        case BACKEND.readyForQuery:
          status = bytes[start + 5] ?? 0;
          if (head?.kind !== SENT.sync && head?.kind !== SENT.query && head?.kind !== SENT.functionCall)
            throw unexpected();
          copying = "no";
          pop(head.error === undefined);
          return KEEP;
        case BACKEND.commandComplete: {
          const tag = bytes.toString("latin1", start + 5, end - 1);
          if (head?.kind === SENT.execute) {
            head.tag = tag;
            pop(true);
          } else if (head?.kind === SENT.query) {
            if (head.tag.length < 1_000) head.tag = head.tag === "" ? tag : `${head.tag}; ${tag}`;
          } else throw unexpected();
          return KEEP;
        }
        case BACKEND.emptyQueryResponse:
        case BACKEND.portalSuspended:
          if (head?.kind === SENT.execute) pop(true);
          else expect(SENT.query);
          return KEEP;
        case BACKEND.errorResponse:
          return fail(bytes, start, end);
        case BACKEND.parseComplete:
          if (head?.refusal !== undefined) throw unexpected();
          return acknowledge(SENT.parse);
        case BACKEND.bindComplete:
          return acknowledge(SENT.bind);
        case BACKEND.closeComplete:
          return acknowledge(SENT.close);
        case BACKEND.rowDescription:
        case BACKEND.noData:
          if (head?.kind === SENT.describe) pop(true);
          else expect(SENT.query);
          return KEEP;
        case BACKEND.parameterDescription:
          expect(SENT.describe);
          return KEEP;
        case BACKEND.functionCallResponse:
          expect(SENT.functionCall);
          return KEEP;
        case BACKEND.copyInResponse:
          copyIn();
          return KEEP;
        case BACKEND.copyOutResponse:
        case BACKEND.copyDone:
          if (head?.kind !== SENT.execute) expect(SENT.query);
          return KEEP;
        case BACKEND.noticeResponse:
        case BACKEND.notificationResponse:
        case BACKEND.parameterStatus:
          return KEEP; // at any time
        default:
          throw unexpected(); // CopyBoth belongs to replication, the others to the time before the session
      }
    },
    rows(messages, contentBytes) {
      if (head === undefined) throw unexpected();
      head.rows += messages;
      head.bytes += contentBytes;
    },
    sync(atMs) {
      if (copying !== "no") {
        copying = "yes, and owes a Sync";
        return false;
      }
      add(SENT.sync, 0, atMs);
      return true;
    },
    endCopy() {
      if (copying !== "no") copying = "no";
      else if (outstanding > 0) add(SENT.copyEnd, 0, 0);
    },
    abandon(reason) {
      copying = "no";
      const error = { severity: "FATAL", sqlstate: "08006", message: reason };
      for (let sent = takeUnless(0); sent !== undefined; sent = takeUnless(0)) {
        sent.error ??= error;
        if (sent.n > 0) events.completed(sent);
      }
    },
    get outstanding() {
      return outstanding;
    },
    get copyInto() {
      return copying === "no" ? 0 : (head?.n ?? 0);
    },
    get copyMasked() {
      return copying !== "no" && head?.masked === true;
    },
    copied(contentBytes) {
      if (copying !== "no" && head !== undefined) head.bytes += contentBytes;
    },
    get status() {
      return status;
    },
  };
}

function unexpected(): ProtocolViolation {
  return new ProtocolViolation("the target gave an answer that no message asked for");
}
