import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Notice } from "../../access/access.ts";
import { createAuthority, issueServerCertificate, type Identity } from "../../core/certificates.ts";
import { systemClock } from "../../core/clock.ts";
import { newId } from "../../core/ids.ts";
import { Secret } from "../../core/secret.ts";
import { policyOf, type Files } from "../../playbooks/fixtures/folder.ts";
import type { Policy } from "../../playbooks/policy.ts";
import { testStore, type TestStore } from "../../recording/testing/store.ts";
import type { ChannelConfig, NotifyConfig } from "../config.ts";
import { createLinks, type Links } from "../links.ts";
import { createNotifier, type NotifierOptions, type RunningNotifier } from "../notifier.ts";
import { fakePagerDuty, fakeReceiver, fakeSlack, type Fake } from "./fakes.ts";

export const WEBHOOK_SECRET = `whsec_${Buffer.alloc(32, 5).toString("base64")}`;
export const ROUTING_KEY = "r".repeat(32);
export const URL_OF_GLASSKEY = "https://glasskey.example:7443";

/** Outbox, channels and fakes on a database of their own: what tests of notices have in common. */
export interface Rig extends AsyncDisposable {
  readonly db: TestStore;
  readonly slack: Fake;
  readonly pager: Fake;
  readonly hook: Fake;
  readonly warnings: string[];
  readonly links: Links;
  readonly secrets: Map<string, string>;
  policy: Policy;
  channel(kind: "slack" | "pagerduty" | "webhook", changes?: object): ChannelConfig;
  /** A notifier of its own "process"; started unless told otherwise. */
  notifier(
    channels: Record<string, ChannelConfig>,
    changes?: Partial<NotifierOptions> & { alarms?: string[]; idle?: boolean },
  ): RunningNotifier;
  /** A grant that waits for an approval. */
  grant(requester?: string): Promise<string>;
  post(notifier: RunningNotifier, notice: Partial<Notice> & Pick<Notice, "event">): Promise<void>;
  notices(): Promise<
    readonly {
      id: string;
      grant_id: string | null;
      channel: string;
      event: string;
      delivered: boolean;
      given_up: boolean;
      last_error: string | null;
      receipt: string | null;
      attempts: number;
      person: string | null;
      page: boolean;
    }[]
  >;
  logged(type: string): Promise<readonly Record<string, unknown>[]>;
}

export async function startRig(
  cluster: { port: number; superuser: string; password: string },
  files: Files = {},
): Promise<Rig> {
  const folder = mkdtempSync(join(tmpdir(), "glasskey-notify-"));
  const authority = await createAuthority("tests", 2);
  const identity: Identity = await issueServerCertificate(authority, ["127.0.0.1"], 2);
  const ca = join(folder, "ca.pem");
  writeFileSync(ca, authority.cert);
  const db = await testStore(cluster);
  const [slack, pager, hook] = await Promise.all([
    fakeSlack(identity),
    fakePagerDuty(identity),
    fakeReceiver(identity, WEBHOOK_SECRET),
  ]);
  const secrets = new Map([
    ["${env:SLACK}", slack.url],
    ["${env:PAGER}", ROUTING_KEY],
    ["${env:HOOK}", WEBHOOK_SECRET],
  ]);
  const warnings: string[] = [];
  const notifiers: RunningNotifier[] = [];
  const links = createLinks(db.keyring);
  const rig: Rig = {
    ...{ db, slack, pager, hook, warnings, links, secrets, policy: await policyOf(files) },
    channel(kind, changes = {}) {
      const channels = {
        slack: { kind, webhook: "${env:SLACK}" },
        pagerduty: { kind, routingKey: "${env:PAGER}", url: pager.url, page: true },
        webhook: { kind, secret: "${env:HOOK}", url: hook.url, page: false },
      };
      return { why: false, ca, ...channels[kind], ...changes } as ChannelConfig;
    },
    notifier(channels, { alarms = [], idle = false, ...changes } = {}) {
      const config: NotifyConfig = { channels: new Map(Object.entries(channels)), alarms };
      const notifier = createNotifier({
        ...{ store: db.store, keyring: db.keyring, config, policy: () => rig.policy, links, node: "nd_1" },
        ...{ clock: systemClock, warn: (line: string) => warnings.push(line), pollMs: 20, pausesMs: [30, 60] },
        resolveSecret: (reference) => new Secret(secrets.get(reference.replace(/_OF_[A-Z]+/, "")) ?? ""),
        ...changes,
      });
      notifiers.push(notifier);
      if (!idle) notifier.start(URL_OF_GLASSKEY);
      return notifier;
    },
    async grant(requester = "ann") {
      const id = newId("grant");
      await db.store
        .insertInto("grants")
        .values({
          ...{ id, state: "pending", playbook: "p", playbook_hash: "h", target: "t", kind: "fake", requester },
          ...{
            reason: "outage",
            why: Buffer.alloc(0),
            incident: null,
            need: 1,
            duration_ms: 1,
            max_ms: 1,
            idle_ms: null,
          },
          ...{ decision: "{}", decide_by: new Date(Date.now() + 3_600_000) },
        })
        .execute();
      return id;
    },
    async post(notifier, notice) {
      const whole: Notice = {
        ...{
          playbook: "orders-db-write",
          target: "orders-prod",
          requester: "ann",
          reason: "outage",
          why: "the words of ann",
        },
        ...{ text: "ann asks for orders-db-write.", channels: [], ...notice },
      };
      await db.store.transaction().execute((tx) => notifier.post(tx, whole));
    },
    async notices() {
      const rows = await db.store.selectFrom("notices").selectAll().orderBy("created_at").execute();
      return rows.map(({ delivered_at, given_up_at, ...row }) => ({
        ...row,
        delivered: delivered_at !== null,
        given_up: given_up_at !== null,
      }));
    },
    async logged(type) {
      const rows = await db.store.selectFrom("log_queue").select("entry").execute();
      return rows
        .map(({ entry }) => JSON.parse(Buffer.from(entry).toString("utf8")) as Record<string, unknown>)
        .filter((entry) => entry["type"] === type);
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(notifiers.map((notifier) => notifier.stop()));
      await Promise.all([slack.stop(), pager.stop(), hook.stop()]);
      await db[Symbol.asyncDispose]();
      rmSync(folder, { recursive: true, force: true });
    },
  };
  return rig;
}

/** Waits until `check` gives something. */
export async function until<T>(check: () => Promise<T | undefined> | T | undefined, withinMs = 20_000): Promise<T> {
  const deadline = performance.now() + withinMs;
  for (;;) {
    const found = await check();
    if (found !== undefined) return found;
    if (performance.now() > deadline) throw new Error("it did not come to pass");
    await new Promise((done) => setTimeout(done, 10));
  }
}
