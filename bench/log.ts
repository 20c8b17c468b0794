import { createHash, generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { createSigner, tilePath, verifyFolder, type NoteSigner } from "@glasskey/verify";
import { append, encodeEvent, type LogEvent } from "../server/src/audit/append.ts";
import { exportLog } from "../server/src/audit/export.ts";
import { openLogKeys } from "../server/src/audit/keys.ts";
import { createLogReader } from "../server/src/audit/read.ts";
import { startSequencer } from "../server/src/audit/sequencer.ts";
import { startCluster } from "../server/src/store/cluster.ts";
import { openStore, type Store } from "../server/src/store/database.ts";
import { migrate } from "../server/src/store/migrate.ts";
import { result, type BenchContext, type Result } from "./result.ts";

export const summary = "the audit log: entries integrated and signed, entries verified";

const ENTRIES = 100_000;
const APPENDERS = 16;
const APPENDED = 6_000;
const ROUNDS = 3;
const PATIENCE_MS = 120_000;

/** Measures on a PostgreSQL of its own, with fsync on. */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  const cluster = await startCluster({ dataDir: join(folder, "log-store"), superuser: "glasskey" });
  const address = {
    ...{ host: "127.0.0.1", port: cluster.port, user: cluster.superuser, password: cluster.password },
    database: "postgres",
  };
  const problems: unknown[] = [];
  const store = openStore(address);
  try {
    await migrate(address);
    const reader = createLogReader(store);
    const signers = new Map<number, NoteSigner>();
    const signerOf = (generation: number): NoteSigner => {
      const signer =
        signers.get(generation) ?? createSigner("glasskey.bench/log", generateKeyPairSync("ed25519").privateKey);
      signers.set(generation, signer);
      return signer;
    };
    const signer = signerOf(1);
    await openLogKeys(store, signerOf);
    const sequence = (): ReturnType<typeof startSequencer> =>
      startSequencer({
        ...{ address, signerOf, headFile: join(folder, "log-head") },
        onProblem: (error) => problems.push(error),
        onIntegrityError: (error) => problems.push(error),
      });

    progress(`log: ${ENTRIES} committed events wait, then a sequencer starts`);
    await fillQueue(store, ENTRIES);
    signal.throwIfAborted();
    const integrateBegun = performance.now();
    const sequencer = await sequence();
    let [integrateMs, appendMs] = [0, 0];
    try {
      await reader.settled(PATIENCE_MS);
      integrateMs = performance.now() - integrateBegun;

      progress(`log: ${APPENDERS} appenders, one transaction an event, until all are signed`);
      signal.throwIfAborted();
      const appendBegun = performance.now();
      await Promise.all(Array.from({ length: APPENDERS }, (_, a) => appendMany(store, a, APPENDED / APPENDERS)));
      await reader.settled(PATIENCE_MS);
      appendMs = performance.now() - appendBegun;
    } finally {
      await sequencer.stop();
    }
    const gapMs = await widestGap(store);

    progress("log: the export is verified");
    const exported = join(folder, "log-export");
    await mkdir(exported, { recursive: true });
    await exportLog({ store, folder: exported, vkey: signer.vkey });
    const size = ENTRIES + APPENDED;
    const [verifyMs, naiveMs]: [number[], number[]] = [[], []];
    for (let round = 0; round < ROUNDS; round += 1) {
      signal.throwIfAborted();
      const begun = performance.now();
      const report = await verifyFolder({ folder: exported, vkey: signer.vkey });
      verifyMs.push(performance.now() - begun);
      const naiveBegun = performance.now();
      const root = naiveRoot(readEntries(exported, size).map(naiveLeaf)).toString("base64");
      naiveMs.push(performance.now() - naiveBegun);
      if (!report.ok || report.root !== root || report.size !== size)
        throw new Error("the benchmark's log does not verify");
    }
    if (problems.length > 0) throw new AggregateError(problems, "the sequencer had problems");
    return [
      result("entries integrated and signed, backlog", "entries/s", perSecond(ENTRIES, integrateMs), {
        goal: { atLeast: 5_000 },
      }),
      result(`entries committed one by one by ${APPENDERS}, then signed`, "entries/s", perSecond(APPENDED, appendMs)),
      result("the longest from one checkpoint to the next, in both of these", "ms", gapMs, { goal: { atMost: 1_000 } }),
      result("verify: every bundle, tile and checkpoint", "entries/s", perSecond(size, Math.min(...verifyMs)), {
        peer: { name: "naive recomputation of the root", value: perSecond(size, Math.min(...naiveMs)) },
        goal: { atLeast: 300_000 },
      }),
    ];
  } finally {
    await store.destroy();
    await cluster.stop();
  }
}

/** While there was news all the time: between checkpoints of one run, by the store's clock. */
async function widestGap(store: Store): Promise<number> {
  const rows = await store.selectFrom("log_checkpoints").select(["size", "signed_at"]).orderBy("size").execute();
  const gaps = rows.slice(1).map((row, i) => {
    const before = rows[i];
    if (before === undefined || before.size === ENTRIES) return 0; // between the two runs there was none
    return row.signed_at.getTime() - before.signed_at.getTime();
  });
  return Math.max(...gaps);
}

function eventOf(n: number): LogEvent {
  return {
    ...{ type: "session.closed", at: new Date(1_767_225_600_000 + n), actor: "pe_0123456789ab" },
    ...{ grant: "gr_0123456789ab", session: "se_0123456789ab", target: "orders-prod", playbook: "orders-db-write" },
    data: { cause: "client", statements: n % 100, refused: 0, bytesIn: n * 7, bytesOut: n * 131 },
  };
}

async function fillQueue(store: Store, count: number): Promise<void> {
  for (let from = 0; from < count; from += 5_000) {
    const rows = Array.from({ length: 5_000 }, (_, i) => ({ entry: encodeEvent(eventOf(from + i)), grant_id: null }));
    await store.insertInto("log_queue").values(rows).execute();
  }
}

async function appendMany(store: Store, appender: number, count: number): Promise<void> {
  for (let i = 0; i < count; i += 1) {
    await store.transaction().execute((trx) => append(trx, eventOf(appender * count + i)));
  }
}

/** What somebody would write from the RFC's text: every entry in memory, a hash object for each node. */
function readEntries(folder: string, size: number): Buffer[] {
  const entries: Buffer[] = [];
  for (let index = 0; index * 256 < size; index += 1) {
    const name = tilePath({ level: "entries", index, width: Math.min(256, size - index * 256) });
    for (let rest = readFileSync(join(folder, name)); rest.length > 0;) {
      const length = rest.readUInt16BE(0);
      entries.push(rest.subarray(2, 2 + length));
      rest = rest.subarray(2 + length);
    }
  }
  return entries;
}

function naiveLeaf(entry: Buffer): Buffer {
  return createHash("sha256").update(Uint8Array.of(0)).update(entry).digest();
}

function naiveRoot(leaves: readonly Buffer[]): Buffer {
  const [first] = leaves;
  if (first === undefined) return createHash("sha256").digest();
  if (leaves.length === 1) return first;
  let split = 1;
  while (split * 2 < leaves.length) split *= 2;
  const [left, right] = [naiveRoot(leaves.slice(0, split)), naiveRoot(leaves.slice(split))];
  return createHash("sha256").update(Uint8Array.of(1)).update(left).update(right).digest();
}

function perSecond(count: number, ms: number): number {
  return Math.round((count / ms) * 1_000);
}
