import type { Allowed } from "./authorize.ts";
import type { FileEnds } from "./file-proxy.ts";
import { createBulkFlow, createPlainFlow, createTerminalFlow, type Flow } from "./flows.ts";
import type { Line } from "./line.ts";
import { welcome } from "./notices.ts";
import type { Start } from "./program.ts";
import type { PtyRequest, WindowSize } from "./requests.ts";
import { createScpProxy } from "./scp.ts";
import { createScreenState, farewell, notice, titleBack } from "./screen-state.ts";
import { createSftpProxy } from "./sftp.ts";

/** A flow with what its program is: a terminal can be spoken on, and has a size. */
export interface ProgramFlow extends Flow {
  /** The session is busy as long as it runs, however silent; else only while bytes pass. */
  readonly holds: boolean;
  /** On the program's screen, without spoiling it; nothing where there is none. */
  warn(text: string): void;
  /** The last words on the program's screen; undefined where it has none. */
  farewell(text: string): Buffer | undefined;
  /** Once the program was started. */
  started(): void;
  resize(size: WindowSize, committed: () => void): void;
}

export interface ProgramFlowParts {
  readonly start: Start;
  readonly verdict: Allowed;
  readonly n: number;
  readonly pty: PtyRequest | undefined;
  readonly ends: FileEnds;
}

/** A program may stop in the middle of an escape sequence; a warning does not wait for its rest for ever. */
const SEQUENCE_MS = 500;

/** How the bytes of a program pass that was allowed. */
export function createProgramFlow(line: Line, parts: ProgramFlowParts): ProgramFlow {
  const { n, pty, verdict, ends } = parts;
  const { tape, scope } = line;
  const quiet = { warn: () => {}, farewell: () => undefined, started: () => {}, resize: () => {} };
  const files = { n, scope, tape, ends, decide: line.decide, mask: line.session.mask };
  switch (verdict.flow.is) {
    case "sftp":
      return { ...createSftpProxy(files), ...quiet, holds: false }; // it may wait at its prompt
    case "scp": {
      const { command, judged } = verdict.flow;
      return { ...createScpProxy({ ...files, command, judged }), ...quiet, holds: true };
    }
    case "bulk":
      if (scope.files === "keep" || pty !== undefined) break;
      return { ...createBulkFlow(tape, n, ends), ...quiet, holds: true };
    case "plain":
      break;
  }
  const holds = parts.start.type === "exec";
  if (pty !== undefined) return { ...createScreenFlow(line, parts, pty), holds };
  return { ...createPlainFlow(tape, n, ends), ...quiet, holds };
}

function createScreenFlow(
  { tape, session, defect }: Line,
  { start, n, ends }: ProgramFlowParts,
  pty: PtyRequest,
): Omit<ProgramFlow, "holds"> {
  const screen = createScreenState();
  const terminal = tape.terminal(n, { cols: pty.columns, rows: pty.rows, term: pty.term });
  const flow = createTerminalFlow(terminal, ends, (data) => screen.feed(data), defect);
  let waiting: { text: string; timer: NodeJS.Timeout } | undefined;

  const tell = (): void => {
    if (waiting === undefined) return;
    clearTimeout(waiting.timer);
    ends.toClient(notice(waiting.text, screen), 0);
    waiting = undefined;
  };
  return {
    ...flow,
    fromTarget(data, stream) {
      flow.fromTarget(data, stream);
      if (waiting !== undefined && !screen.midSequence) tell();
      if (screen.titleTaken && !screen.alternate) ends.toClient(titleBack(screen), 0);
    },
    warn(text) {
      tell();
      waiting = { text, timer: setTimeout(tell, SEQUENCE_MS) };
      if (!screen.midSequence) tell();
    },
    farewell: (text) => farewell(text, screen),
    started() {
      if (start.type !== "shell") return;
      const text = welcome(session);
      tape.notice({ what: "welcome", n, text });
      ends.toClient(notice(text, screen), 0);
    },
    resize: ({ columns, rows }, committed) => terminal.resize(columns, rows, committed),
    over() {
      clearTimeout(waiting?.timer);
      flow.over?.();
    },
  };
}
