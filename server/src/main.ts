import { writeFile } from "node:fs/promises";
import { isAbsolute, join } from "node:path";
import type { TargetCheck } from "@glasskey/contract";
import type { EventType } from "@glasskey/contract/events";
import type { NoteSigner } from "@glasskey/verify";
import type { Access, SessionCutter } from "./access/access.ts";
import { clearAlarm, raiseAlarm } from "./access/alarms.ts";
import { startCutBus } from "./access/cut-bus.ts";
import { startLeaseWorker, type LeaseWorker } from "./access/leases.ts";
import { challenge, noteActivity, openSession, sessionClosed } from "./access/sessions.ts";
import { createDoors, logAlarm, watchDoors } from "./access/doors.ts";
import { closeDrifted } from "./access/drift.ts";
import { forgetNode, heartbeat, sweepGrants, sweepOrphans } from "./access/sweep.ts";
import { createTrouble } from "./access/trouble.ts";
import { openUnanswered } from "./access/unanswered.ts";
import { buildApp, type App } from "./api/app.ts";
import type { Api } from "./api/services.ts";
import { startArchive, type Archive } from "./archive/archive.ts";
import { startMirror, type Mirror } from "./archive/mirror.ts";
import { openPlace } from "./archive/place.ts";
import { append } from "./audit/append.ts";
import { exportLog, exportRecording, intoFolder, type ReadChunk } from "./audit/export.ts";
import { openLogKeys } from "./audit/keys.ts";
import { createLogReader, type LogReader } from "./audit/read.ts";
import { startSequencer } from "./audit/sequencer.ts";
import { watchSigning } from "./audit/signing-watch.ts";
import { createWitnesses } from "./audit/witnesses.ts";
import { startBundles, type Bundles } from "./bundles/serve.ts";
import { apiUrl, resolveSecret, type ServerConfig } from "./config.ts";
import { systemClock } from "./core/clock.ts";
import { describe, GlassError } from "./core/errors.ts";
import { isId } from "./core/ids.ts";
import type { JsonObject } from "./core/json.ts";
import { createEvidence } from "./evidence/service.ts";
import { closedGateway } from "./gateway/closed.ts";
import { startGateway, type Gateway } from "./gateway/gateway.ts";
import { addressGroup } from "./gateway/throttle.ts";
import { createLogin } from "./identity/login.ts";
import { createThrottle } from "./identity/throttle.ts";
import { namesOf } from "./identity/pseudonyms.ts";
import { personOfToken, revokeToken } from "./identity/tokens.ts";
import { createIdentities } from "./identities.ts";
import { installationId, logSigner, makeDataDir, makePrivateDir, nodeId, rootKey, serverTls } from "./installation.ts";
import { createHealth } from "./metrics/health.ts";
import { localFigures } from "./metrics/local.ts";
import { createMetrics, type Metrics } from "./metrics/metrics.ts";
import { startMetricsServer } from "./metrics/server.ts";
import { chunkStoreOf, openStoreRoles, storeAddress } from "./open-store.ts";
import { every, stopParts, type Parts } from "./parts.ts";
import { createLinks } from "./notify/links.ts";
import { createNotifier } from "./notify/notifier.ts";
import { sha256Hex } from "./objects/object-store.ts";
import { compilePolicy } from "./playbooks/load.ts";
import { planPolicies } from "./playbooks/plan.ts";
import type { Policy } from "./playbooks/policy.ts";
import { onOneDisk } from "./recording/journal-copies.ts";
import { lockFolder } from "./recording/journal-files.ts";
import { closedSealer } from "./recording/closed.ts";
import { watchRoom } from "./recording/room.ts";
import { openSealer, type Sealer } from "./recording/sealer.ts";
import { eraseExpired, eraseRecording, listHolds, placeHold, releaseHold, scrubKeys } from "./recording/retention.ts";
import { watchDamage } from "./recording/damage.ts";
import { createRecordings } from "./recording/replay.ts";
import { startSinks } from "./sinks/sinks.ts";
import { openStore, type Store } from "./store/database.ts";
import { openKeyring } from "./store/keyring.ts";
import { kinds } from "./targets/registry.ts";
import type { SecretResolver } from "./targets/target.ts";

