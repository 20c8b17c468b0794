import { Counter, collectDefaultMetrics, Gauge, Registry } from "prom-client";
import { describe, GlassError } from "../core/errors.ts";
import { createFigures, type FigureParts, type Figures } from "./figures.ts";
import { atMostOnceIn, type Health } from "./health.ts";

/**
 * What Prometheus is told. Names begin with `glasskey_`, units are in the names (`_seconds`, `_bytes`, `_entries`), and no
 * label has a value that a person, a grant or a session gives: the largest are the sinks and archives of glasskey.yaml.
 */
export interface Metrics {
  /** The whole text (Prometheus exposition format 0.0.4). Never rejects; collects once a second at most. */
  text(): Promise<string>;
  readonly contentType: string;
  /** Counts what the policy decides. Gives the same policy back. */
  counted<P extends Decider>(policy: P): P;
  /** Counts a login that was refused. Gives the same promise back. */
  login<T>(attempt: Promise<T>): Promise<T>;
  /** A client at the gateway did not prove its secret. */
  proofFailed(): void;
}

/** Of a policy, what is counted. */
export interface Decider {
  decide(question: never): { readonly allow: boolean; readonly clauses: readonly { readonly unknown: boolean }[] };
}

export interface MetricsParts extends FigureParts {
  readonly version: string;
  readonly health: Health;
  /** Of this process, at this moment. What cannot be told is undefined. */
  local(): Promise<LocalFigures>;
}

export interface LocalFigures {
  /** Sessions that this process carries. */
  readonly sessions: number | undefined;
  /** Journal frames that were read and are not in a sealed chunk yet, and the bytes that wait in memory for it. */
  readonly unsealedFrames: number | undefined;
  readonly unsealedBytes: number | undefined;
  /** Free space where the data folder is. */
  readonly diskFreeBytes: number | undefined;
}

const COLLECT_MS = 1_000;
const GRANT_STATES = ["pending", "approved", "opening", "active", "closing"];
const LEASE_STATES = ["planned", "minting", "live", "closing"];

