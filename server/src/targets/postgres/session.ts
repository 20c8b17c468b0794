import type { Socket } from "node:net";
import { describe, GlassError } from "../../core/errors.ts";
import type { JsonObject, JsonValue } from "../../core/json.ts";
import { RECORD, type ClientConnection, type Gate, type OpenSession } from "../target.ts";
import { createCancelKeys, type CancelKeys, type IssuedKey } from "./cancel.ts";
import { planOf, type PostgresPlan } from "./config.ts";
import { createTlsContexts, dial, sendCancel, type TargetConnection, type TlsContexts } from "./dial.ts";
import { authenticate, createSalts, createServerTls, greet, Refused, type Salts, type Startup } from "./handshake.ts";
import { Gone, unlessAborted } from "./intake.ts";
import { withheld } from "./mask.ts";
import { startRelay, type Relay } from "./relay.ts";
import type { ScopeChecker } from "./scope.ts";
import { createSaltedPasswords, type SaltedPasswords } from "./scram.ts";
import * as wire from "./wire.ts";

export interface ServeParts {
  compileScope(scope: JsonObject): ScopeChecker;
  /** Loads the SQL parser; called once, awaited before the first session. */
  loadParser(): Promise<void>;
  /** From the first byte to the proof; default {@link AUTHENTICATION_MS}. */
  authenticationMs?: number;
  /** To connect and log in to the target; default {@link DIAL_MS}. */
  dialMs?: number;
}

/** A client answers SCRAM within round trips; psql asks for the password on no connection. Longer only holds a socket. */
const AUTHENTICATION_MS = 15_000;
/** A target that takes longer to let one in is as good as down, and somebody is waiting at a prompt. */
const DIAL_MS = 10_000;
/** Time for the last words to be read. */
const FAREWELL_MS = 1_000;

/** What sessions share: keys and caches, none of which holds a secret in plain text. */
interface Shared {
  cancelKeys: CancelKeys;
  contexts: TlsContexts;
  passwords: SaltedPasswords;
  salts: Salts;
  serverTls: ReturnType<typeof createServerTls>;
  checkerFor(scope: JsonObject): ScopeChecker;
  parser(): Promise<void>;
  authenticationMs: number;
  dialMs: number;
}

/** Makes the `serve` of this kind. Cancel requests reach sessions of the same `serve` only. */
export function createServe(parts: ServeParts): (connection: ClientConnection, gate: Gate) => void {
  const checkers = new Map<string, ScopeChecker>();
  let parser: Promise<void> | undefined;
  const shared: Shared = {
    ...{ cancelKeys: createCancelKeys(), contexts: createTlsContexts(), passwords: createSaltedPasswords() },
    ...{ salts: createSalts(), serverTls: createServerTls() },
    checkerFor(scope) {
      const key = JSON.stringify(scope);
      const checker = checkers.get(key) ?? parts.compileScope(scope);
      if (checkers.size >= 100) checkers.clear();
      checkers.set(key, checker);
      return checker;
    },
    parser() {
      parser ??= parts.loadParser();
      parser.catch(() => (parser = undefined));
      return parser;
    },
    authenticationMs: parts.authenticationMs ?? AUTHENTICATION_MS,
    dialMs: parts.dialMs ?? DIAL_MS,
  };
  return (connection, gate) => void serve(connection, gate, shared);
}

async function serve(connection: ClientConnection, gate: Gate, shared: Shared): Promise<void> {
  let socket = connection.socket;
  socket.on("error", () => {});
  socket.setNoDelay(true);
  socket.setKeepAlive(true, 30_000);
  const deadline = new AbortController();
  const seconds = shared.authenticationMs / 1000;
  const timer = setTimeout(() => {
    deadline.abort(new Refused("57014", `canceling authentication: it was not finished within ${seconds} s`));
  }, shared.authenticationMs);
  let handshaking = false; // in TLS: a report in plain text would only break it
  try {
    const serverTls = shared.serverTls(connection.tls);
    const entering = enter(connection, gate, shared, serverTls, (upgraded) => {
      handshaking = upgraded === undefined;
      socket = upgraded ?? socket;
    });
    const startup = await unlessAborted(entering, deadline.signal);
    clearTimeout(timer);
    if (startup !== undefined) await open(startup, connection, gate, shared);
  } catch (error) {
    sayGoodbye(socket, handshaking ? new Gone("no TLS") : error);
  } finally {
    clearTimeout(timer);
  }
}

