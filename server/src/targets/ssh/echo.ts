import { type Cipheriv, createCipheriv, randomBytes } from "node:crypto";
import { keystrokes } from "./keystrokes.ts";
import { createVtParser, widthOf } from "./vt.ts";

/**
 * Typed passwords are not to be stored, and all that is typed is to be on record before it is forwarded, when nobody knows
 * yet whether it will be echoed. So control characters and keys are recorded as they are, and printable text in *runs*, each
 * encrypted under a key of its own (AES-256-CTR, counter from zero) that only this process's memory holds. The key is given
 * to the recording once the terminal has shown the whole run: every character was written after it was typed, at its place
 * behind the one before, and the cursor stands behind the last one, before the line is left. It is all or nothing. In any
 * other case the key is overwritten, and nobody can read that run ever again.
 *
 * Text and cursor movements are followed as a terminal does, so colours, a line drawn again, suggestions behind the cursor
 * and text that is inserted into a line do no harm. What a program cannot do by printing is to learn anything: a run that it
 * shows is one that it received, and it stands in its recorded output in clear.
 */
export interface Echo {
  /** What the user typed. `committed` goes with the last record that is made of it. */
  input(bytes: Uint8Array, committed: () => void): void;
  /** What the program wrote, in order with `input` as this process saw both. */
  output(bytes: Uint8Array): void;
  resize(cols: number, rows: number): void;
  /** No more of either. @param silent without a word to the recording. */
  close(silent?: boolean): void;
}

export interface EchoOptions {
  readonly cols: number;
  readonly rows: number;
  /** Monotonic, in ms. */
  readonly now: () => number;
  /** The next bytes of that run, encrypted. */
  hidden(run: number, bytes: Uint8Array, committed?: () => void): void;
  /** Control characters and keys as typed. */
  clear(bytes: Uint8Array, committed?: () => void): void;
  /** The run was echoed: its key. Empty: it was not, and the key is gone. */
  reveal(run: number, key: Uint8Array): void;
}

/** A run ends at this length or age, and a key waits for as long again for an echo that is late. */
const MAX_RUN_BYTES = 1024;
const MAX_AGE_MS = 10_000;
/** Runs and line ends that were typed ahead of their echo; what comes on top is never revealed. */
const MAX_WAITING = 64;
/** Of longer output nobody waits for the echo in, only what follows its last line feed is looked at. */
const SKIP_BYTES = 4096;

const KEY_BYTES = 32; // of AES-256
const ZERO_IV = Buffer.alloc(16);
const NO_KEY = Buffer.alloc(0);
const CR = 13;
const LF = 10;

interface Run {
  readonly id: number;
  readonly key: Buffer;
  readonly cipher: Cipheriv;
  /** When it began; once closed, when that was. */
  sinceMs: number;
  closed: boolean;
  bytes: number;
  /** Where the first character has to be; undefined: behind the line feed that answers what was typed before it. */
  place: { readonly row: number; readonly col: number } | undefined;
  readonly typed: number[];
  /** For each cell from `place`: the index in `typed` of the character that begins there; -1 for a second half. */
  readonly cells: number[];
  readonly shown: boolean[];
  missing: number;
  /** A character that is not complete. */
  partial: number[];
}

/** `enter`: the line feed that will come for one that was typed. */
type Waiting = Run | "enter";

