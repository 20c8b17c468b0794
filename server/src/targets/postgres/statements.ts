import type { StatementClass } from "./scope-classes.ts";
import { isBuiltInFunction } from "./scope-names.ts";
import type { MaskedText } from "./mask.ts";
import { MAX_NAME_BYTES } from "./wire.ts";

/**
 * Which text and which parameters an Execute runs.
 *
 * A recording that shows another text than what ran is worse than none, so names are followed as the target sees them:
 * - *Confirmed* is what the target has acknowledged, in the order of its answers.
 * - *This segment* (since the last Sync) is what the client sent since. If any of it fails, all that follows in the segment
 *   fails too, so within a segment the last definition is the right one, or nothing runs.
 * - A name changed in an *earlier* segment whose answer is not there yet could be either: then the client waits.
 * - Code that is not seen (EXECUTE, DO, CALL, functions of the target's own) could give a name to another text. So a
 *   statement that was prepared before such code was sent is *stale*: it is prepared anew, from the text that is in the
 *   recording, before it is bound. A portal cannot be made anew; one that is stale is refused.
 */

export interface Prepared {
  readonly text: string;
  /** What is recorded in the text's place, and as a JSON string, made once. */
  readonly masked: MaskedText;
  readonly textJson: string;
  /** What running it does to names that SQL and the protocol share. */
  readonly forgets: Forgets;
  readonly sight: Sight;
  /** Types of parameters as the client's Parse gave them: their number and their OIDs. */
  readonly parameterTypes: Buffer;
  /** When its Parse was sent, or sent again; see {@link Statements.isStale}. */
  provenAt: number;
  /** Already in the recording, as a statement that ran or as one that was prepared. */
  recorded: boolean;
}

export interface Portal {
  readonly name: string;
  readonly prepared: Prepared;
  /** Parameters as they are recorded: a JSON array, or empty text when there are none. */
  readonly parametersJson: string;
  /** Some of the text, or of the parameters, is masked. */
  readonly masked: boolean;
  recorded: boolean;
  /** Number of the statement that ran it first; 0 before. */
  firstRun: number;
  /** When its Bind or last Execute was sent. */
  provenAt: number;
}

/** What running a text may do that its words do not show. */
export interface Sight {
  /** It runs code that the gateway does not see, which may change any name and any setting. */
  readonly unseen: boolean;
  /** It changes settings, which the target reports when it is ready for the next query. */
  readonly sets: boolean;
  /** So much so that what follows before that report must read the same under every setting. */
  readonly setsUnseen: boolean;
  /** It makes code, such as a trigger: from then on any statement may run it. */
  readonly makesCode: boolean;
  /** FETCH and the like, which run what a portal was bound to. */
  readonly cursor: boolean;
}

export type Forgets = { what: "nothing" | "statements" | "portals" | "both" } | { what: "statement"; name: string };
const NOTHING: Forgets = { what: "nothing" };

/** A pending change of one name; the subject of a message in the queue of answers. */
export type Change =
  | { of: "statement"; name: string; to: Prepared | undefined }
  | { of: "portal"; name: string; to: Portal | undefined }
  | { of: "statement again"; prepared: Prepared; at: number }
  | { of: "run"; forgets: Forgets; sets: boolean };

export type Lookup<T> = { found: T } | "absent" | "wait";

export interface Statements {
  /** Parse: the change to hand back to `settled`. "full" when a session has too many. */
  define(name: string, prepared: Prepared): Change | "full";
  bind(portal: Portal): Change | "full";
  close(of: "statement" | "portal", name: string): Change;
  /** A refused Parse removes the unnamed statement, as a failed one would. */
  refuse(name: string): void;
  statement(name: string): Lookup<Prepared>;
  portal(name: string): Lookup<Portal>;
  /** To be called when a text is sent to be run, in order. Undefined when that changes no name and no setting. */
  running(run: Pick<Prepared, "forgets" | "sight">, ownBoundary: boolean): Change | undefined;
  /** Whether code that is not seen was sent since `of` was made, so that its name may mean something else by now. */
  isStale(name: string, of: Prepared | Portal): boolean;
  /** A Close and a Parse of the same text are sent under its name. */
  again(prepared: Prepared): Change;
  /** The portal is run, which it cannot outlive by another's hand. */
  proved(portal: Portal): void;
  /**
   * How a text that is to be checked now will be read: `wait` for settings that the target is about to report, `plain`
   * when they are reported only after it, so that it must mean the same under all of them.
   */
  readonly reading: "known" | "wait" | "plain";
  settled(change: Change, done: boolean): void;
  /** The target is ready for the next query, and has reported its settings. True when that was waited for. */
  reported(): boolean;
  endSegment(): void;
  /** Outside a transaction there are no portals. */
  endTransaction(): void;
}

