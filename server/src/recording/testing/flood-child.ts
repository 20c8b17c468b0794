import { createCipheriv, createHash } from "node:crypto";
import { join } from "node:path";
import { append } from "../../audit/append.ts";
import { RECORD } from "../../targets/target.ts";
import { folderChunkStore } from "../chunk-store.ts";
import { exportAs } from "../export.ts";
import { openSealer } from "../sealer.ts";
import { readSession } from "../sealed.ts";
import { KEY, testJournal, turn } from "./journal.ts";
import { testStore } from "./store.ts";
import { numbered } from "./terminal.ts";

export interface FloodOrder {
  readonly cluster: { port: number; superuser: string; password: string };
  readonly folder: string;
  readonly bytes: number;
}

export interface FloodReport {
  readonly sent: string;
  readonly sealed: string;
  readonly sentBytes: number;
  readonly sealedBytes: number;
  readonly chunks: number;
  readonly castEvents: number;
  readonly peakRssMiB: number;
  readonly writeSeconds: number;
  readonly readSeconds: number;
  readonly problems: readonly string[];
}

const PIECE_BYTES = 32 << 10;
const MAX_PENDING_BYTES = 4 << 20; // where the gateway stops reading from the target

/** Bytes that no terminal wants: all values, torn escapes, torn UTF-8. The same at every run. */
function* garbage(bytes: number): Generator<Buffer> {
  const stream = createCipheriv("aes-128-ctr", Buffer.alloc(16, 1), Buffer.alloc(16, 2));
  const zeros = Buffer.alloc(PIECE_BYTES);
  for (let left = bytes, n = 0; left > 0; n++) {
    const piece = stream.update(zeros.subarray(0, Math.min(left, 1 + ((n * 7_919) % PIECE_BYTES))));
    if (n % 3 === 0) piece.write("\u001b[3", 0, "latin1");
    if (n % 5 === 0) piece[piece.length - 1] = 0xf0;
    left -= piece.length;
    yield piece;
  }
}

async function flood({ cluster, folder, bytes }: FloodOrder): Promise<FloodReport> {
  await using base = await testStore(cluster);
  const dir = join(folder, "journal");
  const chunks = folderChunkStore(join(folder, "chunks"));
  await using journal = await testJournal(dir, { fileBytes: 64 << 20 });
  const problems: string[] = [];
  const sealer = await openSealer({
    ...{ dir, key: KEY, name: "nd_000000000001", opened: { id: journal.id, sequence: journal.openedSequence } },
    ...{ store: base.store, keyring: base.keyring, chunks, append },
    onError: (error) => problems.push(`sealing: ${String(error)}`),
  });
  sealer.start();
  let peak = 0;
  const measure = (): void => {
    peak = Math.max(peak, process.memoryUsage.rss());
  };
  const began = performance.now();
  const session = await base.session();
  const recorder = journal.recorder(session);
  recorder.write(RECORD.terminalResize, JSON.stringify({ n: 1, cols: 80, rows: 24 }));
  const sent = createHash("sha256");
  let sentBytes = 0;
  for (const piece of garbage(bytes)) {
    sent.update(piece);
    sentBytes += piece.length;
    let done = false;
    recorder.write(RECORD.terminalOutput, numbered(piece), () => (done = true));
    if (sentBytes % 8 === 0) measure();
    while (recorder.pendingBytes > MAX_PENDING_BYTES && !done) await turn();
    if (journal.failures.length > 0) throw journal.failures[0] as Error;
  }
  recorder.write(RECORD.sessionEnded, '{"cause":"client"}');
  await journal.flush();
  await sealer.sealNow(session);
  const writeSeconds = (performance.now() - began) / 1000;
  measure();
  const readFrom = performance.now();
  const sealed = createHash("sha256");
  let sealedBytes = 0;
  for await (const { kind, payload } of readSession(base.store, base.keyring, chunks, session)) {
    if (kind !== RECORD.terminalOutput) continue;
    sealed.update(payload.subarray(4));
    sealedBytes += payload.length - 4;
    measure();
  }
  const readSeconds = (performance.now() - readFrom) / 1000;
  let castEvents = 0;
  for await (const piece of exportAs("asciicast", session, readSession(base.store, base.keyring, chunks, session))) {
    for (const line of piece.trimEnd().split("\n")) {
      JSON.parse(line); // each is whole, whatever bytes the terminal was given
      castEvents++;
    }
    measure();
  }
  await sealer.close();
  const { count } = await base.store
    .selectFrom("chunks")
    .select((eb) => eb.fn.countAll<number>().as("count"))
    .where("session", "=", session)
    .executeTakeFirstOrThrow();
  return {
    ...{
      sent: sent.digest("hex"),
      sealed: sealed.digest("hex"),
      sentBytes,
      sealedBytes,
      chunks: count,
      castEvents,
    },
    ...{ peakRssMiB: Math.round(peak / 2 ** 20), writeSeconds, readSeconds, problems },
  };
}

process.once("message", (order: FloodOrder) => {
  flood(order).then(
    (report) => {
      process.send?.(report);
      process.disconnect?.(); // after what was sent
    },
    (error: unknown) => {
      process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`);
      process.exit(1);
    },
  );
});
