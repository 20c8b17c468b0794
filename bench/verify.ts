import { spawn } from "node:child_process";
import { createHash, generateKeyPairSync, hash, randomFillSync } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import {
  appendHashes,
  chunkPath,
  createSigner,
  emptyRange,
  encodeBundle,
  leafHash,
  rootOf,
  rootOfHashes,
  signCheckpoint,
  TILE_WIDTH,
  tilePath,
  type NoteSigner,
} from "@glasskey/verify";
import { result, type BenchContext, type Result } from "./result.ts";

export const summary =
  "the verifier on one core: entries/s, recordings in GB/s, memory at 100,000 and 1,000,000 entries";

const SMALL = 100_000;
const LARGE = 1_000_000;
const ROUNDS = 3;
const CHUNK_BYTES = 64 << 10;
const CHUNKS = 8_192;

/** Each measurement is a process of its own, `glasskey-verify` as an auditor runs it; start-up included. */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  const signer = createSigner("glasskey.bench/log", generateKeyPairSync("ed25519").privateKey);
  const measure = async (name: string, write: (dir: string) => void): Promise<Measured> => {
    progress(`verify: ${name}`);
    const dir = join(folder, name.replaceAll(/\W+/g, "-"));
    write(dir);
    let best: Measured | undefined;
    for (let round = 0; round < ROUNDS; round += 1) {
      signal.throwIfAborted();
      const measured = await verify(dir, signer.vkey);
      best = best === undefined || measured.cpuMs < best.cpuMs ? measured : best;
    }
    if (best === undefined) throw new Error("nothing was measured");
    return best;
  };
  const small = await measure(`${SMALL} entries`, (dir) => writeLog(dir, SMALL, signer));
  const large = await measure(`${LARGE} entries`, (dir) => writeLog(dir, LARGE, signer));
  const chunks = await measure(`${CHUNKS} chunks`, (dir) => writeRecordings(dir, CHUNKS, signer));
  return [
    result("verify: one process, one core, start-up included", "entries/s", (LARGE / large.cpuMs) * 1_000, {
      goal: { atLeast: 300_000 },
      peer: { name: "SHA-256 of each entry alone, a hash object each", value: naive(join(folder, `${LARGE}-entries`)) },
    }),
    result("verify: recordings against their entries", "GB/s", (CHUNKS * CHUNK_BYTES) / chunks.cpuMs / 1e6),
    result(`memory at ${SMALL} entries`, "MiB", small.peakKib / 1024),
    result(`memory at ${LARGE} entries`, "MiB", large.peakKib / 1024, {
      goal: { atMost: Math.ceil((small.peakKib / 1024) * 1.5) },
    }),
  ];
}

interface Measured {
  /** User and system time of the process, all its threads. */
  cpuMs: number;
  peakKib: number;
}

/** Runs the verifier's command line in a process of its own and reads what it used. */
async function verify(dir: string, vkey: string): Promise<Measured> {
  const cli = new URL("../verify/src/cli.ts", import.meta.url).href;
  const program = `const { runCli } = await import(${JSON.stringify(cli)});
    const code = await runCli(process.argv.slice(1), () => {}, (text) => process.stderr.write(text));
    const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage();
    process.stdout.write(JSON.stringify({ code, cpuMs: (userCPUTime + systemCPUTime) / 1000, peakKib: maxRSS }));`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program, dir, "--key", vkey], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let out = "";
  for await (const part of child.stdout as AsyncIterable<Buffer>) out += part.toString();
  const { code, ...measured } = JSON.parse(out) as Measured & { code: number };
  if (code !== 0) throw new Error("the benchmark's log does not verify");
  return measured;
}

/** A log in the public layout, written as it grows: in the time that hashing takes, and in little memory. */
export function writeLog(
  dir: string,
  size: number,
  signer: NoteSigner,
  entryAt: (index: number) => Buffer = eventAt,
): void {
  const levels: Buffer[][] = [];
  const range = emptyRange();
  const put = (path: string, bytes: Uint8Array | string): void => {
    mkdirSync(dirname(join(dir, path)), { recursive: true });
    writeFileSync(join(dir, path), bytes);
  };
  const push = (level: number, index: number, digest: Buffer): void => {
    const tile = (levels[level] ??= []);
    tile.push(digest);
    if (tile.length < TILE_WIDTH) return;
    const bytes = Buffer.concat(tile.splice(0));
    const at = Math.floor(index / TILE_WIDTH);
    put(tilePath({ level, index: at, width: TILE_WIDTH }), bytes);
    push(level + 1, at, rootOfHashes(bytes));
  };
  for (let first = 0; first < size; first += TILE_WIDTH) {
    const width = Math.min(TILE_WIDTH, size - first);
    const entries = Array.from({ length: width }, (_, i) => entryAt(first + i));
    put(tilePath({ level: "entries", index: first / TILE_WIDTH, width }), encodeBundle(entries));
    const leaves = entries.map(leafHash);
    appendHashes(range, 0, Buffer.concat(leaves));
    for (const [i, leaf] of leaves.entries()) push(0, first + i, leaf);
  }
  for (const [level, tile] of levels.entries()) {
    if (tile.length === 0) continue;
    const index = Math.floor(size / TILE_WIDTH ** (level + 1));
    put(tilePath({ level, index, width: tile.length }), Buffer.concat(tile));
  }
  put("checkpoint", signCheckpoint({ origin: signer.name, size, root: rootOf(range) }, [signer]));
}

function eventAt(n: number): Buffer {
  const at = new Date(1_767_225_600_000 + n).toISOString();
  return Buffer.from(
    `{"actor":"pe_0123456789ab","at":"${at}","data":{"bytesIn":${n * 7},"bytesOut":${n * 131},"cause":"client",` +
      `"refused":0,"statements":${n % 100}},"grant":"gr_0123456789ab","playbook":"orders-db-write",` +
      `"session":"se_0123456789ab","target":"orders-prod","type":"session.closed","v":1}`,
  );
}

/** One session of `count` chunks, and the log that seals them. */
function writeRecordings(dir: string, count: number, signer: NoteSigner): void {
  const session = "se_0123456789ab";
  mkdirSync(join(dir, dirname(chunkPath(session, 0))), { recursive: true });
  const bytes = randomFillSync(Buffer.alloc(CHUNK_BYTES));
  writeLog(dir, count, signer, (chunk) => {
    bytes.writeUInt32BE(chunk);
    writeFileSync(join(dir, chunkPath(session, chunk)), bytes);
    const data = `{"bytes":${bytes.length},"chunk":${chunk},"sha256":"${hash("sha256", bytes)}"}`;
    return Buffer.from(`{"data":${data},"session":"${session}","type":"recording.sealed","v":1}`);
  });
}

/** Entries/s of what anybody would write first: read a bundle, a hash object for each entry, nothing else. */
function naive(dir: string): number {
  const begun = process.cpuUsage();
  for (let index = 0; index * TILE_WIDTH < LARGE; index += 1) {
    const width = Math.min(TILE_WIDTH, LARGE - index * TILE_WIDTH);
    for (let rest = readFileSync(join(dir, tilePath({ level: "entries", index, width }))); rest.length > 0;) {
      const end = 2 + rest.readUInt16BE(0);
      createHash("sha256").update(Uint8Array.of(0)).update(rest.subarray(2, end)).digest();
      rest = rest.subarray(end);
    }
  }
  const { user, system } = process.cpuUsage(begun);
  return LARGE / ((user + system) / 1e6);
}
