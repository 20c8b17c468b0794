import type { Tape, TerminalTape } from "./tape.ts";
import type { Stream } from "./types.ts";

/** How bytes pass between the two ends of one program, and what the recording keeps of them. */
export interface Flow {
  fromClient(data: Buffer): void;
  clientEof(): void;
  /** Runs once nothing that the client sent waits for its commit any more; absent where nothing ever does. */
  settled?(then: () => void): void;
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

/** What comes behind the last byte that waits for its commit: the end of the stream, or of the channel. */
function createGate(): { enter(): void; leave(): void; behind(act: () => void): void } {
  let inside = 0;
  let waiting: (() => void)[] = [];
  return {
    enter: () => void (inside += 1),
    leave() {
      inside -= 1;
      if (inside > 0) return;
      const acts = waiting;
      waiting = [];
      for (const act of acts) act();
    },
    behind(act) {
      if (inside === 0) act();
      else waiting.push(act);
    },
  };
}

/** A command without a terminal: what is sent to it in full and before it is forwarded, what it writes up to the tape's bound. */
export function createPlainFlow(tape: Tape, n: number, ends: Ends): Flow {
  const gate = createGate();
  return {
    fromClient(data) {
      const copy = Buffer.from(data);
      gate.enter();
      tape.data(n, copy, () => {
        ends.toTarget(copy, () => ends.clientDone(copy.length));
        gate.leave();
      });
    },
    clientEof: () => gate.behind(() => ends.targetEof()),
    settled: (then) => gate.behind(then),
    fromTarget(data, stream) {
      const { length } = data;
      tape.output(n, stream === 1 ? 2 : 1, data);
      ends.toClient(data, stream, () => ends.targetDone(length));
    },
  };
}

/** What is typed on terminals is dealt with in pieces of so many bytes, one in each turn of the event loop. */
const PIECE_BYTES = 512;
/** Whoever waits for a turn, of all sessions; each tells whether it has more. */
const typists: (() => boolean)[] = [];

function takeTurns(typist: () => boolean): void {
  typists.push(typist);
  if (typists.length === 1) setImmediate(nextTurn);
}

function nextTurn(): void {
  const typist = typists.shift();
  if (typist?.() === true) typists.push(typist);
  if (typists.length > 0) setImmediate(nextTurn);
}

/**
 * A terminal: both ways in full. `seen` is told what the program wrote, to know what its screen is in.
 *
 * A record of what was typed is made anew with each change between text and keys. 32 KiB of the two in turn take a tenth of
 * a second and more, in which nobody else's session moves; so what is pasted takes its turn, and a keystroke goes at once.
 * @param failed told what the terminal's record threw in such a turn
 */
export function createTerminalFlow(
  terminal: TerminalTape,
  ends: Ends,
  seen: (data: Buffer) => void,
  failed: (error: unknown) => void,
): Flow {
  const gate = createGate();
  let pasted: Buffer[] = [];

  const input = (bytes: Buffer): void =>
    terminal.input(bytes, () => {
      ends.toTarget(bytes, () => ends.clientDone(bytes.length));
      gate.leave();
    });
  const turn = (): boolean => {
    const [first] = pasted;
    if (first === undefined) return false;
    if (first.length <= PIECE_BYTES) pasted.shift();
    else pasted[0] = first.subarray(PIECE_BYTES);
    try {
      input(first.subarray(0, PIECE_BYTES));
    } catch (error) {
      pasted = [];
      failed(error);
    }
    return pasted.length > 0;
  };
  return {
    fromClient(data) {
      const copy = Buffer.from(data);
      const waits = pasted.length > 0;
      for (let at = 0; at < copy.length; at += PIECE_BYTES) gate.enter();
      pasted.push(copy);
      if (!waits && turn()) takeTurns(turn);
    },
    clientEof: () => gate.behind(() => ends.targetEof()),
    settled: (then) => gate.behind(then),
    fromTarget(data, stream) {
      const { length } = data;
      seen(data);
      terminal.output(data);
      ends.toClient(data, stream, () => ends.targetDone(length));
    },
    over() {
      pasted = [];
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