/** Held for the client's next Execute, so bounded: names and characters of their texts and parameters. */
const MAX_NAMES = 10_000;
const MAX_CHARACTERS = 128 * 1024 * 1024;

const NO_TYPES = Buffer.alloc(2);

export function prepared(
  text: string,
  classes: readonly StatementClass[],
  masked: MaskedText,
  parameterTypes: Buffer = NO_TYPES,
): Prepared {
  return {
    ...{
      text,
      masked,
      textJson: JSON.stringify(masked.shown),
      forgets: forgetsOf(text),
      sight: sightOf(text, classes),
    },
    ...{ parameterTypes, provenAt: 0, recorded: false },
  };
}

const UNSEEN: ReadonlySet<StatementClass> = new Set(["execute", "do", "call", "fastpath"]);

/** A function call by number runs anything. */
export const FASTPATH: Pick<Prepared, "forgets" | "sight"> = { forgets: NOTHING, sight: sightOf("", ["fastpath"]) };

function sightOf(text: string, classes: readonly StatementClass[]): Sight {
  const byClass = classes.some((given) => UNSEEN.has(given));
  const unseen = byClass || callsUnknown(text);
  return {
    unseen,
    sets: unseen || classes.includes("set") || classes.includes("discard"),
    setsUnseen: byClass || /set_config/i.test(text),
    makesCode: classes.includes("routine"),
    cursor: classes.includes("cursor"),
  };
}

/** Words that may stand before a parenthesis and, not being quoted, cannot be a function's name. */
const NO_FUNCTIONS: ReadonlySet<string> = new Set(
  `all and any array as case cast coalesce distinct else except exists extract from greatest in intersect lateral least
   limit not offset on or returning row select some then union using values when where with`.split(/\s+/),
);
/** The same for words that need another one before them, or the end of a parenthesis. */
const NO_FUNCTIONS_AFTER: Readonly<Record<string, string>> = { conflict: "on", over: ")", filter: ")" };
const MAX_CALL_NAME = 200;

/**
 * Whether something looks like a call of a function that is not PostgreSQL's own. By the characters before each
 * parenthesis, so in linear time; taking too much for a call costs a Parse, or a wait where a pipeline was sent.
 */
function callsUnknown(text: string): boolean {
  for (let at = text.indexOf("("); at >= 0; at = text.indexOf("(", at + 1)) {
    const end = wordEnd(text, at);
    if (text[end - 1] === "/" || (text.slice(end, at).includes("\n") && text.includes("--"))) return true; // a comment?
    const start = wordStart(text, end);
    if (start === end) continue;
    if (end - start > MAX_CALL_NAME) return true;
    const name = text.slice(start, end).toLowerCase();
    const dot = name.lastIndexOf(".");
    if (dot < 0 && NO_FUNCTIONS.has(name)) continue;
    const beforeEnd = wordEnd(text, start);
    const before = text.slice(Math.max(0, beforeEnd - 5), beforeEnd).toLowerCase();
    if (/\binto$/.test(before)) continue;
    const after = dot < 0 ? NO_FUNCTIONS_AFTER[name] : undefined;
    if (after !== undefined && before.endsWith(after)) continue;
    if (!isBuiltInFunction(dot < 0 ? undefined : name.slice(0, dot), name.slice(dot + 1))) return true;
  }
  return false;
}

/** Where the word before `at` ends. */
function wordEnd(text: string, at: number): number {
  let end = at;
  while (end > 0 && isBlank(text.charCodeAt(end - 1))) end -= 1;
  return end;
}

