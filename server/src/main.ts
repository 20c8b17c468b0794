import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { isAbsolute, join } from "node:path";
import type { TargetCheck } from "@glasskey/contract";
import type { EventType } from "@glasskey/contract/events";
import pg from "pg";
import type { Access, SessionCutter } from "./access/access.ts";
import { clearAlarm, raiseAlarm } from "./access/alarms.ts";
import { startCutBus } from "./access/cut-bus.ts";
import { startLeaseWorker, type LeaseWorker } from "./access/leases.ts";
import { challenge, noteActivity, openSession, sessionClosed } from "./access/sessions.ts";
import { closeDrifted } from "./access/drift.ts";
import { forgetNode, heartbeat, sweepGrants, sweepOrphans } from "./access/sweep.ts";
import { openUnanswered } from "./access/unanswered.ts";
import { buildApp, type App } from "./api/app.ts";
import type { Api } from "./api/services.ts";
import { append } from "./audit/append.ts";
import { exportLog } from "./audit/export.ts";
import { createLogReader } from "./audit/read.ts";
import { startSequencer } from "./audit/sequencer.ts";
import { startBundles, type Bundles } from "./bundles/serve.ts";
import { apiUrl, resolveSecret, type ServerConfig } from "./config.ts";
import { sleep, systemClock } from "./core/clock.ts";
import { describe, GlassError } from "./core/errors.ts";
import type { JsonObject } from "./core/json.ts";
import { createEvidence } from "./evidence/service.ts";
import { startGateway } from "./gateway/gateway.ts";
import { addressGroup } from "./gateway/throttle.ts";
import { createLogin } from "./identity/login.ts";
import { createThrottle } from "./identity/throttle.ts";
import { personOfToken, revokeToken } from "./identity/tokens.ts";
import { installationId, logSigner, makeDataDir, makePrivateDir, nodeId, rootKey, serverTls } from "./installation.ts";
import { createLinks } from "./notify/links.ts";
import { createNotifier } from "./notify/notifier.ts";
import { compilePolicy } from "./playbooks/load.ts";
import { planPolicies } from "./playbooks/plan.ts";
import type { Policy } from "./playbooks/policy.ts";
import { folderChunkStore } from "./recording/chunk-store.ts";
import { lockFolder } from "./recording/journal-files.ts";
import { openSealer, type Sealer } from "./recording/sealer.ts";
import { createRecordings, type Recordings } from "./recording/replay.ts";
import { startCluster, type Cluster } from "./store/cluster.ts";
import { openStore, type Store, type StoreAddress } from "./store/database.ts";
import { openKeyring } from "./store/keyring.ts";
import { migrate } from "./store/migrate.ts";
import { kinds } from "./targets/registry.ts";
import type { SecretResolver } from "./targets/target.ts";

export const VERSION = "0.1.0";

const SWEEP_MS = 1_000;
const BEAT_MS = 2_000;
const LATE_BEAT_MS = 15_000;
const ORPHANS_MS = 300_000;
const EXPORT_MS = 2_000;
const KEEP_CHECKPOINT_MS = 3_600_000; // each proves the log's growth since; one an hour is 9,000 small files a year
const HEALTH_MS = 2_000;
const CHECK_MS = 20_000;

/** A running Glasskey: control plane and gateway of one process. */
export interface RunningServer {
  readonly url: string;
  /** Where each kind's clients connect. */
  readonly endpoints: ReadonlyMap<string, { host: string; port: number }>;
  readonly config: ServerConfig;
  readonly install: string;
  readonly vkey: string;
  /** File with the CA that clients must trust. */
  readonly caFile: string;
  /** Folder that the log is exported to, for `glass verify`. */
  readonly logDir: string;
  /** Resolves, with why, when it cannot go on: the recording or the log is not to be trusted any more. */
  readonly failed: Promise<Error>;
  /** Reads this process's own policy source again, a folder or git. @returns what is wrong with it; undefined when it is in force. */
  reloadPolicy(): Promise<string | undefined>;
  /** Tells the sessions, flushes and seals the recordings, closes the log, stops the store. Idempotent. */
  stop(why?: string): Promise<void>;
}

