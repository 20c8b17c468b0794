/** A part of what was typed, by its place in the bytes: text, or control characters and sequences of the keyboard. */
export interface Keystrokes {
  readonly text: boolean;
  readonly start: number;
  readonly end: number;
}

const ESC = 0x1b;
const MAX_CSI_BYTES = 32;
/**
 * CSI sequences that stand for a key without text, an answer of the terminal, or the edge of a paste. Not among them are
 * those that carry typed text: `CSI code u` and `CSI 27;mod;code ~` (keys as codes), `CSI … _` (Windows). They are text here.
 */
const KEY_FINALS = new Set(Array.from("ABCDEFGHIMOPQRSZcmnty~", (final) => final.charCodeAt(0)));

/**
 * Takes apart what a terminal sent. A sequence counts as one only if it came in one piece and is known: all else that can be
 * printed is text, so that a password is never taken for a part of a sequence, however it is typed.
 */
export function keystrokes(bytes: Uint8Array): Keystrokes[] {
  const found: Keystrokes[] = [];
  const put = (text: boolean, start: number, end: number): void => {
    const last = found.at(-1);
    if (last?.text === text) found[found.length - 1] = { text, start: last.start, end };
    else found.push({ text, start, end });
  };
  for (let at = 0; at < bytes.length;) {
    const byte = bytes[at] as number;
    if (byte === ESC) {
      const end = sequenceEnd(bytes, at);
      put(false, at, end);
      at = end;
    } else {
      put(byte >= 0x20 && byte !== 0x7f, at, at + 1);
      at++;
    }
  }
  return found;
}

/** The end of the sequence that begins at `at`; of ESC alone where none is known. */
function sequenceEnd(bytes: Uint8Array, at: number): number {
  const next = bytes[at + 1];
  if (next === 0x5b) return csiEnd(bytes, at);
  const third = bytes[at + 2];
  // SS3: cursor and function keys; those of the keypad are digits.
  if (next === 0x4f && third !== undefined && "ABCDHFMPQRS".includes(String.fromCharCode(third))) return at + 3;
  return at + 1; // Alt and a key is that too: it may as well be ESC and the first character of a password
}

function csiEnd(bytes: Uint8Array, at: number): number {
  for (let i = at + 2; i < Math.min(bytes.length, at + MAX_CSI_BYTES); i++) {
    const byte = bytes[i] as number;
    if (byte >= 0x20 && byte < 0x40) continue;
    const first = String.fromCharCode(bytes[at + 2] ?? 0, bytes[at + 3] ?? 0, bytes[at + 4] ?? 0);
    return KEY_FINALS.has(byte) && first !== "27;" ? i + 1 : at + 1;
  }
  return at + 1;
}
