/**
 * A parser for what programs send to a terminal: ECMA-48 control functions as xterm reads them
 * (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html), in UTF-8. It takes bytes as they come, cut anywhere, in constant
 * memory and linear time, and does nothing but tell what they mean. Input is untrusted.
 */
export interface VtHandlers {
  /** A character that takes its place on the screen, as a code point; U+FFFD for bytes that are none. */
  print(codePoint: number): void;
  /** A C0 control character, also where it stands within a sequence. */
  control(byte: number): void;
  /** `CSI marks params final`: `marks` has what stands before and behind the numbers, such as `?`. A missing number is -1. */
  csi(final: number, params: readonly number[], marks: string): void;
  /** `ESC marks final`. */
  escape(final: number, marks: string): void;
  /** `OSC text ST`; undefined where it is longer than 256 bytes. */
  osc?(text: string | undefined): void;
}

export interface VtParser {
  feed(bytes: Uint8Array): void;
  /** Whether the bytes so far end within a sequence or a character. */
  readonly inside: boolean;
}

const GROUND = 0;
const ESCAPE = 1;
const CSI = 2;
const STRING = 3; // OSC, DCS, SOS, PM, APC
const STRING_ESCAPE = 4;

const ESC = 0x1b;
const MAX_PARAMS = 16;
const MAX_NUMBER = 65_535;
const MAX_MARKS = 4;
const MAX_OSC_BYTES = 256;

export function createVtParser(handlers: VtHandlers): VtParser {
  let state: number = GROUND;
  let params: number[] = [];
  let marks = "";
  let osc: number[] | undefined; // undefined: another kind of string
  let oscLong = false;
  let point = 0;
  let missing = 0; // bytes of a character that are to come
  let least = 0;

  const beginCsi = (): void => {
    state = CSI;
    params = [];
    marks = "";
  };
  const beginString = (isOsc: boolean): void => {
    state = STRING;
    osc = isOsc ? [] : undefined;
    oscLong = false;
  };
  const endString = (): void => {
    state = GROUND;
    if (osc !== undefined) handlers.osc?.(oscLong ? undefined : Buffer.from(osc).toString("utf8"));
    osc = undefined;
  };

  const character = (codePoint: number): void => {
    if (codePoint >= 0x80 && codePoint < 0xa0) {
      if (codePoint === 0x9b) beginCsi();
      else if (codePoint === 0x9d) beginString(true);
      else if (codePoint === 0x90 || codePoint === 0x98 || codePoint === 0x9e || codePoint === 0x9f) beginString(false);
      return;
    }
    handlers.print(codePoint);
  };

  /** @returns whether the byte was used. */
  const utf8 = (byte: number): boolean => {
    if (missing > 0) {
      if ((byte & 0xc0) !== 0x80) {
        missing = 0;
        handlers.print(0xfffd);
        return false;
      }
      point = (point << 6) | (byte & 0x3f);
      if (--missing > 0) return true;
      const valid = point >= least && point <= 0x10ffff && !(point >= 0xd800 && point < 0xe000);
      character(valid ? point : 0xfffd);
      return true;
    }
    if (byte < 0x80) return false;
    [missing, point, least] =
      byte >= 0xf0 && byte < 0xf8
        ? [3, byte & 0x07, 0x10000]
        : byte >= 0xe0 && byte < 0xf0
          ? [2, byte & 0x0f, 0x800]
          : byte >= 0xc2 && byte < 0xe0
            ? [1, byte & 0x1f, 0x80]
            : [0, 0, 0];
    if (missing === 0) handlers.print(0xfffd);
    return true;
  };

  const escape = (byte: number): void => {
    if (byte >= 0x20 && byte < 0x30) {
      if (marks.length < MAX_MARKS) marks += String.fromCharCode(byte);
    } else if (marks === "" && byte === 0x5b) beginCsi();
    else if (marks === "" && byte === 0x5d) beginString(true);
    else if (marks === "" && (byte === 0x50 || byte === 0x58 || byte === 0x5e || byte === 0x5f)) beginString(false);
    else {
      state = GROUND;
      if (byte < 0x7f) handlers.escape(byte, marks);
    }
  };

  const csi = (byte: number): void => {
    if (byte >= 0x30 && byte <= 0x39) {
      if (params.length === 0) params.push(-1);
      const last = params.length - 1;
      const number = Math.max(0, params[last] ?? 0) * 10 + byte - 0x30;
      params[last] = Math.min(number, MAX_NUMBER);
    } else if (byte === 0x3b || byte === 0x3a) {
      if (params.length === 0) params.push(-1);
      if (params.length < MAX_PARAMS) params.push(-1);
    } else if (byte < 0x40) {
      if (marks.length < MAX_MARKS) marks += String.fromCharCode(byte);
    } else {
      state = GROUND;
      if (byte < 0x7f) handlers.csi(byte, params, marks);
    }
  };

  const string = (byte: number): void => {
    if (state === STRING_ESCAPE && byte !== ESC) {
      endString();
      if (byte !== 0x5c) {
        state = ESCAPE;
        marks = "";
        escape(byte);
      }
    } else if (byte === ESC) state = STRING_ESCAPE;
    else if (byte === 0x07) endString();
    else if (osc !== undefined) {
      if (osc.length < MAX_OSC_BYTES) osc.push(byte);
      else oscLong = true;
    }
  };

  return {
    feed(bytes) {
      for (const byte of bytes) {
        if (state === GROUND) {
          if (byte >= 0x20 && byte < 0x7f && missing === 0) {
            handlers.print(byte);
            continue;
          }
          if (utf8(byte)) continue;
          if (byte >= 0x20 && byte !== 0x7f) {
            handlers.print(byte);
            continue;
          }
        }
        if (byte === 0x18 || byte === 0x1a) {
          state = GROUND; // CAN and SUB break off what was begun
          osc = undefined;
        } else if (state >= STRING) string(byte);
        else if (byte === ESC) {
          state = ESCAPE;
          marks = "";
        } else if (byte < 0x20) handlers.control(byte);
        else if (byte === 0x7f) continue;
        else if (state === ESCAPE) escape(byte);
        else csi(byte);
      }
    },
    get inside() {
      return state !== GROUND || missing > 0;
    },
  };
}