function wordStart(text: string, end: number): number {
  let start = end;
  while (start > 0 && end - start <= MAX_CALL_NAME && isWord(text.charCodeAt(start - 1))) start -= 1;
  return start;
}

function isBlank(c: number): boolean {
  return c === 32 || (c >= 9 && c <= 13);
}

/** Letters, digits, `_`, `$`, `.`, `"`, and all beyond ASCII. */
function isWord(c: number): boolean {
  if ((c >= 97 && c <= 122) || (c >= 65 && c <= 90) || (c >= 48 && c <= 57) || c > 127) return true;
  return c === 95 || c === 36 || c === 46 || c === 34;
}

/** DEALLOCATE and DISCARD remove statements, and DECLARE makes portals, whose names the protocol's messages share. */
function forgetsOf(text: string): Forgets {
  if (!/deallocate|discard|cursor/i.test(text)) return NOTHING;
  const one = /^\s*deallocate\s+(?:prepare\s+)?(?!all\b|prepare\b)(?:"([^"]+)"|([a-z_][a-z0-9_]*))\s*;?\s*$/i.exec(
    text,
  );
  const name = one?.[1] ?? one?.[2]?.toLowerCase();
  // A longer name is cut by the target, and so may mean another one.
  if (name !== undefined && Buffer.byteLength(name) <= MAX_NAME_BYTES) return { what: "statement", name };
  const statements = /deallocate|discard/i.test(text);
  const portals = /discard|cursor/i.test(text);
  return { what: statements ? (portals ? "both" : "statements") : "portals" };
}

/** One kind of name, with its three layers. */
interface Names<T> {
  confirmed: Map<string, T>;
  segment: Map<string, T | undefined>;
  pending: Map<string, number>;
  find(name: string): Lookup<T>;
  change(name: string, to: T | undefined): void;
  settle(name: string, to: T | undefined, done: boolean): void;
}

function createNames<T>(size: (value: T) => number, account: (characters: number) => void): Names<T> {
  const confirmed = new Map<string, T>();
  const segment = new Map<string, T | undefined>();
  const pending = new Map<string, number>();
  const remove = (name: string): void => {
    const old = confirmed.get(name);
    if (old === undefined) return;
    account(-size(old));
    confirmed.delete(name);
  };
  return {
    ...{ confirmed, segment, pending },
    find(name) {
      if (segment.size > 0 && segment.has(name)) {
        const found = segment.get(name);
        return found === undefined ? "absent" : { found };
      }
      if (pending.size > 0 && pending.has(name)) return "wait";
      const found = confirmed.get(name);
      return found === undefined ? "absent" : { found };
    },
    change(name, to) {
      segment.set(name, to);
      pending.set(name, (pending.get(name) ?? 0) + 1);
      if (to !== undefined) account(size(to));
    },
    settle(name, to, done) {
      const left = (pending.get(name) ?? 1) - 1;
      if (left === 0) pending.delete(name);
      else pending.set(name, left);
      if (!done) {
        if (to !== undefined) account(-size(to));
        return;
      }
      remove(name);
      if (to !== undefined) confirmed.set(name, to);
    },
  };
}

