import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { SharedCluster } from "../../../testing/global.ts";
import { createLog, type LogFixture } from "../../audit/fixtures/log.ts";
import { createLogReader } from "../../audit/read.ts";
import { createAuthority, issueServerCertificate, type Identity } from "../../core/certificates.ts";
import { Secret } from "../../core/secret.ts";
import { sinksSchema, type SinkConfig } from "../config.ts";
import { startSinks, type Sinks, type SinksOptions } from "../sinks.ts";

export const ORIGIN = "glasskey.test/log";
export const WEBHOOK_SECRET = `whsec_${Buffer.alloc(32, 5).toString("base64")}`;

/** A signed log on a database of its own, and what sinks need around them. */
export interface Rig extends AsyncDisposable {
  readonly log: LogFixture;
  readonly folder: string;
  /** Of 127.0.0.1. */
  readonly identity: Identity;
  /** Of another name. */
  readonly stranger: Identity;
  readonly ca: string;
  readonly secrets: Map<string, string>;
  readonly warnings: string[];
  /** Alarms that are raised now: key → text. */
  readonly alarms: Map<string, string>;
  /** Starts the sinks of one "process"; stopped at the end, if not before. */
  sinks(config: Record<string, object>, changes?: Partial<SinksOptions>): Promise<Sinks>;
  /** Appends entries and waits for the checkpoint that covers them. @returns the log's size. */
  add(count: number, type?: "login.succeeded" | "alarm.raised"): Promise<number>;
  /** Where the cursor of a sink is. */
  next(name: string): Promise<number>;
  /** Leaf hashes by index. */
  hashes(): Promise<readonly string[]>;
}

export function configOf(config: Record<string, object>): readonly SinkConfig[] {
  return sinksSchema.parse(config);
}

export async function startRig(cluster: SharedCluster): Promise<Rig> {
  const log = await createLog(cluster);
  const folder = mkdtempSync(join(tmpdir(), "glasskey-sinks-"));
  const authority = await createAuthority("tests", 2);
  const identity = await issueServerCertificate(authority, ["127.0.0.1", "localhost"], 2);
  const stranger = await issueServerCertificate(authority, ["elsewhere.example"], 2);
  const ca = join(folder, "ca.pem");
  writeFileSync(ca, authority.cert);
  await log.sequence();
  const reader = createLogReader(log.store);
  const secrets = new Map([
    ["${env:HOOK}", WEBHOOK_SECRET],
    ["${env:TOKEN}", "t0p-secret-token"],
  ]);
  const warnings: string[] = [];
  const alarms = new Map<string, string>();
  const running: Sinks[] = [];
  return {
    ...{ log, folder, identity, stranger, ca, secrets, warnings, alarms },
    async sinks(config, changes = {}) {
      const sinks = await startSinks({
        ...{ sinks: configOf(config), store: log.store, node: "nd_1", pollMs: 20, pausesMs: [20, 50], watchMs: 20 },
        speaker: { origin: ORIGIN, version: "0.1.0" },
        resolveSecret: (reference) => new Secret(secrets.get(reference) ?? ""),
        namesOf: async (ids) => Object.fromEntries(ids.map((id) => [id, `name of ${id}`])),
        alarms: {
          raise: async (key, text) => alarms.set(key, text),
          clear: async (key) => alarms.delete(key),
        },
        warn: (line) => warnings.push(line),
        ...changes,
      });
      running.push(sinks);
      return sinks;
    },
    async add(count, type = "login.succeeded") {
      await log.append(
        ...Array.from({ length: count }, () => ({ type, data: { tag: randomBytes(4).toString("hex") } })),
      );
      return reader.settled(60_000);
    },
    async next(name) {
      const row = await log.store.selectFrom("sinks").select("next_index").where("name", "=", name).executeTakeFirst();
      return row?.next_index ?? -1;
    },
    async hashes() {
      const rows = await log.store.selectFrom("log_entries").select("leaf_hash").orderBy("idx").execute();
      return rows.map((row) => row.leaf_hash.toString("hex"));
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(running.map((sinks) => sinks.stop()));
      await log.dispose();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** Index and leaf hash of each line, in either format. */
export function tagsOf(lines: readonly string[]): readonly { index: number; leafHash: string }[] {
  return lines
    .filter((line) => line !== "")
    .map((line) => {
      const value = JSON.parse(line) as {
        index?: number;
        leafHash?: string;
        unmapped?: { log_index: number; leaf_hash: string };
      };
      const { index = value.unmapped?.log_index ?? -1, leafHash = value.unmapped?.leaf_hash ?? "" } = value;
      return { index, leafHash };
    });
}

/** Waits until `check` gives something. */
export async function until<T>(check: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
  const deadline = performance.now() + 50_000;
  for (;;) {
    const found = await check();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > deadline) throw new Error("it did not come to pass");
    await new Promise((done) => setTimeout(done, 10));
  }
}
