import type { Parameter } from "./wire.ts";

/**
 * Which text and which parameters an Execute runs.
 *
 * A recording that shows another text than what ran is worse than none, so names are followed as the target sees them:
 * - *Confirmed* is what the target has acknowledged, in the order of its answers.
 * - *This segment* (since the last Sync) is what the client sent since. If any of it fails, all that follows in the segment
 *   fails too, so within a segment the last definition is the right one, or nothing runs.
 * - A name changed in an *earlier* segment whose answer is not there yet could be either: then the client waits.
 */

export interface Prepared {
  readonly text: string;
  /** The text as a JSON string, made once. */
  readonly textJson: string;
  /** What running it does to names that SQL and the protocol share. */
  readonly forgets: Forgets;
  /** Already in the recording, as a statement that ran or as one that was prepared. */
  recorded: boolean;
}

export interface Portal {
  readonly name: string;
  readonly prepared: Prepared;
  /** Parameters as a JSON array, or empty text when there are none. */
  readonly parametersJson: string;
  recorded: boolean;
  /** Number of the statement that ran it first; 0 before. */
  firstRun: number;
}

export type Forgets = { what: "nothing" | "statements" | "portals" | "both" } | { what: "statement"; name: string };
const NOTHING: Forgets = { what: "nothing" };

/** A pending change of one name; the subject of a message in the queue of answers. */
export type Change =
  | { of: "statement"; name: string; to: Prepared | undefined }
  | { of: "portal"; name: string; to: Portal | undefined }
  | { of: "forgets"; forgets: Forgets };

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
  /** Undefined when running the text changes no name. */
  running(prepared: Prepared): Change | undefined;
  settled(change: Change, done: boolean): void;
  endSegment(): void;
  /** Outside a transaction there are no portals. */
  endTransaction(): void;
}

/** Held for the client's next Execute, so bounded: names and characters of their texts and parameters. */
const MAX_NAMES = 10_000;
const MAX_CHARACTERS = 128 * 1024 * 1024;

export function prepared(text: string): Prepared {
  return { text, textJson: JSON.stringify(text), forgets: forgetsOf(text), recorded: false };
}

/** DEALLOCATE and DISCARD remove statements, and DECLARE makes portals, whose names the protocol's messages share. */
function forgetsOf(text: string): Forgets {
  if (!/deallocate|discard|cursor/i.test(text)) return NOTHING;
  const one = /^\s*deallocate\s+(?:prepare\s+)?(?!all\b|prepare\b)(?:"([^"]+)"|([a-z_][a-z0-9_]*))\s*;?\s*$/i.exec(
    text,
  );
  if (one !== null) return { what: "statement", name: one[1] ?? (one[2] ?? "").toLowerCase() };
  const statements = /deallocate|discard/i.test(text);
  const portals = /discard|cursor/i.test(text);
  return { what: statements ? (portals ? "both" : "statements") : "portals" };
}

/** Parameters as JSON text: strings, null, and `{ base64 }` for binary ones. */
export function parametersJson(parameters: readonly Parameter[]): string {
  if (parameters.length === 0) return "";
  let json = "[";
  for (const parameter of parameters) {
    if (json.length > 1) json += ",";
    if (parameter === null) json += "null";
    else if (typeof parameter === "string") json += JSON.stringify(parameter);
    else json += `{"base64":"${parameter.toString("base64")}"}`;
  }
  return `${json}]`;
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

  return {
    define(name, to) {
      if (isFull(statements)) return "full";
      statements.change(name, to);
      return { of: "statement", name, to };
    },
    bind(to) {
      if (isFull(portals)) return "full";
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
    running(run) {
      if (run.forgets.what === "nothing") return undefined;
      pendingForgets += 1;
      return { of: "forgets", forgets: run.forgets };
    },
    settled(change, done) {
      if (change.of === "statement") statements.settle(change.name, change.to, done);
      else if (change.of === "portal") portals.settle(change.name, change.to, done);
      else {
        pendingForgets -= 1;
        const { forgets } = change;
        const { what } = forgets;
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
