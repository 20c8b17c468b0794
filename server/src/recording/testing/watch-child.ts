import { append } from "../../audit/append.ts";
import { exportAs } from "../export.ts";
import { readSession } from "../sealed.ts";
import type { Watched } from "../watch.ts";
import { turn } from "./journal.ts";
import { testStore } from "./store.ts";
import { numbered, openStudio } from "./terminal.ts";
import { RECORD } from "../../targets/target.ts";

export interface WatchOrder {
  readonly cluster: { port: number; superuser: string; password: string };
  readonly folder: string;
  readonly bytes: number;
}

export interface WatchReport {
  readonly frames: number;
  /** The last row of text that the watcher's screen showed. */
  readonly lastText: string;
  readonly lateText: string;
  readonly exportedCharacters: number;
  /** The most that the process had at any time. */
  readonly peakMiB: number;
}

const MIB = 2 ** 20;

/** One terminal that is written, watched at once, by one who never reads, late, and exported. */
async function play({ cluster, folder, bytes }: WatchOrder): Promise<WatchReport> {
  await using base = await testStore(cluster);
  await using studio = await openStudio(folder, base, { append });
  studio.sealer.start();
  const session = await base.session();
  const recorder = studio.journal.recorder(session);
  recorder.write(RECORD.terminalResize, JSON.stringify({ n: 1, cols: 80, rows: 24 }));
  const never = new AbortController().signal;
  let peak = 0;
  const measure = (): void => {
    peak = Math.max(peak, process.memoryUsage.rss());
  };
  const view = async (): Promise<{ frames: number; text: string }> => {
    let [frames, text] = [0, ""];
    for await (const item of studio.recordings.watch(session, never)) {
      if (item.what !== "screen") continue;
      frames++;
      text = lastRow(item) || text;
      measure();
    }
    return { frames, text };
  };
  const watching = view();
  const stalled = studio.recordings.watch(session, never)[Symbol.asyncIterator]();
  await stalled.next();
  let row = 0;
  for (let sent = 0; sent < bytes;) {
    let piece = "";
    while (piece.length < 32 << 10) piece += `\u001B[3${row % 8}mrow ${++row} ${"x".repeat(row % 60)}\u001B[0m\r\n`;
    sent += piece.length;
    recorder.write(RECORD.terminalOutput, numbered(piece));
    while (recorder.pendingBytes > 1 << 20) await turn();
    measure();
  }
  recorder.write(RECORD.terminalOutput, numbered("the end"));
  await new Promise<void>((resolve) => {
    recorder.write(RECORD.sessionEnded, '{"cause":"client"}', resolve);
  });
  const { frames, text } = await watching;
  await stalled.return?.(undefined);
  const late = await view();
  let exportedCharacters = 0;
  for await (const piece of exportAs(
    "asciicast",
    session,
    readSession(base.store, base.keyring, studio.chunks, session),
  )) {
    exportedCharacters += piece.length;
    measure();
  }
  return {
    ...{ frames, lastText: text, lateText: late.text, exportedCharacters },
    peakMiB: Math.round(peak / MIB),
  };
}

function lastRow(item: Extract<Watched, { what: "screen" }>): string {
  return (
    item.drawn.frame.lines
      .at(-1)
      ?.runs.map(({ text }) => text)
      .join("") ?? ""
  );
}

process.once("message", (order: WatchOrder) => {
  play(order).then(
    (report) => {
      process.send?.(report);
      process.disconnect?.();
    },
    (error: unknown) => {
      process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`);
      process.exit(1);
    },
  );
});