/** Everything before the proof. Undefined when the connection was for a cancel request, which is done then. */
async function enter(
  connection: ClientConnection,
  gate: Gate,
  shared: Shared,
  serverTls: ReturnType<Shared["serverTls"]>,
  upgraded: (socket: Socket | undefined) => void,
): Promise<Startup | undefined> {
  const startup = await greet(connection, serverTls, upgraded);
  if (startup.kind === "cancel") {
    await shared.cancelKeys.present(startup.pid, startup.key);
    startup.socket.end(); // what the client waits for
    lingering(startup.socket);
    return undefined;
  }
  const { parameters, socket } = startup;
  const user = parameters.get("user");
  if (user === undefined) throw new Refused("28000", "no PostgreSQL user name specified in startup packet");
  const replication = parameters.get("replication") ?? "false";
  if (!/^(false|off|no|0)$/i.test(replication)) {
    throw new Refused("0A000", "replication connections do not pass through Glasskey");
  }
  const unknown = [...parameters.keys()].filter((name) => name.startsWith("_pq_."));
  if (startup.minor > wire.NEWEST_MINOR || unknown.length > 0) {
    socket.write(wire.encodeNegotiation(Math.min(startup.minor, wire.NEWEST_MINOR), unknown));
  }
  try {
    const challenge = gate.challenge(user);
    challenge.catch(() => {});
    await authenticate(startup, user, challenge, { ...shared, binding: serverTls.binding });
  } catch (error) {
    if (error instanceof Refused) gate.failed(user, connection.remoteAddress);
    throw error;
  }
  return startup;
}

/** From the proof to the relay. */
async function open(startup: Startup, connection: ClientConnection, gate: Gate, shared: Shared): Promise<void> {
  const { socket, parameters } = startup;
  const user = parameters.get("user") ?? "";
  const session = await gate.open({
    ...{ user, remoteAddress: connection.remoteAddress },
    client: {
      database: withheld(parameters.get("database") ?? "", 63),
      application: withheld(parameters.get("application_name") ?? "", 63),
      protocol: `3.${Math.min(startup.minor, wire.NEWEST_MINOR)}`,
      tls:
        "getProtocol" in socket ? String((socket as Socket & { getProtocol(): string | null }).getProtocol()) : "none",
    },
  });
  let relay: Relay | undefined;
  let target: TargetConnection | undefined;
  let key: IssuedKey | undefined;
  const stop = new AbortController();
  const dialTimer = setTimeout(
    () => stop.abort(new Error(`no answer within ${shared.dialMs / 1000} s`)),
    shared.dialMs,
  );
  const gone = (): void => stop.abort(new Gone("the client went away"));
  socket.once("close", gone);
  try {
    session.attach({
      warn: (text) => relay?.warn(text),
      cut(text) {
        if (relay === undefined) stop.abort(new Refused("57P01", text));
        else relay.cut(text);
      },
      destroy() {
        stop.abort(new Gone("destroyed by the gateway"));
        relay?.destroy();
        socket.destroy();
      },
    });
    const plan = planOf(session.plan);
    await unlessAborted(shared.parser(), stop.signal);
    const checker = shared.checkerFor(session.scope);
    const login = {
      password: session.secrets.derive("password"),
      database: databaseOf(parameters.get("database"), user, plan, session.scope["databases"]),
      settings: settingsOf(parameters, checker),
    };
    target = await dial(plan, login, shared, stop.signal);
    if (stop.signal.aborted) throw stop.signal.reason as Error;
    checkTarget(target, checker);
    const established = target;
    key = shared.cancelKeys.issue(startup.minor >= 2 ? 32 : 4, (done) => {
      if (relay === undefined) done();
      else relay.cancel(done);
    });
    welcome(socket, session, established, key);
    const issued = key;
    let cancelling: Promise<void> | undefined; // one at a time, however often somebody presses Ctrl-C
    relay = startRelay({
      ...{ client: socket, target: established.socket, session, checker },
      cancelTarget() {
        if (established.cancelKey === undefined) return Promise.resolve();
        cancelling ??= sendCancel(plan, established.cancelKey, shared.contexts).finally(() => (cancelling = undefined));
        return cancelling;
      },
      resetClient: () => void connection.socket.resetAndDestroy(),
      resetTarget: () => established.reset(),
      closed: () => issued.revoke(),
    });
  } catch (error) {
    key?.revoke();
    target?.socket.destroy();
    const why = stop.signal.aborted ? (stop.signal.reason as unknown) : error;
    const cause =
      why instanceof Gone ? "client" : why instanceof Refused && why.report.sqlstate === "57P01" ? "cut" : "error";
    const counts = { statements: 0, refused: 0, bytesIn: 0, bytesOut: 0 };
    session.close({ cause, detail: withheld(describe(why)), ...counts });
    throw error instanceof GlassError && stop.signal.aborted && why instanceof Refused ? why : error;
  } finally {
    clearTimeout(dialTimer);
    socket.off("close", gone);
  }
}

