import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type pg from "pg";
import { openChunk } from "../src/recording/chunk.ts";
import { readSessionKey } from "../src/recording/session-keys.ts";
import { openStore, type StoreAddress } from "../src/store/database.ts";
import { openKeyring } from "../src/store/keyring.ts";
import type { SharedCluster } from "./global.ts";
import { startTestSystem, type Client, type ServerProcess, type TestSystem } from "./system.ts";

export interface CrashLoopOptions {
  readonly rounds: number;
  /** SQL sessions under load at each kill. */
  readonly clients?: number;
  /** No further round begins after that, by performance.now(). */
  readonly deadlineMs?: number;
  say?(line: string): void;
}

export interface CrashLoopResult {
  readonly rounds: number;
  /** Statements whose answer the target gave to a client; each must be in the recording. */
  readonly acknowledged: number;
  /** Statements found in the exported, decrypted chunks. */
  readonly recorded: number;
  readonly sessions: number;
  readonly entries: number;
  readonly chunks: number;
  /** What is wrong, for a person; empty where all held. */
  readonly problems: readonly string[];
}

const ROUNDS_A_GRANT = 20; // a grant takes 200 sessions, and half an hour
const SEALED_WITHIN_MS = 60_000;
const MAX_LOAD_MS = 1_200;

/**
 * `glass serve` under load, killed with SIGKILL at another moment each round and started again on the same folder. In the
 * end everything is looked at from outside: the exported log with the verifier's own program, and the exported chunks,
 * decrypted, against what the target acknowledged to the clients.
 */
export async function crashLoop(cluster: SharedCluster, options: CrashLoopOptions): Promise<CrashLoopResult> {
  const { clients = 3, deadlineMs = Number.POSITIVE_INFINITY, say = () => {} } = options;
  let rounds = 0;
  const system = await startTestSystem(cluster);
  try {
    await system.stop();
    const acknowledged = new Set<string>();
    const problems: string[] = [];
    let grant: string | undefined;
    let starved = 0;
    /** On a machine that is too busy, the supervisor of the data plane ends a start. That is a crash like the others. */
    const started = async (): Promise<ServerProcess> => {
      for (;;) {
        try {
          return await system.startProcess();
        } catch (error) {
          if (!String(error).includes("did not answer") || ++starved > options.rounds / 10 + 2) throw error;
          say(`a start was given up, because the machine was too busy: ${starved} so far`);
        }
      }
    };
    for (let round = 0; round < options.rounds && performance.now() < deadlineMs; round++) {
      const server = await started();
      const ann = await system.as("ann", server);
      if (grant === undefined || round % ROUNDS_A_GRANT === 0) grant = await anotherGrant(ann, grant);
      const under = grant;
      const opened = await Promise.all(Array.from({ length: clients }, () => ann.connect(under)));
      const working = opened.map((client, i) => work(client, `crash-${round}-${i}`, acknowledged));
      await new Promise((resolve) => setTimeout(resolve, 20 + ((round * 379) % MAX_LOAD_MS)));
      await server.kill();
      await Promise.all(working);
      rounds++;
      if (rounds % 10 === 0) say(`${rounds} kills, ${acknowledged.size} statements acknowledged`);
    }
    const last = await started();
    await allSealed(system);
    if (grant !== undefined) await (await system.as("ann", last)).end(grant);
    const exitCode = await last.stop();
    if (exitCode !== 0) problems.push(`the last clean stop ended with ${exitCode}: ${tailOf(last)}`);
    return { rounds, ...(await lookFromOutside(system, acknowledged, problems)) };
  } finally {
    await system.dispose();
  }
}

async function anotherGrant(ann: Client, before: string | undefined): Promise<string> {
  if (before !== undefined) await ann.end(before);
  const { grant } = await ann.break("repair");
  await ann.until(grant, ["active"]);
  return grant;
}

/** Statements one after the other until the connection is gone; those that were answered are noted. */
async function work(client: pg.Client, marker: string, acknowledged: Set<string>): Promise<void> {
  for (let n = 0; ; n++) {
    const text = `select '${marker}-${n}' as marker, repeat('x', ${(n * 37) % 500})`;
    try {
      await client.query(n % 2 === 0 ? text : { text: `${text} where $1::int = $1`, values: [n] });
    } catch {
      return; // killed
    }
    acknowledged.add(`${marker}-${n}`);
  }
}

