import type { JsonObject } from "../../core/json.ts";
import { keyedHash } from "../../core/keyed-hash.ts";
import type { Question } from "./authorize.ts";
import { said, type Line } from "./line.ts";
import {
  encodeEnv,
  encodePty,
  encodeX11,
  parseEnv,
  parsePty,
  parseX11,
  type EnvironmentVariable,
  type PtyRequest,
  type WindowSize,
} from "./requests.ts";
import type { Channel, Request } from "./types.ts";

/** What a client sets up on a channel before its program: kept here until the program is on record. */
export interface Setup {
  readonly pty: PtyRequest | undefined;
  /** Judges a request and keeps it; undefined for one that sets up nothing. @throws SshError for a damaged one */
  ask(request: Request): boolean | undefined;
  resize(size: WindowSize): void;
  /** Says it all to the target's channel, behind Glasskey's own mark. Resolves to whether it gave the terminal, if one was asked for. */
  apply(channel: Channel): Promise<boolean>;
  /** What the record says of it. The X11 cookie is a secret and the agent has no data: names only. */
  detail(): JsonObject;
  /** What it made the target free to do is taken back. */
  over(): void;
}

/** Set on every channel, so that what a lease left running on the host is found by it. Never the client's to set. */
const MARK = "LC_GLASSKEY";
/** What a client sends before its program; OpenSSH sends a handful of variables. */
const MAX_ENV = 64;
const MAX_ENV_BYTES = 32 * 1024;
const MAX_SCREEN = 10_000;

const AGENT = "auth-agent-req@openssh.com";
const X11 = "x11-req";
/** Requests that set up, with the word for the recording, and the type of channel that the target opens thereupon. */
const SETS_UP: ReadonlyMap<string, string> = new Map([
  ["pty-req", "terminal"],
  ["env", "env"],
  [AGENT, "agent"],
  [X11, "x11"],
]);
const OPENS: ReadonlyMap<string, string> = new Map([
  [AGENT, "auth-agent@openssh.com"],
  [X11, "x11"],
]);

const SECOND_PTY = { reason: "this channel has a terminal already" };
const NO_TERMINAL = { reason: "this is no name of a kind of terminal" };
const NO_NAME = { reason: "this is no name of an environment variable, or no value" };
const NOT_YOURS = { reason: `${MARK} is Glasskey's own mark` };
const TOO_MUCH_ENV = { reason: `more than ${MAX_ENV} variables, or ${MAX_ENV_BYTES} bytes of them` };

/** The word for the recording of a request that sets up; undefined for others. */
export function setsUp(type: string): string | undefined {
  return SETS_UP.get(type);
}

export function createSetup(line: Line): Setup {
  const { mask } = line.session;
  const env: EnvironmentVariable[] = [];
  const wishes = new Map<string, Uint8Array>();
  const releases: (() => void)[] = [];
  let pty: PtyRequest | undefined;
  let envBytes = 0;

  const refuse = (via: string, text: string, verdict: { reason: string; next?: string }): false => {
    line.refuse(via, text, verdict);
    return false;
  };

  const onPty = (data: Buffer): boolean => {
    const asked = parsePty(data);
    // It becomes the variable TERM on the host.
    if (/\p{Cc}/u.test(asked.term)) return refuse("terminal", said(asked.term), NO_TERMINAL);
    if (pty !== undefined) return refuse("terminal", said(asked.term), SECOND_PTY);
    const verdict = line.decide({ ask: "pty" });
    if (!verdict.ok) return refuse("terminal", said(asked.term), verdict);
    pty = { ...asked, ...bounded(asked) };
    return true;
  };

  const onEnv = (data: Buffer): boolean => {
    const { name, value } = parseEnv(data);
    // Not `name=value` within a name, and no NUL that ends one early on the host.
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name) || value.includes("\0")) return refuse("env", said(name), NO_NAME);
    if (name === MARK) return refuse("env", name, NOT_YOURS);
    const verdict = line.decide({ ask: "env", name });
    if (!verdict.ok) return refuse("env", name, verdict);
    envBytes += name.length + value.length;
    if (env.length >= MAX_ENV || envBytes > MAX_ENV_BYTES) return refuse("env", name, TOO_MUCH_ENV);
    env.push({ name, value });
    return true;
  };

  const wish = (type: string, data: Uint8Array, question: Question): boolean => {
    const verdict = line.decide(question);
    if (!verdict.ok) return refuse(question.ask, type, verdict);
    wishes.set(type, data);
    return true;
  };

  const shown = (value: string): string =>
    mask.parameters || mask.literals ? `‹hmac:${keyedHash(mask.key, value)}›` : value;

  return {
    get pty() {
      return pty;
    },
    ask({ type, data }) {
      if (type === "pty-req") return onPty(data);
      if (type === "env") return onEnv(data);
      if (type === AGENT) return wish(type, new Uint8Array(0), { ask: "agent" });
      if (type === X11) return wish(type, encodeX11(parseX11(data)), { ask: "x11" });
      return undefined;
    },
    resize(size) {
      if (pty !== undefined) pty = { ...pty, ...bounded(size) };
    },
    apply(channel) {
      void channel.request("env", false, encodeEnv({ name: MARK, value: line.plan.lease }));
      for (const variable of env) void channel.request("env", false, encodeEnv(variable));
      for (const [type, data] of wishes) {
        releases.push(line.expect(OPENS.get(type) ?? type));
        void channel.request(type, false, data);
      }
      return pty === undefined ? Promise.resolve(true) : channel.request("pty-req", true, encodePty(pty));
    },
    detail() {
      const terminal =
        pty === undefined ? {} : { terminal: { term: said(pty.term), cols: pty.columns, rows: pty.rows } };
      const variables = Object.fromEntries(env.map(({ name, value }) => [name, shown(value)]));
      return {
        ...terminal,
        ...(env.length === 0 ? {} : { env: variables }),
        ...(wishes.size === 0 ? {} : { asked: [...wishes.keys()] }),
      };
    },
    over() {
      for (const release of releases) release();
    },
  };
}

/** Columns and rows that a screen can have; 0 stays, and means that the client does not know. */
export function bounded({ columns, rows, width, height }: WindowSize): WindowSize {
  return { columns: Math.min(columns, MAX_SCREEN), rows: Math.min(rows, MAX_SCREEN), width, height };
}