/**
 * Starts everything, in the order in which one part needs another, and stops what it started when a later part fails.
 * @throws GlassError that says what is wrong and what to do.
 */
export async function startServer(config: ServerConfig, warn: (line: string) => void): Promise<RunningServer> {
  const parts = new Map<Part, () => Promise<void> | void>();
  const failed = Promise.withResolvers<Error>();
  let stopText = "Glasskey is stopping";
  try {
    await makeDataDir(config.dataDir);
    const lock = lockFolder(config.dataDir, "the data folder");
    parts.set("lock", () => lock.release());

    const address = await storeAddress(config, parts);
    await migrate(address);
    const store = openStore(address);
    parts.set("store", () => store.destroy());
    const keyring = await openKeyring(store, await rootKey(config));
    const install = await installationId(store);
    const node = await nodeId(config.dataDir);
    const tls = await serverTls(config);
    const caFile = join(config.dataDir, "ca.pem");
    await writeFile(caFile, tls.ca);

    const kindsByName = new Map(kinds.map((kind) => [kind.kind, kind]));
    let served: Bundles | undefined;
    const policy = (): Policy => {
      if (served === undefined) throw new GlassError("internal", "no policy is in force yet");
      return served.policy();
    };

    // References in targets are relative to the policy folder, so that a policy is the same on every machine.
    const resolvePolicySecret: SecretResolver = (text) => {
      const path = /^\$\{file:([^{}]+)\}$/.exec(text)?.[1];
      if (path === undefined || isAbsolute(path)) return resolveSecret(text);
      return resolveSecret(`\${file:${join(config.policyDir, path)}}`);
    };
    const evidence = createEvidence({ sources: config.evidence, store, clock: systemClock, resolveSecret, warn });
    const links = createLinks(keyring);
    const notifier = createNotifier({
      ...{ store, keyring, config: config.notify, policy, links, node },
      ...{ clock: systemClock, resolveSecret, warn },
    });
    parts.set("notifier", () => notifier.stop());

    // Access, its worker and the gateway need each other; the last two are filled in below.
    let worker: LeaseWorker | undefined;
    let cutter: SessionCutter | undefined;
    const access: Access = {
      ...{ store, keyring, install, node, warn, policy, evidence, notifier },
      kinds: new Map(
        kinds.map((kind) => [
          kind.kind,
          { driver: kind.driver(resolvePolicySecret), promises: (c: JsonObject) => kind.promises(c) },
        ]),
      ),
      cutter: () => {
        if (cutter === undefined) throw new GlassError("internal", "the gateway is not there yet");
        return cutter;
      },
      kick: async (lease) => worker?.kick(lease),
    };

    await forgetNode(access, node);
    const bundles = await startBundles({
      ...{ store, node, warn, dir: join(config.dataDir, "policy-git"), plan: planPolicies, resolveSecret },
      source: config.policyGit ?? { kind: "folder", folder: config.policyDir },
      compile: (files) => compilePolicy({ files, kinds: kindsByName }),
      onPolicy: (next) => closeDrifted(access, next),
      alarms: {
        raise: (key, text) => raiseAlarm(store, warn, key, text, notifier),
        clear: (key) => clearAlarm(store, warn, key, notifier),
      },
    });
    served = bundles;
    parts.set("policy", () => bundles.stop());

    const signer = logSigner(keyring, config.origin ?? `glasskey.local/${install}`);
    const sequencer = await startSequencer({
      ...{ address, signers: [signer], headFile: join(config.dataDir, "log-head") },
      onProblem: (error) => warn(`the log waits: ${describe(error)}`),
      onIntegrityError: (error) => failed.resolve(error),
    });
    parts.set("sequencer", () => sequencer.stop());

    const chunks = folderChunkStore(join(config.dataDir, "chunks"));
    const journal = {
      dir: join(config.dataDir, "journal"),
      key: keyring.derive("journal", node),
      mode: config.recording,
    };
    let sealer: Sealer | undefined;
    const gateway = await startGateway(
      {
        listeners: Object.entries(config.gateway).map(([kind, listen]) => ({ kind, ...listen })),
        entry: new URL("./data-plane.ts", import.meta.url),
        ...{ tls: { key: tls.key, cert: tls.cert }, plaintextLoopback: config.plaintextLoopback, journal },
      },
      {
        challenge: (user) => challenge(access, user),
        open: (request) => openSession(access, request),
        closed: (session, end, cut) => sessionClosed(access, session, end, cut),
        failed: (user, remoteAddress) =>
          warn(
            `gateway: a client at ${remoteAddress} did not prove the secret of ${JSON.stringify(user.slice(0, 40))}`,
          ),
        activity: (reports) =>
          void noteActivity(access, reports).catch((error: unknown) =>
            warn(`activity is not stored: ${describe(error)}`),
          ),
        journalFailed: (message) => {
          warn(`recording: ${message}`); // also when the alarm is open already
          const text = `nothing can be recorded, so nothing is opened: ${message}`;
          void raiseAlarm(store, warn, `journal ${node}`, text, notifier).catch(() => {});
        },
        log: warn,
      },
    );
    parts.set("gateway", () => gateway.stop(stopText));
    await clearAlarm(store, warn, `journal ${node}`, notifier);
    void gateway.whenDead.then((error) => failed.resolve(error));
    sealer = await openSealer({
      ...{
        dir: journal.dir,
        key: journal.key,
        name: node,
        opened: { id: gateway.journal.id, sequence: gateway.journal.openedSequence },
        store,
        keyring,
        chunks,
        append,
      },
      onError: (error) => {
        warn(`sealing: ${describe(error)}`);
        if (error instanceof GlassError && error.code === "integrity") {
          const text = `a recording cannot be sealed: ${error.message}`;
          void raiseAlarm(store, warn, `sealing ${node}`, text, notifier).catch(() => {});
        }
      },
    });
    await clearAlarm(store, warn, `sealing ${node}`, notifier); // what stopped it was looked at again, and holds
    sealer.start();
    const sealing = sealer;
    parts.set("sealer", () => sealing.close());

    const local: SessionCutter = {
      cut: (filter, reason) => gateway.cut(filter, reason),
      extend: (grant, endsAtMs) => gateway.extend(grant, endsAtMs),
      activity: () => gateway.sessions(),
    };
    const bus = startCutBus({ address, store, node, warn, local });
    parts.set("bus", () => bus.stop());
    cutter = bus;
    const leases = startLeaseWorker(access);
    worker = leases;
    parts.set("leases", () => leases.stop());
    await bundles.begin();

    const recordings = createRecordings({ store, keyring, chunks, sealNow: (session) => sealing.sealNow(session) });
    const logDir = join(config.dataDir, "log");
    await makePrivateDir(logDir);
    let keptAtMs = -KEEP_CHECKPOINT_MS;
    const exportNow = async (): Promise<void> => {
      const keep = performance.now() - keptAtMs >= KEEP_CHECKPOINT_MS;
      const exported = await exportTo(logDir, store, recordings, signer.vkey, keep);
      if (keep && exported) keptAtMs = performance.now();
    };
    parts.set("export", () =>
      exportNow().catch((error: unknown) => warn(`the log's folder is not up to date: ${describe(error)}`)),
    );
    let beatAtMs = performance.now();
    const beat = async (): Promise<void> => {
      await heartbeat(access);
      const lateMs = performance.now() - beatAtMs;
      beatAtMs = performance.now();
      if (lateMs > LATE_BEAT_MS) await bus.catchUp(); // others may have taken this process for dead
    };
    const timers = new AbortController();
    const loops = [
      every(BEAT_MS, timers.signal, beat, warn),
      every(SWEEP_MS, timers.signal, () => sweepGrants(access), warn),
      every(SWEEP_MS, timers.signal, () => openUnanswered(access), warn), // asks sources, which may be slow
      every(ORPHANS_MS, timers.signal, () => sweepOrphans(access), warn),
      every(EXPORT_MS, timers.signal, exportNow, warn),
    ];
    parts.set("timers", async () => {
      timers.abort();
      await Promise.all(loops);
    });
    // Whoever starts next must not take this process for alive: it would not put its own policy folder into force.
    parts.set("node", async () => void (await store.deleteFrom("nodes").where("id", "=", node).execute()));

    const endpoints = new Map(
      gateway.ports.map(({ kind, port }) => [kind, { host: config.hosts[0] ?? "localhost", port }]),
    );
    const find = (name: string): { name: string; secret: string | undefined } | undefined => {
      const person = policy().people.find((candidate) => candidate.name === name && candidate.enabled);
      return person === undefined ? undefined : { name: person.name, secret: person.secret?.reveal() };
    };
    const login = createLogin({ store, throttle: createThrottle(systemClock), tokenTtlMs: config.tokenTtlMs, find });
    let dead = false;
    void failed.promise.then(() => (dead = true));
    const api: Api = {
      ...{
        access,
        version: VERSION,
        kinds: kindsByName,
        ca: tls.ca,
        warn,
        log: { reader: createLogReader(store), vkey: signer.vkey },
        ...{ evidence, links, clock: systemClock },
      },
      personOfToken: (token) => personOfToken(store, token),
      login: (name, secret, remoteAddress) => login({ name, secret, remoteAddress: addressGroup(remoteAddress) }),
      logout: (token) => revokeToken(store, token),
      endpoint: (kind) => endpoints.get(kind),
      checkTargets: (name) => checkTargets(access, name),
      recordings,
      bundles,
      async health() {
        const ping = store
          .selectFrom("installation")
          .select("install")
          .execute()
          .then(
            () => true,
            () => false,
          );
        return { gateway: !dead, store: await Promise.race([ping, sleep(HEALTH_MS).then(() => false)]) };
      },
    };
    const app = await buildApp(api, { key: tls.key, cert: `${tls.cert}\n${tls.ca}` });
    parts.set("api", () => app.close());
    const port = await listen(app, config);
    const url = apiUrl(config.hosts[0] ?? "localhost", port);
    notifier.start(url);
    await say(store, "server.started", { version: VERSION });

    let stopping: Promise<void> | undefined;
    return {
      ...{
        url,
        endpoints,
        config,
        install,
        vkey: signer.vkey,
        caFile,
        logDir,
      },
      failed: failed.promise,
      reloadPolicy: () => bundles.reload(),
      stop(why) {
        stopText = why ?? stopText;
        stopping ??= say(store, "server.stopped")
          .catch(() => {})
          .then(() => stopParts(parts, warn));
        return stopping;
      },
    };
  } catch (error) {
    await stopParts(parts, warn);
    throw error;
  }
}