async function allSealed(system: TestSystem): Promise<void> {
  const deadline = performance.now() + SEALED_WITHIN_MS;
  for (;;) {
    const open = await system.storeQuery<{ id: string }>("select id from sessions where not recording_complete");
    if (open.length === 0) return;
    if (performance.now() > deadline)
      throw new Error(`${open.length} recordings are not complete, such as ${open[0]?.id}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function tailOf(server: ServerProcess): string {
  return server.output().slice(-2_000);
}

/** What an auditor with the keys finds in the folder that the system exported. */
export async function lookFromOutside(
  system: TestSystem,
  acknowledged: ReadonlySet<string>,
  problems: string[] = [],
): Promise<Omit<CrashLoopResult, "rounds">> {
  return lookInto(join(system.config.dataDir, "log"), await addressOf(system), acknowledged, problems);
}

/** The same for any exported folder, and the store that has its keys. */
export async function lookInto(
  folder: string,
  address: StoreAddress,
  acknowledged: ReadonlySet<string>,
  problems: string[] = [],
): Promise<Omit<CrashLoopResult, "rounds">> {
  const verified = await verify(folder);
  if (verified.code !== 0) problems.push(`glasskey-verify: ${verified.text}`);
  const { entries, chunks } = verified;
  const found = new Set<string>();
  const sessions = await readdir(join(folder, "chunks"));
  const store = openStore(address);
  try {
    const keyring = await openKeyring(store, Buffer.alloc(32, 7));
    for (const session of sessions) {
      const key = await readSessionKey(store, keyring, session);
      if (key === undefined || key === "destroyed") {
        problems.push(`there is no key for ${session}`);
        continue;
      }
      let seq = 0;
      const files = (await readdir(join(folder, "chunks", session))).map((name) => Number.parseInt(name, 10));
      for (const number of files.toSorted((a, b) => a - b)) {
        const { records } = openChunk(key, await readFile(join(folder, "chunks", session, `${number}.gkc`)));
        for (const record of records) {
          if (record.seq !== ++seq) problems.push(`${session}: record ${record.seq} where ${seq} should be`);
          for (const [, marker] of record.payload.toString("latin1").matchAll(/select '([a-z]+-\d+-\d+-\d+)'/g))
            found.add(marker as string);
        }
      }
    }
  } finally {
    await store.destroy();
  }
  const missing = [...acknowledged].filter((marker) => !found.has(marker));
  if (missing.length > 0)
    problems.push(
      `${missing.length} acknowledged statements are in no recording, such as ${missing.slice(0, 3).join(", ")}`,
    );
  return {
    acknowledged: acknowledged.size,
    recorded: found.size,
    sessions: sessions.length,
    entries,
    chunks,
    problems,
  };
}

async function addressOf(system: TestSystem): Promise<StoreAddress> {
  const { database } = system.config;
  if (database === undefined) throw new Error("the test system has a store of its own");
  const file = /^\$\{file:(.+)\}$/.exec(database.password)?.[1] ?? "";
  const password = (await readFile(file, "utf8")).trim();
  return { host: database.host, port: database.port, user: database.user, password, database: database.database };
}

/** The verifier as a program of its own, with the key that lies beside the log. */
async function verify(folder: string): Promise<{ code: number; text: string; entries: number; chunks: number }> {
  const program = join(import.meta.dirname, "../../verify/bin/glasskey-verify.mjs");
  const args = [program, folder, "--key", join(folder, "log.vkey"), "--json"];
  const { code, text } = await promisify(execFile)(process.execPath, args, { maxBuffer: 64 << 20 }).then(
    ({ stdout }) => ({ code: 0, text: stdout }),
    (error: { code?: number; stdout?: string; stderr?: string }) => ({
      code: error.code ?? 1,
      text: `${error.stdout ?? ""}${error.stderr ?? ""}`,
    }),
  );
  const report =
    code === 0 ? (JSON.parse(text) as { size?: number; chunks?: number; totals?: { chunks?: number } }) : {};
  return {
    code,
    text: text.slice(0, 2_000),
    entries: report.size ?? 0,
    chunks: report.totals?.chunks ?? report.chunks ?? 0,
  };
}
