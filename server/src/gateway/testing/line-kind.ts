import { createInterface } from "node:readline";
import type { Duplex } from "node:stream";
import { createSecureContext, TLSSocket } from "node:tls";
import { equalSecret } from "../../core/bytes.ts";
import { describe, GlassError } from "../../core/errors.ts";
import {
  RECORD,
  type ClientConnection,
  type Gate,
  type OpenSession,
  type SessionEnd,
  type TargetKind,
} from "../../targets/target.ts";

/**
 * A protocol of lines, for tests: `hello USER SECRET [MODE]`, then `echo TEXT`, `busy on|off`, `secret PURPOSE`, `given`, `bye`.
 * MODE makes it misbehave as a defect in a real one would.
 */
export type Mode = "good" | "never-attach" | "deaf" | "throwing" | "never-close" | "usurp";

type LineKind = Pick<TargetKind, "kind" | "serve" | "handshakeMs">;

export function createLineKind(options: { name?: string; tls?: boolean; handshakeMs?: number } = {}): LineKind {
  return {
    kind: options.name ?? "line",
    ...(options.handshakeMs === undefined ? {} : { handshakeMs: options.handshakeMs }),
    serve(connection, gate) {
      const stream = options.tls === true ? wrapTls(connection.socket, connection.tls) : connection.socket;
      stream.on("error", () => undefined);
      converse(stream, connection, gate);
    },
  };
}

export const brokenKind: LineKind = {
  kind: "broken",
  serve() {
    throw new Error("serve is broken");
  },
};

function wrapTls(socket: TLSSocket | Parameters<TargetKind["serve"]>[0]["socket"], tls: { key: string; cert: string }) {
  return new TLSSocket(socket, { isServer: true, secureContext: createSecureContext(tls) });
}

function converse(stream: Duplex, { remoteAddress, identity }: ClientConnection, gate: Gate): void {
  const say = (line: string): void => void (stream.writable && stream.write(`${line}\n`));
  let session: OpenSession | undefined;
  let mode: Mode = "good";
  let statements = 0;

  const end = (cause: SessionEnd["cause"]): void => {
    if (mode !== "never-close") {
      session?.close({ cause, detail: "the line ended", statements, refused: 0, bytesIn: 0, bytesOut: 0 });
    }
  };

  const attach = (session: OpenSession): void => {
    if (mode === "never-attach") return;
    session.attach({
      warn: (text) => say(`warn ${text}`),
      cut(text) {
        if (mode === "throwing") throw new Error("cut is broken");
        if (mode === "deaf") return;
        stream.end(`cut ${text}\n`);
      },
      destroy() {
        if (mode === "throwing") throw new Error("destroy is broken");
        if (mode !== "deaf") stream.destroy();
      },
    });
  };

  const hello = async (user: string, secret: string): Promise<void> => {
    const { connectSecret } = await gate.challenge(user);
    if (!equalSecret(connectSecret.reveal(), secret)) {
      gate.failed(user, remoteAddress);
      throw new GlassError("unauthenticated", "wrong secret");
    }
    session = await gate.open({ user: mode === "usurp" ? "gr_b" : user, remoteAddress, client: { mode } });
    attach(session);
    say(`welcome ${session.session} until ${session.endsAt.toISOString()}`);
  };

  const command = (session: OpenSession, verb: string, rest: string): void => {
    if (verb === "bye") stream.end();
    if (verb === "busy") session.busy(rest === "on");
    if (verb === "secret") say(`secret ${session.secrets.derive(rest).reveal()}`);
    if (verb === "given") say(`given ${JSON.stringify({ identity, credential: session.credential })}`);
    if (verb === "crash") setImmediate(throwDefect);
    if (verb === "hang") for (;;) statements++;
    if (verb === "trip") session.recorder.write(RECORD.action, "{}", throwDefect);
    if (verb !== "echo") return;
    statements++;
    session.recorder.write(RECORD.statementStarted, JSON.stringify({ n: statements, text: rest }), () =>
      say(`echo ${rest}`),
    );
  };

  stream.on("close", () => end("client"));
  const reader = createInterface({ input: stream }).on("error", () => undefined); // readline repeats the stream's errors
  reader.on("line", (line) => {
    const [verb = "", user = "", secret = "", given = "good"] = line.split(" ");
    if (session !== undefined) return command(session, verb, line.slice(verb.length + 1));
    if (verb !== "hello") return say("error say hello");
    mode = given as Mode;
    hello(user, secret).catch((error: unknown) => {
      say(`error ${error instanceof GlassError ? error.code : "?"} ${describe(error)}`);
    });
  });
}

function throwDefect(): never {
  throw new Error("a defect in the line protocol");
}