type Part = (typeof STOP_ORDER)[number];

/** Nobody new, then the sessions, then what records them, then what the records are kept in. */
const STOP_ORDER = [
  "api",
  "timers",
  "policy",
  "leases",
  "notifier",
  "gateway",
  "bus",
  "sealer",
  "node",
  "sequencer",
  "export",
  "store",
  "cluster",
  "lock",
] as const;

async function stopParts(
  parts: ReadonlyMap<Part, () => Promise<void> | void>,
  warn: (line: string) => void,
): Promise<void> {
  for (const name of STOP_ORDER) {
    try {
      await parts.get(name)?.();
    } catch (error) {
      warn(`stopping, ${name}: ${describe(error)}`);
    }
  }
}

async function storeAddress(config: ServerConfig, parts: Map<Part, () => Promise<void> | void>): Promise<StoreAddress> {
  const external = config.database;
  if (external !== undefined) {
    const { host, port, user, database, ca } = external;
    const password = resolveSecret(external.password).reveal();
    return { host, port, user, password, database, ...(ca === undefined ? {} : { ca: readFileSync(ca, "utf8") }) };
  }
  const cluster: Cluster = await startCluster({ dataDir: join(config.dataDir, "store"), superuser: "glasskey" });
  parts.set("cluster", () => cluster.stop());
  const address = { host: "127.0.0.1", port: cluster.port, user: cluster.superuser, password: cluster.password };
  const client = new pg.Client({ ...address, database: "postgres" });
  await client.connect();
  try {
    const { rowCount } = await client.query("select from pg_database where datname = 'glasskey'");
    if (rowCount === 0) await client.query("create database glasskey");
  } finally {
    await client.end();
  }
  return { ...address, database: "glasskey" };
}