export function createStatements(): Statements {
  let characters = 0;
  let pendingForgets = 0;
  let clock = 0; // counts what is sent
  let unseenAt = 0;
  let codeMade = false;
  let unseenBound = false;
  // Runs that may have changed settings: those whose report is under way, those of them (and of the open segment) that are
  // answered, and those of the open segment, whose report comes with its Sync.
  let reportsDue = 0;
  let answered = 0;
  let openSets = 0;
  let openUnseen = false;
  const account = (more: number): void => {
    characters += more;
  };
  const statements = createNames<Prepared>((p) => p.text.length, account);
  const portals = createNames<Portal>((p) => p.parametersJson.length, account);
  const isFull = (names: Names<never> | Names<Prepared> | Names<Portal>): boolean =>
    names.confirmed.size + names.pending.size >= MAX_NAMES || characters > MAX_CHARACTERS;
  const clear = <T>(names: Names<T>, size: (value: T) => number, which: (name: string) => boolean): void => {
    for (const [name, value] of names.confirmed) {
      if (!which(name)) continue;
      account(-size(value));
      names.confirmed.delete(name);
    }
  };
  const named = (name: string): boolean => name !== "";
  const forgetSent = (names: Names<Prepared> | Names<Portal>, which: (name: string) => boolean): void => {
    for (const name of names.segment.keys()) if (which(name)) names.segment.delete(name);
  };
  const boundary = (): void => {
    reportsDue += openSets;
    openSets = 0;
    openUnseen = false;
  };

  return {
    define(name, to) {
      if (isFull(statements)) return "full";
      to.provenAt = ++clock;
      statements.change(name, to);
      return { of: "statement", name, to };
    },
    bind(to) {
      if (isFull(portals)) return "full";
      to.provenAt = ++clock;
      if (to.name !== "" && to.prepared.sight.unseen) unseenBound = true;
      portals.change(to.name, to);
      return { of: "portal", name: to.name, to };
    },
    close(of, name) {
      (of === "statement" ? statements : portals).change(name, undefined);
      return { of, name, to: undefined };
    },
    refuse(name) {
      if (name !== "") return;
      clear(
        statements,
        (p) => p.text.length,
        (other) => other === "",
      );
      statements.segment.set(name, undefined);
    },
    statement(name) {
      if (pendingForgets > 0 && !statements.segment.has(name)) return "wait";
      return statements.find(name);
    },
    portal(name) {
      if (pendingForgets > 0 && !portals.segment.has(name)) return "wait";
      return portals.find(name);
    },
    running({ forgets, sight }, ownBoundary) {
      if (sight.makesCode) codeMade = true;
      const unseen = sight.unseen || codeMade || (sight.cursor && unseenBound);
      const sets = unseen || sight.sets;
      if (unseen) unseenAt = ++clock;
      if (ownBoundary) boundary();
      if (sets && ownBoundary) reportsDue += 1;
      else if (sets) {
        openSets += 1;
        openUnseen ||= sight.setsUnseen || codeMade;
      }
      const { what } = forgets;
      if (what !== "nothing") {
        // What was defined before it in the same segment counts only once the target has confirmed both.
        if (what === "statement") statements.segment.delete(forgets.name);
        if (what === "statements" || what === "both") forgetSent(statements, named);
        if (what === "portals" || what === "both") forgetSent(portals, named);
        pendingForgets += 1;
      }
      return what === "nothing" && !sets ? undefined : { of: "run", forgets, sets };
    },
    // SQL has no way to write an empty name, so what is unnamed changes by the protocol's messages only.
    isStale: (name, of) => name !== "" && of.provenAt < unseenAt,
    again: (of) => ({ of: "statement again", prepared: of, at: ++clock }),
    proved(portal) {
      portal.provenAt = ++clock;
    },
    get reading() {
      if (reportsDue > 0) return "wait";
      return openUnseen ? "plain" : "known";
    },
    reported() {
      if (answered === 0) return false;
      const due = Math.min(answered, reportsDue);
      reportsDue -= due;
      openSets = Math.max(0, openSets - (answered - due));
      if (openSets === 0) openUnseen = false;
      answered = 0;
      return true;
    },
    settled(change, done) {
      if (change.of === "statement") statements.settle(change.name, change.to, done);
      else if (change.of === "portal") portals.settle(change.name, change.to, done);
      else if (change.of === "statement again") {
        if (done) change.prepared.provenAt = change.at;
      } else {
        const { forgets } = change;
        const { what } = forgets;
        if (change.sets) answered += 1;
        if (what !== "nothing") pendingForgets -= 1;
        // Also when it failed: it may have done so half-way.
        if (what === "statement")
          clear(
            statements,
            (p) => p.text.length,
            (name) => done && name === forgets.name,
          );
        if (what === "statements" || what === "both") clear(statements, (p) => p.text.length, named);
        if (what === "portals" || what === "both") clear(portals, (p) => p.parametersJson.length, named);
      }
    },
    endSegment() {
      if (openSets > 0) boundary();
      if (statements.segment.size > 0) statements.segment.clear();
      if (portals.segment.size > 0) portals.segment.clear();
    },
    endTransaction() {
      if (portals.confirmed.size > 0)
        clear(
          portals,
          (p) => p.parametersJson.length,
          () => true,
        );
    },
  };
}
