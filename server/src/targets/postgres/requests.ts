import { RECORD } from "../target.ts";
import { SENT, type Answers, type SentKind } from "./answers.ts";
import { DROP, KEEP, WAIT, type ClientSink, type Outcome } from "./framing.ts";
import type { ScopeChecker } from "./scope.ts";
import type { Mask, MaskedText } from "./mask.ts";
import { FASTPATH, prepared, type Portal, type Prepared, type Statements } from "./statements.ts";
import type { Tape } from "./tape.ts";
import * as wire from "./wire.ts";

/**
 * The client's side of a session: judges every message, writes what has to be recorded, and says what the target gets.
 * No sockets. A refused message is replaced by one that fails in the target at the same place, so that the order of
 * answers, the rest of the pipeline and the state of the transaction are the same for client and target.
 */
export interface Requests extends ClientSink {
  /** The end of one chunk: what was prepared or bound but not run in it is recorded, and the turn is released. */
  endTurn(): void;
  /** From now on everything up to the next Sync is void, as it is for the target. */
  skip(): void;
  /** The next message depends on an answer that is not there yet: feed again once a change was settled. */
  readonly waiting: boolean;
  /** The next message is due after a turn of the event loop, in which others get theirs. */
  readonly yielded: boolean;
  readonly counts: { statements: number; refused: number };
  /** The client said goodbye. */
  readonly terminated: boolean;
}

export interface RequestsOptions {
  checker: ScopeChecker;
  answers: Answers;
  statements: Statements;
  tape: Tape;
  mask: Mask;
  /** For the DETAIL of a refusal, such as `Glasskey did not send this to orders-prod (grant gr_…).` */
  refusalDetail: string;
}

/** So much text is checked in one turn, or one statement; parsing it holds up every other session. */
const MAX_TURN_BYTES = 64 * 1024;