/** Zero-width marks, and characters two cells wide, of what is usual; a terminal may see a rare one differently. */
const ZERO_WIDTH = /^[\p{Mn}\p{Me}\p{Cf}\u1160-\u11ff]$/u;

/** The cells that a character takes: 0, 1 or 2. */
export function widthOf(codePoint: number): number {
  if (codePoint < 0x300) return codePoint === 0xad ? 0 : 1;
  if (ZERO_WIDTH.test(String.fromCodePoint(codePoint))) return 0;
  return isWide(codePoint) ? 2 : 1;
}

function isWide(point: number): boolean {
  return (
    (point >= 0x1100 && point <= 0x115f) ||
    (point >= 0x2e80 && point <= 0x303e) ||
    (point >= 0x3041 && point <= 0xa4cf) ||
    (point >= 0xa960 && point <= 0xa97f) ||
    (point >= 0xac00 && point <= 0xd7a3) ||
    (point >= 0xf900 && point <= 0xfaff) ||
    (point >= 0xfe30 && point <= 0xfe6f) ||
    (point >= 0xff00 && point <= 0xff60) ||
    (point >= 0xffe0 && point <= 0xffe6) ||
    (point >= 0x1f300 && point <= 0x1f64f) ||
    (point >= 0x1f680 && point <= 0x1f6ff) ||
    (point >= 0x1f900 && point <= 0x1f9ff) ||
    (point >= 0x20000 && point <= 0x3fffd)
  );
}
