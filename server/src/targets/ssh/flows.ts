import type { Tape, TerminalTape } from "./tape.ts";
import type { Stream } from "./types.ts";

/** How bytes pass between the two ends of one program, and what the recording keeps of them. */
export interface Flow {
  fromClient(data: Buffer): void;
  clientEof(): void;
  fromTarget(data: Buffer, stream: Stream): void;
  /** The target sends no more; what is held back goes to the client now. */
  targetEof?(): void;
  /** The program is over, or the session is. */
  over?(): void;
}

/** The two ends as a flow sees them. */
export interface Ends {
  toTarget(data: Uint8Array, sent?: () => void): void;
  targetEof(): void;
  toClient(data: Uint8Array, stream: Stream, sent?: () => void): void;
  /** Window for the client, and for the target. */
  clientDone(bytes: number): void;
  targetDone(bytes: number): void;
}

/** Passes end of file on after the last byte that waits for its commit. */
function createGate(eof: () => void): { enter(): void; leave(): void; close(): void } {
  let inside = 0;
  let closing = false;
  return {
    enter: () => void (inside += 1),
    leave() {
      inside -= 1;
      if (inside === 0 && closing) eof();
    },
    close() {
      closing = true;
      if (inside === 0) eof();
    },
  };
}

/** A command without a terminal: what is sent to it in full and before it is forwarded, what it writes up to the tape's bound. */
export function createPlainFlow(tape: Tape, n: number, ends: Ends): Flow {
  const gate = createGate(() => ends.targetEof());
  return {
    fromClient(data) {
      const copy = Buffer.from(data);
      gate.enter();
      tape.data(n, copy, () => {
        ends.toTarget(copy, () => ends.clientDone(copy.length));
        gate.leave();
      });
    },
    clientEof: () => gate.close(),
    fromTarget(data, stream) {
      const { length } = data;
      tape.output(n, stream === 1 ? 2 : 1, data);
      ends.toClient(data, stream, () => ends.targetDone(length));
    },
  };
}

/** A terminal: both ways in full. `seen` is told what the program wrote, to know what its screen is in. */
export function createTerminalFlow(terminal: TerminalTape, ends: Ends, seen: (data: Buffer) => void): Flow {
  const gate = createGate(() => ends.targetEof());
  return {
    fromClient(data) {
      const copy = Buffer.from(data);
      gate.enter();
      terminal.input(copy, () => {
        ends.toTarget(copy, () => ends.clientDone(copy.length));
        gate.leave();
      });
    },
    clientEof: () => gate.close(),
    fromTarget(data, stream) {
      const { length } = data;
      seen(data);
      terminal.output(data);
      ends.toClient(data, stream, () => ends.targetDone(length));
    },
  };
}

/** rsync and git: neither side's bytes are kept, only how many they were and their hash; what is said on stderr is kept. */
export function createBulkFlow(tape: Tape, n: number, ends: Ends): Flow {
  return {
    fromClient(data) {
      const { length } = data;
      tape.total(n, 0, data);
      ends.toTarget(data, () => ends.clientDone(length));
    },
    clientEof: () => ends.targetEof(),
    fromTarget(data, stream) {
      const { length } = data;
      if (stream === 1) tape.output(n, 2, data);
      else tape.total(n, 1, data);
      ends.toClient(data, stream, () => ends.targetDone(length));
    },
  };
}