export const VERSION = "0.1.0";

const SWEEP_MS = 1_000;
const BEAT_MS = 2_000;
const FORGOTTEN_MS = 5_000;
const LATE_BEAT_MS = 15_000;
const ORPHANS_MS = 300_000;
const EXPORT_MS = 2_000;
const KEEP_CHECKPOINT_MS = 3_600_000; // each proves the log's growth since; one an hour is 9,000 small files a year
const RETENTION_MS = 10_000; // one look at an index where there is nothing to do
const CHECK_MS = 20_000;
const RENEW_MS = 3_600_000; // a look at the time; what is renewed lasts for months

/** A running Glasskey: control plane and gateway of one process. */
export interface RunningServer {
  readonly url: string;
  /** Where each kind's clients connect. */
  readonly endpoints: ReadonlyMap<string, { host: string; port: number; trust: string }>;
  readonly config: ServerConfig;
  readonly install: string;
  readonly vkey: string;
  /** File with the CA that clients must trust. */
  readonly caFile: string;
  /** Folder that the log is exported to, for `glass verify`. */
  readonly logDir: string;
  /** Where /metrics, /healthz and /readyz are, where `listen: metrics:` asks for them. */
  readonly metricsPort: number | undefined;
  /** Resolves, with why, when it cannot go on: the data plane is gone. What does not verify only keeps new access closed. */
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
  const parts: Parts = new Map();
  const failed = Promise.withResolvers<Error>();
  let stopText = "Glasskey is stopping";
  try {
    await makeDataDir(config.dataDir);
    const lock = lockFolder(config.dataDir, "the data folder");
    parts.set("lock", () => lock.release());

    const root = await rootKey(config);
    const { address, logAddress, standing } = await openStoreRoles(await storeAddress(config, parts), config, root);
    if (standing !== undefined) warn(standing);
    const store = openStore(address);
    parts.set("store", () => store.destroy());
    const keyring = await openKeyring(store, root);
    const install = await installationId(store);
    const node = await nodeId(config.dataDir);
    const tls = await serverTls(config);
    const caFile = join(config.dataDir, "ca.pem");
    await writeFile(caFile, tls.ca);

    const kindsByName = new Map(kinds.map((kind) => [kind.kind, kind]));
    let served: Bundles | undefined;
    let metrics: Metrics | undefined;
    let metricsPort: number | undefined;
    let archivePlace: string | undefined;
    const policy = (): Policy => {
      if (served === undefined) throw new GlassError("internal", "no policy is in force yet");
      return metrics?.counted(served.policy()) ?? served.policy();
    };

    // References in targets are relative to the policy folder, so that a policy is the same on every machine.
    const resolvePolicySecret: SecretResolver = (text) => {
      const path = /^\$\{file:([^{}]+)\}$/.exec(text)?.[1];
      if (path === undefined || isAbsolute(path)) return resolveSecret(text);
      return resolveSecret(`\${file:${join(config.policyDir, path)}}`);
    };
    const identities = createIdentities({
      ...{ kinds, keyring, install, resolve: resolvePolicySecret, hosts: config.hosts },
      ...{ listeners: Object.keys(config.gateway), now: () => systemClock.now() },
    });
    const evidence = createEvidence({ sources: config.evidence, store, clock: systemClock, resolveSecret, warn });
    const links = createLinks(keyring);
    const notifier = createNotifier({
      ...{ store, keyring, config: config.notify, policy, links, node },
      ...{ clock: systemClock, resolveSecret, warn },
    });
    parts.set("notifier", () => notifier.stop());

    const alarms = {
      raise: (key: string, text: string) => raiseAlarm(store, warn, key, text, notifier),
      clear: (key: string) => clearAlarm(store, warn, key, notifier),
    };
    const doors = createDoors();
    doors.shut(
      "start",
      new GlassError("recording_unavailable", "Glasskey is starting", { next: "Try again in a moment." }),
    );
    const trouble = createTrouble({ store, warn, notifier, doors });
    let dead = false;
    let ending = false;
    void failed.promise.then(() => (dead = true));
    const probes = createHealth({
      ...{ store, gatewayLives: () => !dead, stopping: () => ending, hasPolicy: () => served !== undefined },
      shut: () => doors.reasons().map(({ reason }) => reason),
      notes: standing === undefined ? [] : ["store_owner"],
    });
    if (config.metrics !== undefined) {
      const sessions = async (): Promise<number> => (await gateway.sessions()).length;
      metrics = createMetrics({
        ...{ store, version: VERSION, health: probes, witnessed: config.witnesses !== undefined },
        ...{ sinks: config.sinks.map(({ name }) => name), node, archive: () => archivePlace },
        local: () =>
          localFigures({
            dataDir: config.dataDir,
            sessions,
            sealer: () => sealer?.stats(),
          }),
      });
    }
    // Access, its worker and the gateway need each other; the last two are filled in below.
    let worker: LeaseWorker | undefined;
    let cutter: SessionCutter | undefined;
    const access: Access = {
      ...{ store, keyring, install, node, warn, policy, evidence, notifier },
      kinds: new Map(
        kinds.map((kind) => [
          kind.kind,
          { driver: kind.driver(identities.tools(kind.kind)), promises: (c: JsonObject) => kind.promises(c) },
        ]),
      ),
      cutter: () => {
        if (cutter === undefined) throw new GlassError("internal", "the gateway is not there yet");
        return cutter;
      },
      kick: async (lease) => worker?.kick(lease),
      mayOpen: () => doors.mayOpen(),
    };

    await forgetNode(access, node);
    const bundles = await startBundles({
      ...{ store, node, warn, dir: join(config.dataDir, "policy-git"), resolveSecret },
      plan: (old, next) => planPolicies(old, next, kindsByName),
      source: config.policyGit ?? { kind: "folder", folder: config.policyDir },
      compile: (files) => compilePolicy({ files, kinds: kindsByName }),
      onPolicy: (next) => closeDrifted(access, next),
      alarms,
    });
    served = bundles;
    parts.set("policy", () => bundles.stop());

    const origin = config.origin ?? `glasskey.local/${install}`;
    const signerOf = (generation: number): NoteSigner => logSigner(keyring, origin, generation);
    const logKeys = await openLogKeys(store, signerOf);
    const witnesses =
      config.witnesses === undefined
        ? undefined
        : createWitnesses({
            ...{ store, config: config.witnesses, logKeys: () => logKeys.verifiers(), warn },
            alarms,
          });
    let archive: Archive | undefined;
    const logReader = createLogReader(store, {
      witnessed: witnesses?.satisfies,
      archivedSize: config.archive === undefined ? undefined : async () => archive?.archivedSize() ?? 0,
    });
    // Where the log does not verify, events wait in its queue, nothing is signed, and nothing new is opened.
    const sequencer = await trouble.begin("log", logAlarm(node), () =>
      startSequencer({
        ...{ address: logAddress, signerOf, headFile: join(config.dataDir, "log-head") },
        thirdPlace: witnesses,
        onProblem: (error) => warn(`the log waits: ${describe(error)}`),
        onIntegrityError: (error) => trouble.found("log", logAlarm(node), error),
      }),
    );
    parts.set("sequencer", () => sequencer?.stop());
    const sinks = await startSinks({
      ...{ sinks: config.sinks, store, node, resolveSecret, warn, speaker: { origin, version: VERSION } },
      namesOf: (ids) => namesOf(store, ids),
      alarms,
    });
    parts.set("sinks", () => sinks.stop());
    if (witnesses !== undefined && sequencer !== undefined) {
      witnesses.start();
      parts.set("witnesses", () => witnesses.stop());
    }

    const chunks = chunkStoreOf(config);
    const journal = {
      dir: join(config.dataDir, "journal"),
      mirror: config.recordings.mirror,
      ...config.recordings.limits,
      key: keyring.derive("journal", node),
      mode: config.recording,
    };
    const room = watchRoom({
      node,
      folders: ["chunks", "log", ...(config.database === undefined ? ["store"] : [])].map((at) =>
        join(config.dataDir, at),
      ),
      alarms,
      onRefusal: (why) => (why === undefined ? doors.reopen("room") : doors.shut("room", why)),
    });
    const startPlane = (): Promise<Gateway> =>
      startGateway(
        {
          listeners: Object.entries(config.gateway).map(([kind, listen]) => ({ kind, ...listen })),
          entry: new URL("./data-plane.ts", import.meta.url),
          ...{ tls: { key: tls.key, cert: tls.cert }, plaintextLoopback: config.plaintextLoopback, journal },
          identities: identities.listeners,
        },
        {
          challenge: (user) => challenge(access, user),
          open: (request) => openSession(access, request),
          closed: (session, end, cut) => sessionClosed(access, session, end, cut),
          failed: (user, remoteAddress) => {
            metrics?.proofFailed();
            // A password typed in the place of a name shall not be in the output.
            const name = isId("grant", user) ? user : "a name that is no grant's";
            warn(`gateway: a client at ${remoteAddress} did not prove the secret of ${name}`);
          },
          activity: (reports) =>
            void noteActivity(access, reports).catch((error: unknown) =>
              warn(`activity is not stored: ${describe(error)}`),
            ),
          journalFailed: (message) => {
            warn(`recording: ${message}`); // also when the alarm is open already
            room.stopped(message);
          },
          journalHealth: (health) => {
            room.journal(health);
            if (health.degraded !== null) warn(health.degraded);
          },
          log: warn,
        },
      );
    const plane = await trouble.begin("journal", `journal ${node}`, startPlane);
    if (journal.mirror !== undefined && (await onOneDisk(journal.dir, journal.mirror)))
      warn(`recordings.mirror, ${journal.mirror}, is on the same disk as ${journal.dir}: that disk takes both with it`);
    const gateway = plane ?? closedGateway();
    parts.set("gateway", () => gateway.stop(stopText));
    void gateway.whenDead.then((error) => failed.resolve(error));
    const sealingAlarm = `sealing ${node}`;
    const openSealing = (): Promise<Sealer> =>
      openSealer({
        ...{
          dir: journal.dir,
          mirror: journal.mirror,
          key: journal.key,
          name: node,
          opened: {
            id: gateway.journal.id,
            sequence: gateway.journal.openedSequence,
            spans: gateway.journal.spans,
          },
          store,
          keyring,
          chunks,
          append,
        },
        onError: (error) => {
          warn(`sealing: ${describe(error)}`);
          if (error instanceof GlassError && error.code === "integrity")
            trouble.found("recording", sealingAlarm, error);
        },
      });
    const sealer = plane === undefined ? undefined : await trouble.begin("recording", sealingAlarm, openSealing);
    const sealing =
      sealer ??
      closedSealer(() => doors.mayOpen() ?? new GlassError("integrity", "the recording is not sealed any further"));
    parts.set("sealer", () => sealing.close()); // first: what fails from here on stops it, too
    sealing.start();
    await watchDoors(store, node, doors);
    doors.reopen("start"); // the gateway has listened for a while, and what others found may have been news

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

    const logDir = join(config.dataDir, "log");
    await makePrivateDir(logDir);
    let logMirror: Mirror | undefined;
    const damage = watchDamage({
      ...{ store, keyring, chunks, node, shared: config.recordings.store !== undefined },
      alarms,
      async onMended(session) {
        await exportRecording({ store, readChunk, put: intoFolder(logDir) }, session);
        await logMirror?.putRecording(session);
      },
    });
    const recordings = createRecordings({
      ...{ store, keyring, chunks, node, live: sealing, onDamage: damage.found },
      sealNow: (session) => sealing.sealNow(session),
    });
    /** What is copied is what the log tells of. What is not that any more is told. */
    const soundChunk = async ({ session, chunk, sha256 }: Parameters<ReadChunk>[0]): Promise<Uint8Array> => {
      const bytes = await recordings.chunk(session, chunk);
      if (bytes !== undefined && sha256Hex(bytes) === sha256) return bytes;
      const what = bytes === undefined ? "is in no row of the store" : "is not the one that the log tells of";
      const error = new GlassError("integrity", `chunk ${chunk} of ${session} ${what}`);
      damage.found(session, error);
      throw error;
    };
    const readChunk: ReadChunk = (sealed) => soundChunk(sealed).catch(unlessDamaged);
    let keptAtMs = -KEEP_CHECKPOINT_MS;
    let exportSound = false;
    let compared = false; // whether the copy of the log was held against the log at all
    const exportNow = async (): Promise<void> => {
      const keep = performance.now() - keptAtMs >= KEEP_CHECKPOINT_MS;
      const exported = await exportTo(logDir, store, readChunk, await logKeys.text(), keep, logReader);
      if (keep && exported) keptAtMs = performance.now();
    };
    const exportOrClose = async (): Promise<void> => {
      try {
        await exportNow();
        if (!exportSound) await trouble.over("export", `export ${node}`); // mends itself once what is missing is back
        exportSound = true;
        compared = true;
      } catch (error) {
        exportSound = false;
        if (error instanceof GlassError && error.code === "integrity") {
          trouble.found("export", `export ${node}`, error);
          compared = true;
        }
        throw error;
      }
    };
    const copying = {
      ...{ store, reader: logReader, node, warn, keys: () => logKeys.text() },
      readChunk,
      alarms,
    };
    if (config.archive !== undefined) {
      const { to, ...when } = config.archive;
      const objects = openPlace(to, resolveSecret);
      const started = startArchive({ ...{ ...copying, ...when, readChunk: soundChunk }, objects });
      archive = started;
      archivePlace = objects.place;
      parts.set("archive", () => started.stop());
    }
    if (config.mirror !== undefined) {
      const to = config.mirror.kind === "folder" ? config.mirror : { objects: openPlace(config.mirror, resolveSecret) };
      const mirror = startMirror({ ...copying, to });
      logMirror = mirror;
      parts.set("mirror", () => mirror.stop());
    }
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
    const retention = { store, keyring, append };
    const retain = async (): Promise<void> => {
      if (!compared || doors.reasons().some(({ error }) => error.code === "integrity")) return; // it may be evidence
      await eraseExpired(retention, config.recordings.keepMs);
      await scrubKeys(address); // where it cannot be done now, the next round tries again
    };
    const signing = watchSigning({
      reader: logReader,
      alarms: alarms,
      explained: () => doors.reasons().some(({ reason }) => reason.startsWith("log")),
    });
    const timers = new AbortController();
    const loops = [
      every(BEAT_MS, timers.signal, beat, warn),
      every(SWEEP_MS, timers.signal, () => sweepGrants(access), warn),
      every(FORGOTTEN_MS, timers.signal, () => bus.cutForgotten(), warn),
      every(SWEEP_MS, timers.signal, () => openUnanswered(access), warn), // asks sources, which may be slow
      every(ORPHANS_MS, timers.signal, () => sweepOrphans(access), warn),
      every(EXPORT_MS, timers.signal, exportOrClose, warn),
      every(SWEEP_MS, timers.signal, () => watchDoors(store, node, doors), warn),
      every(SWEEP_MS, timers.signal, () => room.look(), warn),
      every(SWEEP_MS, timers.signal, () => trouble.tell(), warn),
      every(RETENTION_MS, timers.signal, retain, warn),
      every(RETENTION_MS, timers.signal, () => damage.look(timers.signal), warn),
      every(RETENTION_MS, timers.signal, signing, warn),
      every(RENEW_MS, timers.signal, () => identities.renew(gateway.identify), warn),
    ];
    parts.set("timers", async () => {
      timers.abort();
      await Promise.all(loops);
    });
    // Whoever starts next must not take this process for alive: it would not put its own policy folder into force.
    parts.set("node", async () => void (await store.deleteFrom("nodes").where("id", "=", node).execute()));

    const endpoints = new Map(
      gateway.ports.map(({ kind, port }) => [
        kind,
        { host: config.hosts[0] ?? "localhost", port, trust: identities.trust(kind, port) },
      ]),
    );
    const find = (name: string): { name: string; secret: string | undefined } | undefined => {
      const person = policy().people.find((candidate) => candidate.name === name && candidate.enabled);
      return person === undefined ? undefined : { name: person.name, secret: person.secret?.reveal() };
    };
    const login = createLogin({ store, throttle: createThrottle(systemClock), tokenTtlMs: config.tokenTtlMs, find });
    const api: Api = {
      ...{
        access,
        version: VERSION,
        kinds: kindsByName,
        ca: tls.ca,
        warn,
        log: { reader: logReader, keys: logKeys },
        archive,
        ...{ evidence, links, clock: systemClock },
      },
      personOfToken: (token) => personOfToken(store, token),
      login: (name, secret, remoteAddress) => {
        const attempt = login({ name, secret, remoteAddress: addressGroup(remoteAddress) });
        return metrics?.login(attempt) ?? attempt;
      },
      logout: (token) => revokeToken(store, token),
      endpoint: (kind) => endpoints.get(kind),
      checkTargets: (name) => checkTargets(access, name),
      setup: (kind, targetConfig) => identities.setup(kind, targetConfig),
      recordings,
      retention: {
        keepMs: config.recordings.keepMs,
        hold: (doer, on) => placeHold(retention, doer, on),
        release: (doer, hold) => releaseHold(retention, doer, hold),
        holds: (which) => listHolds(retention, which),
        erase: async (doer, what) => {
          const unsound = doors.reasons().find(({ error }) => error.code === "integrity");
          if (unsound !== undefined) throw unsound.error; // nothing is destroyed while something does not verify
          await eraseRecording(retention, doer, what);
        },
      },
      standing: { doors, storeStanding: standing },
      bundles,
      sinks,
      probes,
    };
    const app = await buildApp(api, { key: tls.key, cert: `${tls.cert}\n${tls.ca}` });
    parts.set("api", () => app.close());
    const port = await listen(app, config);
    const url = apiUrl(config.hosts[0] ?? "localhost", port);
    if (config.metrics !== undefined && metrics !== undefined) {
      const told = await startMetricsServer(config.metrics, { metrics, health: probes });
      parts.set("metrics", () => told.stop());
      metricsPort = told.port;
    }
    notifier.start(url);
    await say(store, "server.started", { version: VERSION });

    let stopping: Promise<void> | undefined;
    return {
      ...{
        url,
        endpoints,
        config,
        install,
        vkey: (await logKeys.verifiers()).map((key) => key.vkey).join("\n"),
        caFile,
        logDir,
        metricsPort,
      },
      failed: failed.promise,
      reloadPolicy: () => bundles.reload(),
      stop(why) {
        stopText = why ?? stopText;
        ending = true;
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

async function exportTo(
  folder: string,
  store: Store,
  readChunk: ReadChunk,
  vkey: string,
  keepCheckpoint: boolean,
  logReader: LogReader,
): Promise<boolean> {
  try {
    await exportLog({
      store,
      folder,
      witnessed: () => logReader.witnessed(),
      vkey,
      keepCheckpoint,
      readChunk,
    });
    return true;
  } catch (error) {
    if (!(error instanceof GlassError && error.code === "not_found")) throw error; // nothing is signed yet
    return false;
  }
}

function unlessDamaged(error: unknown): undefined {
  if (!(error instanceof GlassError && error.code === "integrity")) throw error;
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
