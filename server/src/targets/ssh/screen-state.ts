import { createVtParser } from "./vt.ts";

/**
 * What has to be known of a terminal to speak in it without spoiling what stands there, from the program's output alone.
 * Constant memory, linear time; sequences may be cut anywhere.
 */
export interface ScreenState {
  /** Every byte that the user's terminal is sent from the program, in order. */
  feed(bytes: Uint8Array): void;
  /** A full-screen program runs: modes 47, 1047 or 1049 of xterm. */
  readonly alternate: boolean;
  /** Whether the cursor is, as far as can be told, at the beginning of a line. */
  readonly atLineStart: boolean;
  /** The output stands in the middle of an escape sequence or of a character: what can wait for more of it should. */
  readonly midSequence: boolean;
  /** The window's title that the program set last; undefined: none, or one too long to be remembered. */
  readonly title: string | undefined;
  /** Modes of the terminal, of those that {@link farewell} puts back, that the program switched on. */
  readonly modes: ReadonlySet<number>;
  /** Whether {@link notice} has put the title away. */
  titleTaken: boolean;
}

/** The alternate screen, in the three ways there are. */
const ALTERNATE = [47, 1047, 1049];
/** What annoys in a shell when it stays on: cursor keys, mouse, focus, paste; and a cursor that is hidden. */
const LEFT_ON = [1, 9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004];
const CURSOR_SHOWN = 25;
const TRACKED: ReadonlySet<number> = new Set([...ALTERNATE, ...LEFT_ON]);
const ON = 0x68;
const OFF = 0x6c;

export function createScreenState(): ScreenState {
  const modes = new Set<number>();
  let atLineStart = true;
  let title: string | undefined;

  const parser = createVtParser({
    print() {
      atLineStart = false;
    },
    control(byte) {
      if (byte === 13) atLineStart = true;
      else if (byte === 9) atLineStart = false;
    },
    csi(final, params, marks) {
      if (marks === "?" && (final === ON || final === OFF)) {
        for (const mode of params) {
          if (mode === CURSOR_SHOWN) setMode(modes, -CURSOR_SHOWN, final === OFF);
          else if (TRACKED.has(mode)) setMode(modes, mode, final === ON);
          if (ALTERNATE.includes(mode)) atLineStart = false;
        }
        return;
      }
      if (marks !== "") return;
      const letter = String.fromCharCode(final);
      if (letter === "H" || letter === "f") atLineStart = (params[1] ?? 1) <= 1;
      else if (letter === "G" || letter === "`") atLineStart = (params[0] ?? 1) <= 1;
      else if (letter === "E" || letter === "F") atLineStart = true;
      else if ("CDau".includes(letter)) atLineStart = false;
    },
    escape(final, marks) {
      if (marks !== "") return;
      if (final === 0x63) {
        modes.clear();
        [atLineStart, title] = [true, undefined];
      } else if (final === 0x45) atLineStart = true;
      else if (final === 0x38) atLineStart = false;
    },
    osc(text) {
      const [, words] = /^[02];(.*)$/s.exec(text ?? "") ?? [];
      if (text === undefined || words !== undefined) title = words;
    },
  });

  return {
    feed: parser.feed,
    get alternate() {
      return ALTERNATE.some((mode) => modes.has(mode));
    },
    get atLineStart() {
      return atLineStart;
    },
    get midSequence() {
      return parser.inside;
    },
    get title() {
      return title;
    },
    modes,
    titleTaken: false,
  };
}

function setMode(modes: Set<number>, mode: number, on: boolean): void {
  if (on) modes.add(mode);
  else modes.delete(mode);
}

/** CAN breaks off a sequence that the program began, so that the words do not become a part of it. */
const CANCEL = "\x18";

/**
 * The bytes that say something to the person without spoiling the screen: a line of its own in the normal one; in the
 * alternate one, where it would end up in the middle of the program's text, the window's title and a bell. The title that
 * was there is put on the terminal's own stack (xterm, `CSI 22;2t`), and {@link titleBack} takes it from there.
 */
export function notice(text: string, state: ScreenState): Buffer {
  const words = plain(text);
  const cancel = state.midSequence ? CANCEL : "";
  if (!state.alternate) return Buffer.from(`${cancel}${state.atLineStart ? "" : "\r\n"}${words}\r\n`);
  const push = state.titleTaken ? "" : "\x1b[22;2t";
  state.titleTaken = true;
  return Buffer.from(`${cancel}${push}\x1b]2;${words}\x1b\\\x07`);
}

/** To be sent once the full-screen program is gone, after its own last output: what puts the title back. Empty: nothing is owed. */
export function titleBack(state: ScreenState): Buffer {
  if (!state.titleTaken || state.alternate) return Buffer.alloc(0);
  state.titleTaken = false;
  return Buffer.from("\x1b[23;2t");
}

/**
 * The last words on a terminal. A full-screen program will not tidy up any more, so its screen is left, and what it switched
 * on in the terminal is switched off; then the reason stands on a line of its own.
 */
export function farewell(text: string, state: ScreenState): Buffer {
  const left = [...ALTERNATE, ...LEFT_ON].filter((mode) => state.modes.has(mode)).map((mode) => `\x1b[?${mode}l`);
  const cursor = state.modes.has(-CURSOR_SHOWN) ? "\x1b[?25h" : "";
  const title = state.titleTaken ? "\x1b[23;2t" : "";
  state.titleTaken = false;
  const reset = `${left.join("")}${cursor}${title}\x1b[0m`;
  return Buffer.from(`${state.midSequence ? CANCEL : ""}${reset}\r\n${plain(text)}\r\n`);
}

/** Words only: nothing in them may drive the terminal. */
function plain(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ");
}
