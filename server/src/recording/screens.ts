import { RECORD } from "../targets/target.ts";
import { contentOf, malformed, numberedPayload, type StoredRecord } from "./record.ts";
import { clamped, DEFAULT_SIZE, openScreen, type Screen, type Size } from "./screen.ts";

/** A terminal of a recording, by the number of the statement that opened it. */
export interface Terminal {
  readonly n: number;
  readonly screen: Screen;
}

export interface Screens {
  readonly size: number;
  /** Puts a record of output or of a size on its terminal's screen. @throws GlassError `integrity` for a malformed one. */
  apply(record: StoredRecord): Promise<Terminal>;
  /** That terminal is over; without a number, all are. */
  close(n?: number): void;
  /** Before a screen is gone, also where it made room for another one. */
  onClose: (terminal: Terminal) => void;
}

/** Open at a time. Of a session with more terminals, the one that was quiet for longest is begun anew when it goes on. */
const MAX_SCREENS = 8;
const MAX_SIZES = 1_000;

/** Which terminal a record of output or of a size belongs to. @throws GlassError `integrity` for a malformed one. */
export function terminalNumber(record: StoredRecord): number {
  if (record.kind !== RECORD.terminalResize) return numberedPayload(record).n;
  const { n } = contentOf(record);
  if (typeof n !== "number") throw malformed(record, "has no statement number");
  return n;
}

/** @param lines whether the lines that were shown are wanted ({@link Screen.shown}). */
export function createScreens(lines: boolean): Screens {
  /** The one that was written to last is at the end. */
  const open = new Map<number, Terminal>();
  const sizes = new Map<number, Size>();

  const close = (terminal: Terminal): void => {
    open.delete(terminal.n);
    screens.onClose(terminal);
    terminal.screen.close();
  };

  const terminalOf = (n: number): Terminal => {
    const there = open.get(n);
    const [oldest] = open.values();
    if (there === undefined && open.size >= MAX_SCREENS && oldest !== undefined) close(oldest);
    const terminal = there ?? { n, screen: openScreen(sizes.get(n) ?? DEFAULT_SIZE, lines) };
    open.delete(n);
    open.set(n, terminal);
    return terminal;
  };

  const screens: Screens = {
    get size() {
      return open.size;
    },
    async apply(record) {
      if (record.kind === RECORD.terminalResize) {
        const of = terminalNumber(record);
        const { cols, rows } = contentOf(record);
        const size = clamped({ cols, rows });
        if (sizes.size < MAX_SIZES || sizes.has(of)) sizes.set(of, size);
        const there = open.get(of);
        there?.screen.resize(size);
        return terminalOf(of);
      }
      const { n, bytes } = numberedPayload(record);
      const terminal = terminalOf(n);
      await terminal.screen.write(bytes, record.seq);
      return terminal;
    },
    close(n) {
      for (const terminal of [...open.values()]) if (n === undefined || terminal.n === n) close(terminal);
    },
    onClose: () => {},
  };
  return screens;
}