function databaseOf(
  asked: string | undefined,
  user: string,
  plan: PostgresPlan,
  scoped: JsonValue | undefined,
): string {
  const databases = Array.isArray(scoped) ? plan.databases.filter((name) => scoped.includes(name)) : plan.databases;
  const first = databases[0];
  if (first !== undefined && (asked === undefined || asked === "" || asked === user)) return first;
  if (asked !== undefined && databases.includes(asked)) return asked;
  throw new Refused(
    "3D000",
    `database "${asked ?? ""}" is not part of this grant`,
    `It opens: ${databases.join(", ")}.`,
  );
}

/** The client's settings that the scope lets through, after ours. @throws Refused */
function settingsOf(parameters: ReadonlyMap<string, string>, checker: ScopeChecker): Record<string, string> {
  // Statements are checked as UTF-8 and with standard strings; a role's or a database's own default must not change that.
  const settings = new Map([
    ["application_name", "glasskey"],
    ["client_encoding", "UTF8"],
    ["standard_conforming_strings", "on"],
  ]);
  const set = (name: string, value: string): void => {
    const folded = name.toLowerCase();
    const verdict = checker.parameter(folded, value);
    if (!verdict.ok) throw new Refused("42501", `startup parameter ${folded}: ${verdict.reason}`, verdict.next);
    settings.set(folded, value);
  };
  for (const [name, value] of parameters) {
    if (name === "user" || name === "database" || name === "replication" || name.startsWith("_pq_.")) continue;
    if (name === "options") for (const [option, setting] of wire.decodeOptions(value)) set(option, setting);
    else set(name, value);
  }
  for (const [name, value] of Object.entries(checker.startup)) settings.set(name, value);
  return Object.fromEntries(settings);
}

/** A target whose own configuration makes it read statements otherwise than they are checked is not opened. */
function checkTarget(target: TargetConnection, checker: ScopeChecker): void {
  for (const name of ["client_encoding", "standard_conforming_strings"]) {
    const value = target.parameters.get(name);
    const verdict = value === undefined ? undefined : checker.parameter(name, value);
    if (verdict?.ok === false) throw new Refused("42501", `the target insists on ${name} ${value}: ${verdict.reason}`);
  }
}

/** What the client is told once it is in, in one write, and the notice that it is being recorded. */
function welcome(socket: Socket, session: OpenSession, target: TargetConnection, key: IssuedKey): void {
  const until = session.endsAt.toISOString().replace(/\.\d+Z$/, "Z");
  const text = `${session.person} is on ${session.target} until ${until}; everything you send is recorded`;
  const detail = `Reason: ${session.reason}. Playbook ${session.playbook}, grant ${session.grant}, session ${session.session}.`;
  session.recorder.write(RECORD.notice, JSON.stringify({ text, detail }));
  socket.write(
    Buffer.concat([
      ...target.greeting,
      wire.encodeBackendKeyData(key.pid, key.key),
      wire.encodeReport({ severity: "NOTICE", sqlstate: "00000", message: text, detail }),
      wire.encodeReadyForQuery(wire.STATUS.idle),
    ]),
  );
}

/** Tells a client that does not get in why, in its protocol, and closes. Nobody who is gone is told anything. */
function sayGoodbye(socket: Socket, error: unknown): void {
  if (error instanceof Gone) return void socket.destroy();
  socket.end(wire.encodeReport(reportOf(error)));
  lingering(socket);
}

function lingering(socket: Socket): void {
  socket.resume(); // to see the client's end
  const timer = setTimeout(() => socket.destroy(), FAREWELL_MS);
  socket.once("close", () => clearTimeout(timer));
}

function reportOf(error: unknown): wire.Report {
  if (error instanceof Refused) return error.report;
  if (error instanceof wire.ProtocolViolation)
    return { severity: "FATAL", sqlstate: error.sqlstate, message: error.message };
  if (!(error instanceof GlassError) || error.code === "internal") {
    return { severity: "FATAL", sqlstate: "XX000", message: "a defect in Glasskey kept this session from opening" };
  }
  const unavailable = ["recording_unavailable", "store_unavailable"].includes(error.code);
  const sqlstate = error.code === "target_unreachable" ? "08006" : unavailable ? "57P03" : "28000";
  return { severity: "FATAL", sqlstate, message: error.message, hint: error.next };
}
