import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { open, readdir, readFile, writeFile } from "node:fs/promises";
import { createServer as createHttps, request } from "node:https";
import type { AddressInfo, Server, Socket } from "node:net";
import { join } from "node:path";
import { connect, createServer as createTls } from "node:tls";
import { createSigner, type NoteSigner } from "@glasskey/verify";
import { encodeEvent } from "../server/src/audit/append.ts";
import { openLogKeys } from "../server/src/audit/keys.ts";
import { createLogReader } from "../server/src/audit/read.ts";
import { startSequencer } from "../server/src/audit/sequencer.ts";
import { createAuthority, issueServerCertificate } from "../server/src/core/certificates.ts";
import { Secret } from "../server/src/core/secret.ts";
import { sinksSchema } from "../server/src/sinks/config.ts";
import { startSinks } from "../server/src/sinks/sinks.ts";
import { startCluster } from "../server/src/store/cluster.ts";
import { openStore, type Store } from "../server/src/store/database.ts";
import { migrate } from "../server/src/store/migrate.ts";
import { result, type BenchContext, type Result } from "./result.ts";

export const summary = "sinks on this machine: entries/s into a file, syslog over TLS and a webhook";

const ENTRIES = 50_000;
const PATIENCE_MS = 300_000;
const POLL_MS = 5;

/**
 * A backlog of entries goes out as OCSF, to receivers in this same process that throw it away. The peer is a plain write
 * of the same bytes: to a file that is synced once, over one TLS connection, in one request.
 */
export async function run({ folder, signal, progress }: BenchContext): Promise<Result[]> {
  const stack = new AsyncDisposableStack();
  try {
    const cluster = await startCluster({ dataDir: join(folder, "sinks-store"), superuser: "glasskey" });
    stack.defer(() => cluster.stop());
    const address = {
      ...{ host: "127.0.0.1", port: cluster.port, user: cluster.superuser, password: cluster.password },
      database: "postgres",
    };
    await migrate(address);
    const store = openStore(address);
    stack.defer(() => store.destroy());
    progress(`sinks: a log of ${ENTRIES} entries`);
    const size = await fillLog(store, address, folder);

    const authority = await createAuthority("bench", 2);
    const { key, cert } = await issueServerCertificate(authority, ["127.0.0.1"], 2);
    const ca = join(folder, "ca.pem");
    await writeFile(ca, authority.cert);
    const syslog = createTls({ key, cert }, (socket) => void socket.resume().on("error", () => {}));
    const hook = createHttps({ key, cert }, (req, res) => {
      req.resume().once("end", () => res.writeHead(204).end());
    });
    const [syslogPort, hookPort] = [await listen(syslog, stack), await listen(hook, stack)];
    const url = `https://127.0.0.1:${hookPort}/`;

    const rates: Record<string, number> = {};
    const kinds = {
      copy: { kind: "file", folder: join(folder, "copy"), rotate: "64GiB", from: "start" },
      siem: { kind: "syslog", host: "127.0.0.1", port: syslogPort, ca, from: "start" },
      soc: { kind: "webhook", url, secret: "${env:SECRET}", ca, from: "start" },
    } as const;
    for (const [name, sink] of Object.entries(kinds)) {
      signal.throwIfAborted();
      progress(`sinks: ${sink.kind}`);
      rates[sink.kind] = perSecond(size, await drain(store, { [name]: sink }, size));
    }

    progress("sinks: plain writes of the same bytes");
    const [file = ""] = await readdir(kinds.copy.folder);
    const bytes = await readFile(join(kinds.copy.folder, file));
    const plain = {
      file: await timed(async () => {
        const handle = await open(join(folder, "plain"), "w");
        await handle.writeFile(bytes);
        await handle.datasync();
        await handle.close();
      }),
      tls: await timed(async () => {
        const socket = connect({ host: "127.0.0.1", port: syslogPort, ca: authority.cert });
        await once(socket, "secureConnect");
        socket.resume().end(bytes);
        await once(socket, "close");
      }),
      https: await timed(async () => {
        const sent = request(url, { method: "POST", ca: authority.cert, agent: false });
        sent.end(bytes);
        const [response] = (await once(sent, "response")) as [NodeJS.ReadableStream];
        response.resume();
        await once(response, "end");
      }),
    };
    const line = (metric: string, kind: string, name: string, ms: number): Result =>
      result(metric, "entries/s", rates[kind] ?? 0, { peer: { name, value: perSecond(size, ms) } });
    return [
      line("a file, each batch synced", "file", "the same bytes, one write and one sync", plain.file),
      line("syslog over TLS, a connection for each batch", "syslog", "the same bytes, one TLS connection", plain.tls),
      line("a webhook, batches of 1,000", "webhook", "the same bytes, one HTTPS request", plain.https),
      result("bytes of an entry as OCSF", "bytes", bytes.length / size),
    ];
  } finally {
    await stack.disposeAsync();
  }
}