export function createRequests(options: RequestsOptions): Requests {
  const { checker, answers, statements, tape, mask } = options;
  const counts = { statements: 0, refused: 0 };
  let n = 0;
  let youngestTakesMasked = false; // COPY data of statement n, or of one before it that has no answer yet, is masked
  let skipping = false;
  let terminated = false;
  let waiting = false;
  let yielded = false;
  let turnBytes = 0; // since the last yield: one turn of the event loop may bring many reads
  let flushDue = false; // behind what came before it in this turn
  let open: { prepared?: Prepared; portal?: Portal; name: string }[] = [];

  const send = (
    kind: SentKind,
    number: number,
    masked: boolean,
    refusal?: Buffer,
    subject?: unknown,
    own?: boolean,
  ): void => {
    answers.push(kind, number, performance.now(), refusal, subject, own, masked);
  };

  /** The answers that decide may sit in the target's buffer until the client's next Sync. */
  const wait = (): Outcome => {
    flushDue = true;
    waiting = true;
    return WAIT;
  };

  const refuse = (
    kind: typeof SENT.query | typeof SENT.parse,
    what: { via: "simple" | "extended" | "fastpath"; text: MaskedText | undefined },
    why: { reason: string; next?: string | undefined; sqlstate?: string; position?: number },
  ): Buffer => {
    n += 1;
    counts.refused += 1;
    const report = wire.encodeReport({
      ...{ severity: "ERROR", sqlstate: why.sqlstate ?? "42501", message: why.reason },
      ...{ detail: options.refusalDetail, hint: why.next, position: why.position },
    });
    const { text = NO_TEXT, via } = what;
    send(kind, 0, text.masked, report);
    // A reason tells values of the text: the word that was not understood, a setting, a name.
    const quotes = why.sqlstate === "42601" || /"|^the name /.test(why.reason);
    const reason = mask.words(why.reason, text.masked && quotes);
    tape.write(RECORD.statementRefused, n, JSON.stringify({ n, via, text: text.shown, reason, ...flag(text.masked) }));
    if (kind === SENT.query) return wire.REFUSED_QUERY;
    skipping = true;
    return wire.REFUSED_PARSE;
  };

  const start = (via: string, textJson: string, parameters: string, masked: boolean, more = ""): number => {
    n += 1;
    counts.statements += 1;
    const params = parameters === "" ? "" : `,"params":${parameters}`;
    const marks = masked ? `,"masked":true` : "";
    tape.write(RECORD.statementStarted, n, `{"n":${n},"via":"${via}","text":${textJson}${params}${marks}${more}}`);
    return n;
  };

  const tookMasked = (data: boolean): void => {
    youngestTakesMasked = data || (answers.outstanding > 0 && youngestTakesMasked);
  };
  const takesMasked = (): boolean => (answers.copyInto > 0 ? answers.copyMasked : youngestTakesMasked);

  /** Masked COPY data is written once per turn, not per message: clients send some of a few bytes. */
  let hidden: Buffer[] = [];
  let hiddenInto = 0;
  const hideData = (number: number, data: Buffer): void => {
    if (number !== hiddenInto) flushHidden();
    hiddenInto = number;
    hidden.push(data);
  };
  const flushHidden = (): void => {
    if (hidden.length === 0) return;
    tape.data(hiddenInto, mask.data(Buffer.concat(hidden)));
    hidden = [];
  };

  /** A stale statement is prepared anew, by the text that is recorded, ahead of the message that names it. */
  const renew = (name: string, stale: Prepared, original: Buffer): Buffer => {
    send(SENT.close, 0, false, undefined, undefined, true);
    send(SENT.parse, 0, stale.masked.masked, undefined, statements.again(stale), true);
    const close = wire.message(wire.FRONTEND.close, Buffer.from("S"), name);
    return Buffer.concat([close, wire.message(wire.FRONTEND.parse, name, stale.text, stale.parameterTypes), original]);
  };

  /** The beginning of what is not text. Searched as a whole: the word that tells of a secret may stand far behind it. */
  const lossy = (bytes: Buffer, start0: number, end: number): MaskedText => {
    const whole = mask.text(bytes.toString("utf8", start0, end), false);
    return whole.masked ? whole : { ...whole, shown: whole.shown.slice(0, 1_000) };
  };

  const query = (bytes: Buffer, start0: number, end: number): Outcome => {
    const text = wire.soleText(bytes, start0, end);
    if (text === undefined) return refuse(SENT.query, { via: "simple", text: lossy(bytes, start0, end) }, UNREADABLE);
    const { reading } = statements;
    if (reading === "wait") return wait();
    const verdict = reading === "plain" && !isPlain(text) ? UNSETTLED : checker.check(text);
    const masked = mask.text(text, isRead(verdict));
    if (!verdict.ok) return refuse(SENT.query, { via: "simple", text: masked }, verdict);
    const run = prepared(text, verdict.classes, masked);
    const number = start("simple", run.textJson, "", masked.masked);
    tookMasked(masked.data);
    send(SENT.query, number, masked.masked || masked.data, undefined, statements.running(run, true));
    return KEEP;
  };

  const parse = (bytes: Buffer, start0: number, end: number): Outcome => {
    const { name, text, types } = wire.decodeParse(bytes, start0, end);
    if (text === undefined) {
      statements.refuse(name);
      return refuse(SENT.parse, { via: "extended", text: lossy(bytes, start0, end) }, UNREADABLE);
    }
    const { reading } = statements;
    if (reading === "wait") return wait();
    const verdict = reading === "plain" && !isPlain(text) ? UNSETTLED : checker.check(text);
    const masked = mask.text(text, isRead(verdict));
    if (!verdict.ok) {
      statements.refuse(name);
      return refuse(SENT.parse, { via: "extended", text: masked }, verdict);
    }
    mask.defined(name, masked);
    const definition = prepared(text, verdict.classes, masked, types.length === 2 ? undefined : Buffer.from(types));
    const change = statements.define(name, definition);
    if (change === "full") return refuse(SENT.parse, { via: "extended", text: masked }, FULL);
    open.push({ prepared: definition, name });
    send(SENT.parse, 0, masked.masked, undefined, change);
    return KEEP;
  };

  const bind = (bytes: Buffer, begin: number, start0: number, end: number): Outcome => {
    const { portal: name, statement, parameters } = wire.decodeBind(bytes, start0, end);
    const found = statements.statement(statement);
    if (found === "wait") return wait();
    if (found === "absent") {
      return refuse(SENT.parse, { via: "extended", text: undefined }, absent("prepared statement", statement, "26000"));
    }
    const values = mask.parameters(parameters, found.found.masked);
    const portal: Portal = {
      ...{ name, prepared: found.found, parametersJson: values.json },
      masked: found.found.masked.masked || found.found.masked.secret || values.masked,
      ...{ recorded: false, firstRun: 0, provenAt: 0 },
    };
    const change = statements.bind(portal);
    if (change === "full") return refuse(SENT.parse, { via: "extended", text: found.found.masked }, FULL);
    open.push({ portal, name });
    const renewed = statements.isStale(statement, found.found)
      ? renew(statement, found.found, bytes.subarray(begin, end))
      : KEEP;
    send(SENT.bind, 0, portal.masked, undefined, change);
    return renewed;
  };

  const execute = (bytes: Buffer, start0: number, end: number): Outcome => {
    const { portal: name } = wire.decodeExecute(bytes, start0, end);
    const found = statements.portal(name);
    if (found === "wait") return wait();
    if (found === "absent")
      return refuse(SENT.parse, { via: "extended", text: undefined }, absent("portal", name, "34000"));
    const portal = found.found;
    if (statements.isStale(name, portal))
      return refuse(SENT.parse, { via: "extended", text: undefined }, stalePortal(name));
    statements.proved(portal);
    const again = portal.firstRun === 0 ? "" : `,"continues":${portal.firstRun}`;
    // Fetching on from a portal with large parameters does not write them again: `continues` says where they are.
    const large = again !== "" && portal.parametersJson.length > 64 * 1024;
    const number = start(
      "extended",
      portal.prepared.textJson,
      large ? "" : portal.parametersJson,
      portal.masked,
      again,
    );
    if (portal.firstRun === 0) portal.firstRun = number;
    portal.recorded = true;
    portal.prepared.recorded = true;
    const { data } = portal.prepared.masked;
    tookMasked(data);
    send(SENT.execute, number, portal.masked || data, undefined, statements.running(portal.prepared, false));
    return KEEP;
  };

  const describeOrClose = (type: number, bytes: Buffer, begin: number, start0: number, end: number): Outcome => {
    const { portal, name } = wire.decodeNamed(bytes, start0, end);
    const known = portal ? statements.portal(name) : statements.statement(name);
    if (known === "wait") return wait();
    const what = type === wire.FRONTEND.close ? "close" : "describe";
    if (known === "absent" && name !== "")
      tape.write(RECORD.action, 0, JSON.stringify({ what, portal, name: mask.name(name) }));
    if (what === "describe") {
      const statement = portal ? "absent" : statements.statement(name);
      const stale = typeof statement === "object" && statements.isStale(name, statement.found);
      const renewed = stale ? renew(name, statement.found, bytes.subarray(begin, end)) : KEEP;
      send(SENT.describe, 0, false);
      return renewed;
    }
    send(SENT.close, 0, false, undefined, statements.close(portal ? "portal" : "statement", name));
    return KEEP;
  };

  const functionCall = (bytes: Buffer, start0: number, end: number): Outcome => {
    const { oid, parameters } = wire.decodeFunctionCall(bytes, start0, end);
    const text = `function call by oid ${oid}`;
    const verdict = checker.fastpath();
    const masked = mask.text(text, true);
    if (!verdict.ok) return refuse(SENT.query, { via: "fastpath", text: masked }, verdict);
    const values = mask.parameters(parameters, masked);
    const number = start("fastpath", JSON.stringify(masked.shown), values.json, values.masked);
    send(SENT.functionCall, number, values.masked, undefined, statements.running(FASTPATH, true));
    return KEEP;
  };

  const judge = (type: number, bytes: Buffer, begin: number, end: number): Outcome => {
    const body = begin + 5;
    switch (type) {
      case wire.FRONTEND.query:
        return query(bytes, body, end);
      case wire.FRONTEND.parse:
        return parse(bytes, body, end);
      case wire.FRONTEND.bind:
        return bind(bytes, begin, body, end);
      case wire.FRONTEND.execute:
        return execute(bytes, body, end);
      case wire.FRONTEND.describe:
      case wire.FRONTEND.close:
        return describeOrClose(type, bytes, begin, body, end);
      case wire.FRONTEND.functionCall:
        return functionCall(bytes, body, end);
      case wire.FRONTEND.copyDone:
        answers.endCopy();
        return KEEP;
      case wire.FRONTEND.copyFail: {
        const text = bytes.toString("utf8", body, Math.max(body, end - 1));
        const shown = mask.words(text, takesMasked());
        tape.write(RECORD.action, 0, JSON.stringify({ what: "copy failed", n: answers.copyInto || n, text: shown }));
        answers.endCopy();
        return KEEP;
      }
      case wire.FRONTEND.flush:
        return answers.copyInto > 0 ? DROP : KEEP;
      default:
        throw new wire.ProtocolViolation(`unexpected frontend message type ${type}`);
    }
  };

  return {
    counts,
    get waiting() {
      return waiting;
    },
    get yielded() {
      return yielded;
    },
    get terminated() {
      return terminated;
    },
    skip() {
      skipping = true;
    },
    message(type, bytes, begin, end) {
      waiting = false;
      yielded = false;
      if (terminated) return DROP;
      if (type === wire.FRONTEND.terminate) {
        terminated = true;
        return KEEP;
      }
      if (type === wire.FRONTEND.sync) {
        if (!answers.sync(performance.now())) return DROP;
        skipping = false;
        statements.endSegment();
        return KEEP;
      }
      if (skipping) return DROP;
      if (type === wire.FRONTEND.query || type === wire.FRONTEND.parse) {
        if (turnBytes > 0 && turnBytes + end - begin > MAX_TURN_BYTES) {
          turnBytes = 0;
          waiting = true;
          yielded = true;
          return WAIT;
        }
        turnBytes += end - begin;
      }
      try {
        return judge(type, bytes, begin, end);
      } catch (error) {
        // A body that does not parse is an error of this message; a length that lies would be one of the connection.
        if (!(error instanceof wire.ProtocolViolation) || answers.copyInto > 0) throw error;
        const simple = type === wire.FRONTEND.query || type === wire.FRONTEND.functionCall;
        const what = { via: simple ? ("simple" as const) : ("extended" as const), text: undefined };
        return refuse(simple ? SENT.query : SENT.parse, what, { reason: error.message, sqlstate: error.sqlstate });
      }
    },
    copyData(bytes, begin, end) {
      if (skipping || terminated) return false;
      answers.copied(end - begin);
      // Before the target asked for the data, and after it gave up, the youngest statement is the one meant.
      const data = bytes.subarray(begin, end);
      const number = answers.copyInto || n;
      if (takesMasked()) hideData(number, data);
      else tape.data(number, data);
      return true;
    },
    pass(bytes) {
      tape.pass(bytes);
    },
    endTurn() {
      flushHidden();
      for (const { prepared: definition, portal, name } of open) {
        if (definition !== undefined && !definition.recorded) {
          definition.recorded = true;
          tape.write(
            RECORD.action,
            0,
            `{"what":"prepare","name":${JSON.stringify(mask.name(name, definition.masked))},"text":${definition.textJson}${definition.masked.masked ? `,"masked":true` : ""}}`,
          );
        }
        if (portal !== undefined && !portal.recorded) {
          portal.recorded = true;
          const params = portal.parametersJson === "" ? "[]" : portal.parametersJson;
          const text = portal.prepared.textJson;
          tape.write(
            RECORD.action,
            0,
            `{"what":"bind","name":${JSON.stringify(mask.name(name, portal.prepared.masked))},"text":${text},"params":${params}${portal.masked ? `,"masked":true` : ""}}`,
          );
        }
      }
      if (open.length > 0) open = [];
      if (flushDue) tape.pass(wire.FLUSH);
      flushDue = false;
      tape.release();
    },
  };
}

