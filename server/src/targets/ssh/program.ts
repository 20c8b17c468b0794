import { isUtf8 } from "node:buffer";
import { unreachable } from "../../core/errors.ts";
import type { Verdict } from "./authorize.ts";
import { said, type EndCode, type Line, type Open } from "./line.ts";
import { onFreshTerminal, onStderr } from "./notices.ts";
import { createProgramFlow, type ProgramFlow } from "./program-flow.ts";
import { bounded, createSetup, setsUp } from "./program-setup.ts";
import {
  MAX_COMMAND_BYTES,
  encodeExitSignal,
  encodeNumber,
  encodeString,
  encodeWindowChange,
  parseExec,
  parseExitSignal,
  parseNumber,
  parseWindowChange,
  parseWord,
} from "./requests.ts";
import {
  OpenRefused,
  SshError,
  type Accept,
  type Channel,
  type ChannelHandlers,
  type Request,
  type Stream,
} from "./types.ts";

/**
 * One `session` channel (RFC 4254, 6): set-up requests, then one program (shell, command or subsystem), then its end.
 *
 * Nothing reaches the target before the program's statement is committed, so what the client set up (terminal, environment)
 * is kept until then and told to the target in one go, after Glasskey's own mark.
 */

/** Exit status of a program that was refused, or never began. */
const REFUSED_STATUS = 254;

/** Requests of the target for a client's plumbing: an sshd sends one or two. */
const MAX_TOLD = 100;

const NONE = Buffer.alloc(0);

export interface Start {
  readonly type: "shell" | "exec" | "subsystem";
  /** The command, or the subsystem's name; `shell`. */
  readonly text: string;
}

type State =
  | { readonly is: "setup" }
  | { readonly is: "starting" | "running"; readonly n: number; readonly flow: ProgramFlow }
  | { readonly is: "over" };

