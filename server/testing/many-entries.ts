import { join } from "node:path";
import { verifyFolder } from "@glasskey/verify";
import { createLog } from "../src/audit/fixtures/log.ts";
import { exportLog } from "../src/audit/export.ts";
import { createLogReader } from "../src/audit/read.ts";
import type { SharedCluster } from "./global.ts";

export interface ManyEntriesResult {
  readonly entries: number;
  readonly sequenceSeconds: number;
  readonly exportSeconds: number;
  readonly verifySeconds: number;
  readonly peakRssMiB: number;
  readonly problems: readonly string[];
}

const BATCH = 50_000;
/** No more than this waits for the sequencer: a queue of millions is another test. */
const MAX_QUEUED = 200_000;

/** A log of that many entries: sequenced, signed, exported, and verified from the folder alone. */
export async function manyEntries(
  cluster: SharedCluster,
  options: { readonly entries: number; readonly deadlineMs?: number; say?(line: string): void },
): Promise<ManyEntriesResult> {
  const { deadlineMs = Number.POSITIVE_INFINITY, say = () => {} } = options;
  const log = await createLog(cluster);
  const problems: string[] = [];
  let peak = 0;
  const timer = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 200);
  try {
    const reader = createLogReader(log.store);
    const sequencer = await log.sequence();
    let began = performance.now();
    let queued = 0;
    let done = 0;
    while (done < queued || (queued < options.entries && performance.now() < deadlineMs)) {
      const count = Math.min(BATCH, options.entries - queued);
      if (count > 0 && queued - done < MAX_QUEUED && performance.now() < deadlineMs) {
        // Canonical JSON, as append() makes it, by the store itself: making the events is not what is looked at.
        await log.query(
          `insert into log_queue (entry)
           select convert_to('{"actor":"pe_0123456789ab","at":"2026-01-01T00:00:00.000Z","data":{"n":' || n || '},"type":"login.succeeded"}', 'UTF8')
           from generate_series($1::bigint, $2::bigint) n`,
          [queued, queued + count - 1],
        );
        queued += count;
        if (queued % 1_000_000 === 0) say(`${queued} entries queued after ${seconds(began)} s`);
      }
      const { rows } = await log.query("select size from log_head");
      done = Number(rows[0]?.["size"]);
      if (sequencer.broken.length > 0) throw sequencer.broken[0] as Error;
      if (done < queued) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const entries = await reader.settled(60_000);
    const sequenceSeconds = seconds(began);
    say(`${entries} entries sequenced in ${sequenceSeconds} s`);
    const folder = join(log.folder, "export");
    began = performance.now();
    const exported = await exportLog({ store: log.store, folder, vkey: log.signer.vkey });
    const exportSeconds = seconds(began);
    say(`exported in ${exportSeconds} s`);
    began = performance.now();
    const report = await verifyFolder({ folder, vkey: log.signer.vkey });
    const verifySeconds = seconds(began);
    if (!report.ok) problems.push(...report.problems.slice(0, 5).map(({ where, what }) => `${where}: ${what}`));
    if (report.size !== entries || exported.size !== entries || entries !== queued)
      problems.push(
        `${queued} entries were queued, ${entries} sequenced, ${exported.size} exported, ${report.size} verified`,
      );
    return { entries, sequenceSeconds, exportSeconds, verifySeconds, peakRssMiB: Math.round(peak / 2 ** 20), problems };
  } finally {
    clearInterval(timer);
    await log.dispose();
  }
}

function seconds(fromMs: number): number {
  return Math.round((performance.now() - fromMs) / 100) / 10;
}