const NO_TEXT: MaskedText = { shown: "", masked: false, secret: false, data: false };

/** Whether PostgreSQL's parser has read the text, whatever the scope says of it. */
function isRead(verdict: { ok: boolean; sqlstate?: string }): boolean {
  return verdict.ok || verdict.sqlstate === undefined;
}

function flag(masked: boolean): { masked?: true } {
  return masked ? { masked } : {};
}

const UNREADABLE = {
  reason: "the statement is not valid UTF-8 or holds a zero byte, so it cannot be checked or recorded",
  next: "Set the client's encoding to UTF8.",
  sqlstate: "22021",
};
const UNSETTLED = {
  ok: false,
  reason:
    "code that Glasskey does not see may have changed how this text is read, and the target reports that only after a Sync",
  next: "Send it after a Sync, or without backslashes and with ASCII characters only.",
  sqlstate: "55000",
} as const;
const FULL = {
  reason: "this session holds too many prepared statements and portals",
  next: "Close some, or reconnect.",
  sqlstate: "53400",
};

/** Reads the same under every encoding that a client may have, and however backslashes are taken. */
function isPlain(text: string): boolean {
  return !/[\\\u0080-\uffff]/.test(text);
}

function stalePortal(name: string): { reason: string; next: string; sqlstate: string } {
  return {
    reason: `portal "${name}" may be another one by now: code that Glasskey does not see (EXECUTE, DO, CALL or a function) ran since it was bound`,
    next: "Bind it again; or read it to its end before such code runs.",
    sqlstate: "34000",
  };
}

function absent(what: string, name: string, sqlstate: string): { reason: string; next: string; sqlstate: string } {
  return {
    reason: `${what} "${name}" does not exist`,
    next: "Through Glasskey, what SQL prepared or declared is run by SQL: EXECUTE or FETCH.",
    sqlstate,
  };
}