/** Runs `work` at once and then again and again, `pauseMs` apart, until the signal. A failure is said and tried again. */
async function every(
  pauseMs: number,
  signal: AbortSignal,
  work: () => Promise<void>,
  warn: (line: string) => void,
): Promise<void> {
  let last = "";
  while (!signal.aborted) {
    try {
      await work();
      last = "";
    } catch (error) {
      if (describe(error) !== last) warn(describe(error));
      last = describe(error);
    }
    await sleep(pauseMs, signal).catch(() => {});
  }
}

async function exportTo(
  folder: string,
  store: Store,
  recordings: Recordings,
  vkey: string,
  keepCheckpoint: boolean,
): Promise<boolean> {
  try {
    await exportLog({
      store,
      folder,
      vkey,
      keepCheckpoint,
      readChunk: ({ session, chunk }) => recordings.chunk(session, chunk),
    });
    return true;
  } catch (error) {
    if (!(error instanceof GlassError && error.code === "not_found")) throw error; // nothing is signed yet
    return false;
  }
}

function say(store: Store, type: EventType, data?: JsonObject): Promise<void> {
  return store.transaction().execute((tx) => append(tx, { type, at: new Date(), actor: "glasskey", data }));
}

async function checkTargets(access: Access, name: string | undefined): Promise<readonly TargetCheck[]> {
  const policy = access.policy();
  const targets = policy.targets.filter((target) => name === undefined || target.name === name);
  if (targets.length === 0)
    throw new GlassError("not_found", `there is no target "${name}"`, {
      next: "Targets are files in the policy folder, targets/NAME.yaml.",
    });
  const found: TargetCheck[] = [];
  for (const target of targets) {
    const kind = access.kinds.get(target.kind);
    const playbooks = policy.playbooks.filter((playbook) => playbook.target === target.name);
    for (const playbook of playbooks.length === 0 ? [undefined] : playbooks) {
      const checks = await kind?.driver
        .preflight(target.config, playbook?.scope, AbortSignal.timeout(CHECK_MS))
        .catch((error: unknown) => [{ check: "the target can be asked", ok: false, detail: describe(error) }]);
      found.push({
        target: target.name,
        kind: target.kind,
        playbook: playbook?.name ?? null,
        checks: [...(checks ?? [])],
      });
    }
  }
  return found;
}

async function listen(app: App, config: ServerConfig): Promise<number> {
  try {
    await app.listen({ host: config.api.host, port: config.api.port });
  } catch (cause) {
    throw new GlassError(
      "config_invalid",
      `cannot listen on ${config.api.host}:${config.api.port}: ${describe(cause)}`,
      {
        next: "Set another port under `listen: api:` in glasskey.yaml, or stop what has it.",
        cause,
      },
    );
  }
  const address = app.server.address();
  return typeof address === "object" && address !== null ? address.port : config.api.port;
}
