import { startTyping } from "../server/src/targets/ssh/fixtures/typing.ts";
import { createScreenState, farewell, notice, titleBack } from "../server/src/targets/ssh/screen-state.ts";
import type { Random } from "./random.ts";

/** Typed and printed pieces in isTyped, each behind its length. */
export const seeds: readonly Uint8Array[] = [
  "\u0003ls \u0003ls \u0001\r\u0002\r\n\u0000\u0002$ ",
  "\u0008hunter2\r\u000e\r\nPassword: \r\n\u0003x\u001B[\u0004\u001B[2J",
  "\u0002\u001B[A\u0008\u001B[1;5Hab\u0003é漢\u0009\u001B[?1049h\u001B7",
].map((text) => Buffer.from(text));

export const words: readonly string[] = [
  ...["\r", "\r\n", "\b", "\u001B[", "\u001B[K", "\u001B[H", "\u001B[1@", "\u001B[4h", "\u001B7", "\u001B8", "\u001Bc"],
  ...["\u001B[?1049h", "\u001B[?1049l", "\u001B[200~", "\u001B[201~", "\u001B]2;", "\u0007", "\u009B", "\u001BP", "漢"],
];

/** Whatever is typed and printed: nothing is lost, changed or left undecided, and words never become part of a sequence. */
export async function one(input: Uint8Array, random: Random): Promise<void> {
  const typing = startTyping({ cols: 1 + random.int(100), rows: 1 + random.int(40) });
  const state = createScreenState();
  const typed: Uint8Array[] = [];
  let commits = 0;
  let isTyped = true;
  for (let at = 0; at < input.length;) {
    const end = at + 1 + (input[at] as number);
    const piece = input.subarray(at + 1, end);
    at = end;
    if (isTyped) {
      typed.push(piece);
      typing.echo.input(piece, () => commits++);
    } else {
      typing.echo.output(piece);
      state.feed(piece);
    }
    isTyped = !isTyped;
    if (random.int(10) === 0) typing.clock.ms += random.int(15_000);
    if (random.int(20) === 0) typing.echo.resize(random.int(120), random.int(50));
    for (const bytes of [notice("words", state), titleBack(state)])
      if (bytes.includes("words") && state.midSequence && bytes[0] !== 0x18) throw new Error("words within a sequence");
    if (random.int(20) === 0) farewell("words", state);
  }
  typing.echo.close();
  if (commits !== typed.length) throw new Error(`${commits} commits of ${typed.length} pieces`);
  if (typing.undecided() > 0) throw new Error("a run is undecided after the end");
  const was = Buffer.concat(typed);
  const read = typing.readBytes();
  if (read.length !== was.length) throw new Error(`${was.length} bytes typed, ${read.length} recorded`);
  for (const [i, byte] of read.entries()) if (byte !== 0 && byte !== was[i]) throw new Error("read as another byte");
  await Promise.resolve();
}
