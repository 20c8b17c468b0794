import { openJournal as openRealJournal, type Journal, type JournalOptions } from "../server/src/recording/journal.ts";
import { RECORD } from "../server/src/targets/target.ts";

/** A journal that keeps the beginning and the end of a session and lets everything between pass unrecorded, at once. */
export async function openJournal(options: JournalOptions): Promise<Journal> {
  const journal = await openRealJournal(options);
  return {
    ...journal,
    recorder(session) {
      const recorder = journal.recorder(session);
      return {
        write(kind, payload, committed) {
          if (kind === RECORD.sessionStarted || kind === RECORD.sessionEnded) recorder.write(kind, payload, committed);
          else if (committed !== undefined) queueMicrotask(committed);
        },
        get pendingBytes() {
          return recorder.pendingBytes;
        },
      };
    },
  };
}
