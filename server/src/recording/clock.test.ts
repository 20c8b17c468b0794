import { join } from "node:path";
import { expect, inject, test } from "vitest";
import { append } from "../audit/append.ts";
import { RECORD } from "../targets/target.ts";
import { folderChunkStore } from "./chunk-store.ts";
import { exportAs } from "./export.ts";
import { openSealer } from "./sealer.ts";
import { readSession } from "./sealed.ts";
import { committed, KEY, testFolder, testJournal } from "./testing/journal.ts";
import { testStore } from "./testing/store.ts";
import { numbered } from "./testing/terminal.ts";

const HOUR_MS = 3_600_000;

test("a wall clock that is set back and forth during a recording costs no record, no order, no seal, and no interval below zero", async () => {
  await using base = await testStore(inject("pg18"));
  await using folder = await testFolder();
  const dir = join(folder.path, "journal");
  const chunks = folderChunkStore(join(folder.path, "chunks"));
  const start = Date.UTC(2026, 5, 1);
  const set = [0, -HOUR_MS, 24 * HOUR_MS, -48 * HOUR_MS, 0];
  let wallMs = start;
  const session = await base.session();
  await using journal = await testJournal(dir, { nowMs: () => wallMs });
  const sealer = await openSealer({
    ...{ dir, key: KEY, name: "nd_000000000001", opened: { id: journal.id, sequence: journal.openedSequence } },
    ...{ store: base.store, keyring: base.keyring, chunks, append },
    onError: (error) => {
      throw error;
    },
    clock: { now: () => new Date(wallMs), monotonicMs: () => performance.now() },
  });
  const recorder = journal.recorder(session);
  await committed(recorder, RECORD.terminalResize, '{"n":1,"cols":80,"rows":24}');
  const seen: number[] = [];
  for (const offset of set) {
    wallMs = start + offset;
    const from = performance.now();
    // The journal looks at the wall clock once a second.
    while (performance.now() - from < 1_100) await committed(recorder, RECORD.terminalOutput, numbered("tick\r\n"));
    await sealer.sealNow(session);
  }
  await committed(recorder, RECORD.sessionEnded, '{"cause":"client"}');
  await sealer.sealNow(session);
  let previousUs = 0;
  let back = 0;
  const reading = readSession(base.store, base.keyring, chunks, session);
  for (let item = await reading.next(); ; item = await reading.next()) {
    if (item.done === true) {
      expect(item.value.complete).toBe(true);
      break;
    }
    seen.push(item.value.seq);
    if (item.value.timeUs < previousUs) back++;
    previousUs = item.value.timeUs;
  }
  expect(seen).toEqual(seen.map((_, i) => i + 1));
  expect(back).toBeGreaterThanOrEqual(2); // the recording has the times that the wall clock showed
  let cast = "";
  for await (const piece of exportAs("asciicast", session, readSession(base.store, base.keyring, chunks, session)))
    cast += piece;
  const intervals = cast
    .trimEnd()
    .split("\n")
    .slice(1)
    .map((line) => (JSON.parse(line) as [number])[0]);
  expect(intervals.length).toBeGreaterThan(10);
  expect(intervals.filter((interval) => interval < 0)).toEqual([]);
  await sealer.close();
});