/** How long a sink takes for the whole log, in ms. */
async function drain(store: Store, sink: Record<string, object>, size: number): Promise<number> {
  const begun = performance.now();
  const sinks = await startSinks({
    ...{ sinks: sinksSchema.parse(sink), store, node: "nd_bench", pollMs: POLL_MS },
    speaker: { origin: "glasskey.bench/log", version: "0" },
    resolveSecret: () => new Secret(`whsec_${Buffer.alloc(32, 5).toString("base64")}`),
    namesOf: async () => ({}),
    alarms: { raise: async () => {}, clear: async () => {} },
    warn: () => {},
  });
  try {
    for (;;) {
      const [name = ""] = Object.keys(sink);
      const row = await store.selectFrom("sinks").selectAll().where("name", "=", name).executeTakeFirstOrThrow();
      if (row.next_index >= size) return performance.now() - begun;
      if (row.failures > 0) throw new Error(`the sink fails: ${row.last_error}`);
      if (performance.now() - begun > PATIENCE_MS) throw new Error("the sink takes too long");
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  } finally {
    await sinks.stop();
  }
}

async function fillLog(store: Store, address: Parameters<typeof migrate>[0], folder: string): Promise<number> {
  const signers = new Map<number, NoteSigner>();
  const signerOf = (generation: number): NoteSigner => {
    const signer =
      signers.get(generation) ?? createSigner("glasskey.bench/log", generateKeyPairSync("ed25519").privateKey);
    signers.set(generation, signer);
    return signer;
  };
  await openLogKeys(store, signerOf);
  for (let from = 0; from < ENTRIES; from += 5_000) {
    const rows = Array.from({ length: 5_000 }, (_, i) => ({ entry: entryOf(from + i), grant_id: null }));
    await store.insertInto("log_queue").values(rows).execute();
  }
  const problems: unknown[] = [];
  const sequencer = await startSequencer({
    ...{ address, signerOf, headFile: join(folder, "sinks-head") },
    onProblem: (error) => problems.push(error),
    onIntegrityError: (error) => problems.push(error),
  });
  try {
    const size = await createLogReader(store).settled(PATIENCE_MS);
    if (problems.length > 0) throw new AggregateError(problems, "the sequencer had problems");
    return size;
  } finally {
    await sequencer.stop();
  }
}

function entryOf(n: number): Buffer {
  return encodeEvent({
    ...{ type: "session.closed", at: new Date(1_767_225_600_000 + n), actor: "pe_0123456789ab" },
    ...{ grant: "gr_0123456789ab", session: "se_0123456789ab", target: "orders-prod", playbook: "orders-db-write" },
    data: { cause: "client", statements: n % 100, refused: 0, bytesIn: n * 7, bytesOut: n * 131 },
  });
}

async function listen(server: Server, stack: AsyncDisposableStack): Promise<number> {
  const open = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    open.add(socket);
    socket.once("close", () => open.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  stack.defer(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

async function timed(work: () => Promise<void>): Promise<number> {
  const begun = performance.now();
  await work();
  return performance.now() - begun;
}

function perSecond(count: number, ms: number): number {
  return (count / ms) * 1_000;
}