export function createMetrics(parts: MetricsParts): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const gauge = <L extends string>(name: string, help: string, labelNames: L[] = []): Gauge<L> =>
    new Gauge({ name: `glasskey_${name}`, help, labelNames, registers: [registry] });
  const counter = <L extends string>(name: string, help: string, labelNames: L[] = []): Counter<L> =>
    new Counter({ name: `glasskey_${name}`, help, labelNames, registers: [registry] });

  gauge("build_info", "Which Glasskey this is; always 1", ["version"]).set({ version: parts.version }, 1);
  const live = gauge("live", "1 while this process works: its data plane answers");
  const ready = gauge("ready", "1 while grants can be opened and used here");
  const up = gauge("store_up", "1 if the store answered");
  const own = {
    sessions: gauge("process_sessions", "Sessions that this process carries"),
    frames: gauge("journal_unsealed_frames", "Journal frames of this process that are in no sealed chunk yet"),
    bytes: gauge("journal_unsealed_bytes", "Bytes of records that wait for their chunk"),
    disk: gauge("disk_free_bytes", "Free space where the data folder is"),
  };
  const all = {
    grants: gauge("grants", "Grants that are not over, in the whole store", ["state"]),
    leases: gauge("leases", "Credentials that are not proved gone, in the whole store", ["state"]),
    unproved: gauge("revocations_unproved", "Credentials that are being removed and are not proved gone yet"),
    late: gauge("revocations_late", "Of those, the ones that take longer than the worst case of their target"),
    oldest: gauge("revocations_unproved_oldest_seconds", "How long the oldest of them has been closing"),
    sessions: gauge("sessions", "Sessions on the books, in the whole store"),
    notices: gauge("notices_waiting", "Notices to people that are not delivered"),
    noticeAge: gauge("notices_oldest_seconds", "Age of the oldest of them"),
    alarms: gauge("alarms", "Alarms that are not over"),
    unsigned: gauge("reviews_unsigned", "Uses whose review is not signed"),
    overdue: gauge("reviews_overdue", "Of those, the ones past their time"),
    entries: gauge("log_entries", "Entries that a signed checkpoint covers"),
    waiting: gauge("log_unsigned_entries", "Committed entries that no checkpoint covers yet"),
    waitingAge: gauge("log_unsigned_oldest_seconds", "Age of the oldest of them"),
    witnessLag: gauge("witness_lag_entries", "Signed entries that the witness policy does not cover yet"),
    witnessAge: gauge("witness_lag_seconds", "Age of the first checkpoint that is not witnessed"),
    archiveLag: gauge("archive_lag_entries", "Signed entries that are not archived yet", ["place"]),
    archiveAge: gauge("archive_lag_seconds", "Age of the first checkpoint that is not archived", ["place"]),
    sinkLag: gauge("sink_lag_entries", "Signed entries that the sink has not acknowledged", ["sink"]),
    sinkAge: gauge("sink_lag_seconds", "Age of the oldest of them", ["sink"]),
    parked: gauge("sink_parked_entries", "Entries that the sink refused and that wait for a person", ["sink"]),
  };
  const decisions = counter("decisions_total", "Answers of the policy in this process", ["action", "outcome"]);
  const logins = counter("logins_failed_total", "Logins that this process refused");
  const proofs = counter("gateway_proofs_failed_total", "Clients that did not prove their secret at this gateway");

  /** What is not known is not there: a value of yesterday, or zero, would be a lie. */
  const put = (into: Gauge, value: number | undefined): void => {
    if (value === undefined) into.remove();
    else into.set(value);
  };
  const states = (into: Gauge<"state">, known: readonly string[], counts: Figures["grants"]): void => {
    into.reset();
    if (counts === undefined) return;
    for (const state of known) into.set({ state }, counts.find((one) => one.state === state)?.count ?? 0);
  };

  const readFigures = createFigures(parts);
  const collect = async (): Promise<string> => {
    const [figures, local, isReady] = await Promise.all([readFigures(), parts.local(), parts.health.ready()]);
    live.set(parts.health.live().ok ? 1 : 0);
    ready.set(isReady.ok ? 1 : 0);
    up.set(figures.up ? 1 : 0);
    put(own.sessions, local.sessions);
    put(own.frames, local.unsealedFrames);
    put(own.bytes, local.unsealedBytes);
    put(own.disk, local.diskFreeBytes);
    states(all.grants, GRANT_STATES, figures.grants);
    states(all.leases, LEASE_STATES, figures.leases);
    put(all.unproved, figures.revocations?.unproved);
    put(all.late, figures.revocations?.late);
    put(all.oldest, figures.revocations?.oldestSeconds);
    put(all.sessions, figures.sessions);
    put(all.notices, figures.notices?.waiting);
    put(all.noticeAge, figures.notices?.oldestSeconds);
    put(all.alarms, figures.alarms);
    put(all.unsigned, figures.reviews?.unsigned);
    put(all.overdue, figures.reviews?.overdue);
    put(all.entries, figures.log?.entries);
    put(all.waiting, figures.log?.unsigned);
    put(all.waitingAge, figures.log?.unsignedSeconds);
    put(all.witnessLag, figures.witnessed?.lagEntries);
    put(all.witnessAge, figures.witnessed?.lagSeconds);
    for (const one of [all.archiveLag, all.archiveAge, all.sinkLag, all.sinkAge, all.parked]) one.reset();
    for (const { name: place, entries, seconds } of figures.archives ?? []) {
      all.archiveLag.set({ place }, entries);
      all.archiveAge.set({ place }, seconds);
    }
    for (const { name: sink, entries, seconds, parked } of figures.sinks ?? []) {
      all.sinkLag.set({ sink }, entries);
      all.sinkAge.set({ sink }, seconds);
      all.parked.set({ sink }, parked);
    }
    return registry.metrics();
  };
  const text = atMostOnceIn(COLLECT_MS, () =>
    collect().catch((error: unknown) => `# the metrics cannot be collected: ${describe(error)}\n`),
  );

  const countedBefore = new WeakMap<Decider, Decider>();
  return {
    text,
    contentType: registry.contentType,
    counted(policy) {
      const known = countedBefore.get(policy);
      if (known !== undefined) return known as typeof policy;
      const decide = (question: never): ReturnType<Decider["decide"]> => {
        const decision = policy.decide(question);
        const { action } = question as { action: string };
        const isUnknown = decision.clauses.some((clause) => clause.unknown);
        decisions.inc({ action, outcome: isUnknown ? "unknown" : decision.allow ? "allow" : "deny" });
        return decision;
      };
      const counted = { ...policy, decide };
      countedBefore.set(policy, counted);
      return counted;
    },
    login(attempt) {
      attempt.catch((error: unknown) => {
        if (error instanceof GlassError && error.status < 500) logins.inc();
      });
      return attempt;
    },
    proofFailed: () => proofs.inc(),
  };
}
