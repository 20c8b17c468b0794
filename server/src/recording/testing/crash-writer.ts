import { writeSync } from "node:fs";
import { RECORD } from "../../targets/target.ts";
import { openJournal } from "../journal.ts";
import { KEY } from "./journal.ts";

// Writes records of eight sessions for ever, and prints `session seq` once each is acknowledged, until it is killed.
// With a mirror, its folder is `dir` with `-mirror` behind it.
const [dir, mode, copies, ...sessions] = process.argv.slice(2) as [string, "durable" | "written", string, ...string[]];
const journal = await openJournal({
  dir,
  mirror: copies === "mirrored" ? `${dir}-mirror` : undefined,
  key: KEY,
  mode,
  fileBytes: 256 << 10,
  onFailure: (error) => writeSync(2, `${error.message}\n`),
});
for (const session of sessions) {
  const recorder = journal.recorder(session);
  let seq = 0;
  const go = (): void => {
    const mine = ++seq;
    const payload = Buffer.alloc(mine % 700, mine & 255);
    recorder.write(RECORD.data, payload, () => {
      writeSync(1, `${session} ${mine}\n`); // at once: what was promised must be seen even if the next instruction never comes
      go();
    });
  };
  go();
}