export function createEcho(options: EchoOptions): Echo {
  const { now } = options;
  let cols = Math.max(1, options.cols);
  let rows = Math.max(1, options.rows);
  let ids = 0;
  /** Oldest first. Only its first run is compared with the output. */
  let waiting: Waiting[] = [];
  let open: Run | undefined;
  let timer: NodeJS.Timeout | undefined;
  // The cursor. `col` is `cols` behind a character in the last column: the next one wraps. `row` is counted from the screen's
  // top once the program has said where it is, and from wherever it was before that.
  let [row, col, absolute, insert] = [0, 0, false, false];
  let saved = { row: 0, col: 0, absolute: false };
  let bottom = rows - 1;

  const forget = (run: Run): void => {
    run.key.fill(0);
    run.typed.fill(0);
    run.partial.fill(0);
    run.typed.length = 0;
    run.cells.length = 0;
    if (open === run) open = undefined;
  };
  const drop = (run: Run): void => {
    forget(run);
    options.reveal(run.id, NO_KEY);
  };
  const give = (run: Run): void => {
    options.reveal(run.id, Buffer.from(run.key));
    forget(run);
  };

  const offsetIn = (place: { row: number; col: number }): number => (row - place.row) * cols + col - place.col;
  const isShown = (run: Run): boolean =>
    run.missing === 0 &&
    run.partial.length === 0 &&
    run.typed.length > 0 &&
    run.place !== undefined &&
    offsetIn(run.place) === run.cells.length;

  const head = (): Run | undefined => {
    const [first] = waiting;
    return first === "enter" ? undefined : first;
  };
  /** The first run is decided now; what was typed right behind it begins where it ended. */
  const decide = (shown?: boolean): void => {
    const run = head();
    if (run === undefined) return;
    const { place } = run;
    const width = run.cells.length;
    waiting.shift();
    if (shown ?? isShown(run)) give(run);
    else drop(run);
    const next = head();
    if (next !== undefined && place !== undefined) next.place ??= { row: place.row, col: place.col + width };
  };
  /** All are decided: the screen is not what it was. */
  const decideAll = (): void => {
    decide();
    for (const run of waiting) if (run !== "enter") drop(run);
    waiting = [];
  };

  const shut = (run: Run): void => {
    if (open === run) open = undefined;
    run.closed = true;
    run.sinceMs = now();
    if (head() === run && isShown(run)) decide();
  };

  const lookAtTheClock = (): void => {
    const before = now() - MAX_AGE_MS;
    if (open !== undefined && open.sinceMs <= before) shut(open);
    while (waiting.length > 0) {
      const run = waiting.find((one) => one !== "enter");
      if (run === undefined || !run.closed || run.sinceMs > before) break;
      waiting = waiting.slice(waiting.indexOf(run) + 1);
      drop(run);
    }
  };
  const watchTheClock = (): void => {
    if (timer !== undefined || !waiting.some((one) => one !== "enter")) return;
    timer = setTimeout(() => {
      timer = undefined;
      lookAtTheClock();
      watchTheClock();
    }, MAX_AGE_MS);
    timer.unref();
  };

  // ---------------------------------------------------------------------------------------------------------- typed

  /** Whether, since the last run or line end that waits, a key was typed of which nobody knows what it brings about. */
  let behindKey = false;

  /** @param first nothing else was typed in the same piece before it. */
  const begin = (first: boolean): Run => {
    if (first && !waiting.some((one) => one !== "enter")) {
      waiting = [];
      behindKey = false;
    }
    const key = freshKey();
    const run: Run = {
      ...{ id: ++ids, key, cipher: createCipheriv("aes-256-ctr", key, ZERO_IV), sinceMs: now(), closed: false },
      ...{ bytes: 0, place: waiting.length === 0 ? { row, col } : undefined },
      ...{ typed: [], cells: [], shown: [], missing: 0, partial: [] },
    };
    open = run;
    waiting.push(run);
    watchTheClock();
    return run;
  };

  const add = (run: Run, point: number, width: number): void => {
    run.cells.push(run.typed.length, ...(width === 2 ? [-1] : []));
    run.typed.push(point);
    run.shown.push(false);
    run.missing++;
  };

  /** @returns whether the run can still be compared with what is shown. */
  const note = (run: Run, byte: number): boolean => {
    if (byte < 0x80) {
      if (run.partial.length > 0) return false;
      add(run, byte, 1);
      return true;
    }
    run.partial.push(byte);
    const [first = 0] = run.partial;
    const length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (run.partial.length < length) return true;
    const text = Buffer.from(run.partial).toString("utf8");
    const point = text.codePointAt(0) ?? 0xfffd;
    run.partial.fill(0);
    run.partial = [];
    const width = widthOf(point);
    if (point === 0xfffd || (point >= 0x80 && point < 0xa0) || width === 0) return false;
    add(run, point, width);
    return true;
  };

  const text = (bytes: Uint8Array, first: boolean, committed: (() => void) | undefined): void => {
    for (let at = 0; at < bytes.length;) {
      if (open !== undefined && open.bytes >= MAX_RUN_BYTES) shut(open);
      const run = open ?? begin(first && at === 0);
      const part = bytes.subarray(at, at + MAX_RUN_BYTES - run.bytes);
      at += part.length;
      run.bytes += part.length;
      options.hidden(run.id, run.cipher.update(part), at === bytes.length ? committed : undefined);
      if (!behindKey && waiting.length <= MAX_WAITING && part.every((byte) => note(run, byte))) continue;
      // It can never be compared, or nobody waits for so many.
      waiting = waiting.filter((one) => one !== run);
      drop(run);
    }
  };

  const control = (bytes: Uint8Array): void => {
    if (open !== undefined) shut(open);
    for (const byte of bytes) {
      behindKey = byte !== CR && byte !== LF;
      if (!behindKey && waiting.length < MAX_WAITING) waiting.push("enter");
    }
  };

  // --------------------------------------------------------------------------------------------------------- printed

  const unshow = (run: Run, from: number): void => {
    for (let at = Math.max(0, from); at < run.cells.length; at++) {
      const index = run.cells[at] ?? -1;
      if (index < 0 || run.shown[index] !== true) continue;
      run.shown[index] = false;
      run.missing++;
    }
  };
  const erased = (from: "cursor" | "everything"): void => {
    const run = head();
    if (run?.place !== undefined) unshow(run, from === "cursor" ? offsetIn(run.place) : 0);
  };

  const print = (point: number): void => {
    const width = point < 0x300 ? 1 : widthOf(point);
    if (width === 0) return;
    if (col + width > cols) {
      col = 0;
      if (absolute && row >= bottom) decideAll();
      else row++;
    }
    const run = head();
    if (run?.place === undefined) {
      col += width;
      return;
    }
    const offset = offsetIn(run.place);
    if (insert) unshow(run, offset);
    col += width;
    if (offset < 0 || offset >= run.cells.length) return;
    const index = run.cells[offset] ?? -1;
    const right = index >= 0 && run.typed[index] === point;
    if (right && run.shown[index] !== true) {
      run.shown[index] = true;
      run.missing--;
    } else if (!right) {
      if (run.closed) return decide(false);
      if (index >= 0 && run.shown[index] === true) {
        run.shown[index] = false;
        run.missing++;
      }
    }
    if (run.closed && isShown(run)) decide();
  };

  const lineFeed = (): void => {
    decide();
    if (!absolute || row < bottom) row++;
    if (waiting[0] === "enter") waiting.shift();
    const run = head();
    if (run !== undefined && run.place === undefined) run.place = { row, col: 0 };
  };

  const to = (newRow: number, newCol: number): void => {
    row = absolute ? Math.min(Math.max(newRow, 0), rows - 1) : newRow;
    col = Math.min(Math.max(newCol, 0), cols - 1);
  };
  const toAbsolute = (newRow: number): void => {
    if (!absolute) decideAll();
    absolute = true;
    to(newRow, col);
  };

  const csi = (final: number, params: readonly number[], marks: string): void => {
    const count = Math.max(1, params[0] ?? 1);
    const here = Math.min(col, cols - 1);
    switch (String.fromCharCode(final)) {
      case "A":
        return to(row - count, here);
      case "B":
      case "e":
        return to(row + count, here);
      case "C":
      case "a":
        return to(row, here + count);
      case "D":
        return to(row, here - count);
      case "E":
        return to(row + count, 0);
      case "F":
        return to(row - count, 0);
      case "G":
      case "`":
        return to(row, count - 1);
      case "d":
        return toAbsolute(count - 1);
      case "H":
      case "f":
        toAbsolute(count - 1);
        return to(row, Math.max(1, params[1] ?? 1) - 1);
      case "J":
      case "K":
        return marks === "" || marks === "?" ? erased((params[0] ?? 0) <= 0 ? "cursor" : "everything") : undefined;
      case "@":
      case "P":
      case "X":
        return marks === "" ? erased("cursor") : undefined;
      case "L":
      case "M":
      case "S":
      case "T":
        return decideAll();
      case "r":
        if (marks !== "") return;
        decideAll();
        bottom = Math.min(rows, (params[1] ?? -1) < 1 ? rows : (params[1] ?? rows)) - 1;
        absolute = true;
        return to(0, 0);
      case "s":
        if (marks === "") saved = { row, col, absolute };
        return;
      case "u":
        if (marks === "") restore();
        return;
      case "h":
      case "l":
        if (marks === "" && params.includes(4)) insert = final === 0x68;
        if (marks === "?" && params.some((mode) => mode === 47 || mode === 1047 || mode === 1049)) {
          decideAll();
          absolute = false;
        }
        return;
      default:
    }
  };

  const restore = (): void => {
    if (saved.absolute !== absolute) decideAll();
    ({ row, col, absolute } = saved);
  };

  const parser = createVtParser({
    print,
    control(byte) {
      if (byte === CR) col = 0;
      else if (byte === 8) col = Math.max(0, Math.min(col, cols - 1) - 1);
      else if (byte === 9) col = Math.min(cols - 1, (Math.floor(col / 8) + 1) * 8);
      else if (byte === LF || byte === 11 || byte === 12) lineFeed();
    },
    csi,
    escape(final, marks) {
      if (marks !== "") return;
      if (final === 0x37) saved = { row, col, absolute };
      else if (final === 0x38) restore();
      else if (final === 0x44) lineFeed();
      else if (final === 0x45) {
        col = 0;
        lineFeed();
      } else if (final === 0x4d) {
        decideAll();
        to(row - 1, col);
      } else if (final === 0x63) {
        decideAll();
        [row, col, absolute, insert, bottom] = [0, 0, true, false, rows - 1];
      }
    },
  });

  return {
    input(bytes, committed) {
      lookAtTheClock();
      if (bytes.length === 0) return options.clear(bytes, committed);
      const parts = keystrokes(bytes);
      let first = true;
      for (const [i, part] of parts.entries()) {
        const piece = bytes.subarray(part.start, part.end);
        const done = i === parts.length - 1 ? committed : undefined;
        if (part.text) text(piece, first, done);
        else {
          options.clear(piece, done);
          if (isPasteEdge(piece)) {
            if (open !== undefined) shut(open);
            continue; // it brings about nothing by itself
          }
          control(piece);
        }
        first = false;
      }
    },
    output(bytes) {
      lookAtTheClock();
      let rest = bytes;
      if (bytes.length > SKIP_BYTES && waiting.length === 0 && !parser.inside) {
        const from = bytes.lastIndexOf(LF);
        if (from > 0) {
          rest = bytes.subarray(from);
          [row, absolute] = [row + 1, false];
        }
      }
      parser.feed(rest);
    },
    resize(newCols, newRows) {
      decideAll();
      cols = Math.max(1, newCols);
      rows = Math.max(1, newRows);
      bottom = rows - 1;
      [absolute, col] = [false, Math.min(col, cols - 1)];
    },
    close(silent = false) {
      clearTimeout(timer);
      if (!silent) return decideAll();
      for (const run of waiting) if (run !== "enter") forget(run);
      waiting = [];
    },
  };
}

/** Keys that are not in use yet: drawn one by one they were most of the cost of a run. */
const drawn = { keys: NO_KEY, at: 0 };

function freshKey(): Buffer {
  if (drawn.at === drawn.keys.length) [drawn.keys, drawn.at] = [randomBytes(64 * KEY_BYTES), 0];
  const source = drawn.keys.subarray(drawn.at, drawn.at + KEY_BYTES);
  drawn.at += KEY_BYTES;
  const key = Buffer.alloc(KEY_BYTES);
  key.set(source);
  source.fill(0);
  return key;
}

/** The beginning or the end of a paste, as programs ask for it (bracketed paste, mode 2004). */
function isPasteEdge(bytes: Uint8Array): boolean {
  const text = Buffer.from(bytes).toString("latin1");
  return text === "\x1b[200~" || text === "\x1b[201~";
}