/** Takes a `session` channel that the client opened. */
export function serveProgram(line: Line, accept: Accept): void {
  const { tape, target: connection, session } = line;
  let state: State = { is: "setup" };
  const setup = createSetup(line);
  let target: Channel | undefined;
  let early: Buffer[] = [];
  let eofSeen = false;
  let clientClosed = false;
  let targetClosed = false;
  let exit: { tag: string } | undefined;
  let told = 0; // requests of the target that the client was told of
  let ended: { code: string; message: string } | undefined;
  let release = (): void => {};

  // ------------------------------------------------------------------------------------------------- what it tells

  /** Where the person reads: the terminal, else stderr. */
  const say = (text: string): void => {
    if (clientClosed) return;
    if (state.is === "running" || state.is === "starting") {
      const words = state.flow.farewell(text);
      if (words !== undefined) return client.write(words, 0);
    } else if (setup.pty !== undefined) {
      return client.write(onFreshTerminal(text), 0);
    }
    client.write(onStderr(text), 1);
  };

  /** Ends a channel whose program is not to be, with the reason where a person and a script see it. */
  const endUnborn = (text: string): void => {
    say(text);
    void client.request("exit-status", false, encodeNumber(REFUSED_STATUS));
    client.eof();
    client.close();
  };

  const finish = (): void => {
    if (state.is === "over") return;
    const was = state;
    state = { is: "over" };
    line.open.delete(open);
    release();
    setup.over();
    early = [];
    if (was.is === "setup") return;
    was.flow.over?.();
    tape.end(was.n, {
      ...(exit === undefined ? {} : { tag: exit.tag }),
      ...(ended === undefined ? {} : { error: ended }),
    });
  };

  const refuse = (via: string, text: string, verdict: { reason: string; next?: string }): false => {
    line.refuse(via, text, verdict);
    return false;
  };

  // ------------------------------------------------------------------------------------------------- the program

  const begin = (start: Start): Promise<boolean> => {
    if (state.is !== "setup") {
      line.refuse(start.type, start.text, { reason: "this channel has its program already" });
      return Promise.resolve(false);
    }
    const verdict = decide(line, start);
    if (!verdict.ok) return neverBegin(line.refuse(start.type, start.text, verdict));
    const answer = Promise.withResolvers<boolean>();
    let n = 0;
    const launched = (): void => {
      answer.resolve(true);
      void launch(start, verdict.run ?? start.text, n);
    };
    const run = verdict.run === undefined || verdict.run === start.text ? {} : { run: verdict.run };
    n = tape.begin(verdict.via, start.text, { ...setup.detail(), ...run }, launched);
    const flow = createProgramFlow(line, { start, verdict, n, pty: setup.pty, ends });
    state = { is: "starting", n, flow };
    if (flow.holds) release = line.activity.hold();
    line.activity.touch();
    line.open.add(open);
    return answer.promise;
  };

  /** Answered with yes, because a client that hears no shows no reason. */
  const neverBegin = (text: string): Promise<boolean> => {
    state = { is: "over" };
    endUnborn(text);
    return Promise.resolve(true);
  };

  /** Opens the channel on the target and starts the program there; only ever called from inside `committed`. */
  const launch = async (start: Start, run: string, n: number): Promise<void> => {
    if (clientClosed) return closeBoth();
    try {
      const channel = await connection.open("session", NONE, targetHandlers).catch(explain);
      target = channel;
      if (state.is !== "starting" || clientClosed) return channel.abort();
      const given = await setup.apply(channel);
      if (state.is !== "starting" || clientClosed) return channel.abort();
      if (!given) throw new OpenRefused(0, `${session.target} gave no terminal`);
      const data = start.type === "shell" ? NONE : encodeString(run);
      const accepted = channel.request(start.type, true, data);
      const { flow } = state;
      state = { is: "running", n, flow };
      flow.started();
      for (const bytes of early) flow.fromClient(bytes);
      early = [];
      if (eofSeen) flow.clientEof();
      if (!(await accepted) && !targetClosed) throw new OpenRefused(0, `${session.target} did not start it`);
    } catch (error) {
      if (state.is === "over" || error instanceof SshError) return; // the connection's end says why
      if (!(error instanceof OpenRefused)) return line.defect(error);
      ended = { code: "target_refused", message: said(error.message) };
      endUnborn(said(error.message));
      target?.abort();
      finish();
    }
  };

  const explain = (error: unknown): never => {
    if (!(error instanceof OpenRefused)) throw error;
    const next = "An sshd runs 10 programs at once on one connection, unless its MaxSessions says otherwise.";
    throw new OpenRefused(error.reason, `${session.target} opened no channel for it (${said(error.message)}). ${next}`);
  };

  const ends = {
    toTarget: (data: Uint8Array, sent?: () => void): void => target?.write(data, 0, sent),
    targetEof: (): void => target?.eof(),
    toClient(data: Uint8Array, stream: Stream, sent?: () => void): void {
      if (clientClosed) sent?.();
      else client.write(data, stream, sent);
    },
    clientDone: (bytes: number): void => client.consumed(bytes),
    targetDone(bytes: number): void {
      if (target !== undefined) line.paced(target, bytes);
    },
    refuse: (via: string, text: string, verdict: { reason: string; next?: string }): string =>
      line.refuse(via, text, verdict),
    defect: (error: unknown): void => line.defect(error),
    fail(text: string): void {
      ended ??= { code: "refused", message: text };
      endUnborn(text);
      target?.close();
    },
  };

  // ------------------------------------------------------------------------------------------------- while it runs

  const onRunning = (request: Request): boolean => {
    if (state.is !== "running" && state.is !== "starting") return false;
    const { n, flow } = state;
    switch (request.type) {
      case "window-change": {
        const size = bounded(parseWindowChange(request.data));
        if (setup.pty === undefined) return false;
        setup.resize(size); // for a terminal that is still to be asked for
        flow.resize(size, () => void target?.request("window-change", false, encodeWindowChange(size)));
        return true;
      }
      case "signal": {
        const name = parseWord(request.data);
        const verdict = line.decide({ ask: "signal", name });
        if (!verdict.ok) return refuse("signal", said(name), verdict);
        tape.action({ what: "signal", n, name }, () => void target?.request("signal", false, encodeString(name)));
        return true;
      }
      case "break": {
        const ms = parseNumber(request.data);
        tape.action({ what: "break", n, ms }, () => void target?.request("break", false, encodeNumber(ms)));
        return true;
      }
      default:
        return refuseUnknown(request);
    }
  };

  const refuseUnknown = (request: Request): false => {
    // A sign of life (OpenSSH), and what a client's own plumbing says; any answer will do.
    if (request.type === "keepalive@openssh.com" || request.type === "eow@openssh.com") return false;
    return refuse("request", said(request.type), unknown(line, `channel request ${said(request.type)}`));
  };

  const clientHandlers: ChannelHandlers = {
    onData(data, stream) {
      line.moved("in", data.length);
      line.activity.touch();
      // A client's stderr has no meaning (RFC 4254, 5.2), and bytes for a program that is over have none to go to.
      if (stream !== 0 || state.is === "over") return client.consumed(data.length);
      if (state.is === "running") state.flow.fromClient(data);
      else early.push(Buffer.from(data)); // at most the window
    },
    async onRequest(request) {
      const { type, data } = request;
      if (state.is === "over") return false;
      if (type === "shell") return begin({ type, text: "shell" });
      if (type === "subsystem") return begin({ type, text: parseWord(data) });
      if (type === "exec") {
        if (data.length > 4 + MAX_COMMAND_BYTES)
          return neverBegin(line.refuse(type, `${data.length - 4} bytes`, TOO_LONG));
        const command = parseExec(data);
        if (isUtf8(command) && !command.includes(0)) return begin({ type, text: command.toString() });
        return neverBegin(line.refuse(type, command, NO_TEXT));
      }
      const via = setsUp(type);
      if (state.is !== "setup") return via === undefined ? onRunning(request) : refuse(via, type, LATE);
      if (via !== undefined) return setup.ask(request) ?? false;
      return ONLY_RUNNING.has(type) ? false : refuseUnknown(request);
    },
    onEof() {
      eofSeen = true;
      if (state.is === "running") state.flow.clientEof();
    },
    // The client's own close is answered when the program is over: until then its exit status still reaches the client.
    onClosing: () => clientLeft(),
    onClose: () => clientLeft(),
  };

  const clientLeft = (): void => {
    if (clientClosed) return;
    clientClosed = true;
    if (state.is === "setup" || state.is === "over") return closeBoth();
    const close = (): void => {
      if (!targetClosed) target?.close(); // still opening: `launch` looks again
    };
    // What it sent before reaches the program, as it would without a gateway.
    if (state.is === "running" && state.flow.settled !== undefined) state.flow.settled(close);
    else close();
  };

  const targetHandlers: ChannelHandlers = {
    onData(data, stream) {
      line.moved("out", data.length);
      line.activity.touch();
      if ((state.is === "running" || state.is === "starting") && stream <= 1) state.flow.fromTarget(data, stream);
      else target?.consumed(data.length);
    },
    onRequest({ type, data }) {
      // A program ends once. What is said of it again must neither change the record nor wait for a slow client.
      if (exit !== undefined && type.startsWith("exit-")) return Promise.resolve(false);
      if (type === "exit-status") {
        const status = parseNumber(data);
        exit = { tag: `exit ${status}` };
        tell(type, encodeNumber(status));
        return Promise.resolve(true);
      }
      if (type === "exit-signal") {
        const { name, coreDumped, message } = parseExitSignal(data);
        exit = { tag: `signal ${said(name)}` };
        tell(type, encodeExitSignal({ name: said(name), coreDumped, message: said(message) }));
        return Promise.resolve(true);
      }
      if (type === "xon-xoff" || type === "eow@openssh.com") {
        if (++told <= MAX_TOLD && data.length <= 1) tell(type, data);
        return Promise.resolve(true);
      }
      return Promise.resolve(false);
    },
    onEof() {
      if (state.is === "running") state.flow.targetEof?.();
      if (!clientClosed) client.eof();
    },
    onClose() {
      targetClosed = true;
      // A connection that breaks closes all its channels first; why is told by who knows it, a moment later.
      if (exit === undefined) setImmediate(closeBoth);
      else closeBoth();
    },
  };

  /** Also to a client that has closed: it waits for the answer to its close. What Glasskey ended has its status already. */
  const tell = (type: string, data: Uint8Array): void => {
    if (ended === undefined) void client.request(type, false, data);
  };

  const closeBoth = (): void => {
    if (clientClosed && exit === undefined) ended ??= { code: "client_gone", message: "the client closed the channel" };
    client.close();
    finish();
  };

  /** A damaged request is answered with no; what else is thrown is ours, and nothing goes on behind it. */
  const defect = (error: unknown): boolean => {
    if (!(error instanceof SshError)) line.defect(error);
    return false;
  };

  const open: Open = {
    warn(text) {
      if (state.is === "running" && !clientClosed) state.flow.warn(text);
    },
    end(code: EndCode, text: string) {
      if (state.is === "over") return;
      ended ??= { code, message: text };
      if (code !== "client_gone") say(text);
      finish();
    },
  };

  const client = accept.accept({
    ...clientHandlers,
    onRequest: (request) => clientHandlers.onRequest(request).catch(defect),
  });
}

const NO_TEXT = {
  reason: "a command has to be text in UTF-8",
  next: "Put what is not into a file, or send it on stdin.",
};
const TOO_LONG = {
  reason: `a command has at most ${MAX_COMMAND_BYTES / 1024} KiB`,
  next: "Put what is longer into a file, or send it on stdin.",
};
const LATE = { reason: "the program runs already" };
const ONLY_RUNNING = new Set(["window-change", "signal", "break"]);

function decide(line: Line, start: Start): Verdict {
  switch (start.type) {
    case "shell":
      return line.decide({ ask: "shell" });
    case "exec":
      return line.decide({ ask: "exec", command: start.text });
    case "subsystem":
      return line.decide({ ask: "subsystem", name: start.text });
    default:
      return unreachable(start.type);
  }
}

function unknown(line: Line, what: string): { reason: string; next?: string } {
  const verdict = line.decide({ ask: "unknown", what });
  // There is no scope that allows it; a yes would be a defect, and is none.
  return verdict.ok ? { reason: `${what} does not pass through Glasskey` } : verdict;
}
