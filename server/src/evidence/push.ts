import { createHmac } from "node:crypto";
import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { equalSecret } from "../core/bytes.ts";
import type { Clock } from "../core/clock.ts";
import { GlassError, describe } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import type { Store, Tx } from "../store/database.ts";
import type { WebhookConfig } from "./config.ts";

/** A signed push as it came, nothing of it checked (standardwebhooks.com, specification 1.0.0). */
export interface Push {
  /** The part of `webhook:NAME` after the colon. */
  readonly source: string;
  /** `webhook-id`, `webhook-timestamp` and `webhook-signature`. */
  readonly id: string | undefined;
  readonly timestamp: string | undefined;
  readonly signature: string | undefined;
  /** The bytes that were signed. */
  readonly body: Buffer;
}

/** What a push says, checked for form and bounds by whoever read it. */
export interface PushedFacts {
  /** Rota → ids of the people on call; empty: nobody. */
  readonly oncall: ReadonlyMap<string, readonly string[]>;
  readonly incidents: ReadonlyMap<
    string,
    { readonly state: "open"; readonly severity: string } | { readonly state: "closed" }
  >;
  readonly observedAt: Date;
  /** How long they hold, from `observedAt`; a day at most. */
  readonly ttlMs: number;
}

export interface PushReceiver {
  /**
   * Takes a push. `read` is called with the body once it is known who signed it.
   * @returns how many facts are news; the others were told of by a later observation.
   * @throws GlassError `unauthenticated` where nobody known signed it (a source that does not exist looks the same);
   *   `conflict` for a push that was taken before; `usage` for one that is too old or not well-formed.
   */
  receive(push: Push, read: (body: Buffer) => PushedFacts): Promise<{ taken: number; outdated: number }>;
}

/** A fact that nobody renews for a day is not one to open production on. */
const MAX_TTL_MS = 86_400_000;
const TOLERANCE_MS = 300_000; // Standard Webhooks: "some allowable tolerance"; its libraries take five minutes
const MAX_SIGNATURES = 8;
const MAX_FACTS_OF_A_SOURCE = 2000;
const SAY_REFUSAL_EVERY_MS = 60_000;
/** Compared against where there is no secret, so that the answer takes the same steps. */
const NOBODYS_KEY = Buffer.alloc(32, 0x5a);

export function createPushReceiver(options: {
  sources: readonly { readonly config: WebhookConfig; readonly secrets: () => readonly Secret[] }[];
  store: Store;
  clock: Clock;
  warn: (line: string) => void;
}): PushReceiver {
  const { store, clock, warn } = options;
  const sources = new Map(options.sources.map((source) => [source.config.name, source]));
  const refusals = new Map<string, number>();

  /** Tells of a refusal in the log, once a minute for each source and cause: anybody can send rubbish. */
  const refuse = async (source: string, why: Refusal, error: GlassError): Promise<never> => {
    const nowMs = clock.monotonicMs();
    const key = `${source} ${why}`;
    if (nowMs >= (refusals.get(key) ?? Number.NEGATIVE_INFINITY)) {
      refusals.set(key, nowMs + SAY_REFUSAL_EVERY_MS);
      const data = { source, why };
      await store
        .transaction()
        .execute((tx) => append(tx, { type: "evidence.refused", at: clock.now(), actor: "glasskey", data }))
        .catch((cause: unknown) => warn(`evidence: a refused push is not in the log: ${describe(cause)}`));
    }
    throw error;
  };

  /** A secret that cannot be read now signs nothing; that it cannot is not the sender's to know. */
  const keysOf = (secrets: () => readonly Secret[], name: string): readonly Buffer[] => {
    try {
      return secrets().map(keyOf);
    } catch (error) {
      warn(`evidence: ${name}: ${describe(error)}`);
      return [];
    }
  };

  return {
    async receive(push, read) {
      const source = sources.get(`webhook:${push.source}`);
      const name = source?.config.name ?? "unknown"; // never what a stranger wrote
      const { id = "", timestamp = "" } = push;
      const formed = /^[A-Za-z0-9_-]{1,128}$/.test(id) && /^\d{1,12}$/.test(timestamp);
      const keys = source === undefined ? [NOBODYS_KEY] : keysOf(source.secrets, name);
      const signed = isSigned(push, keys);
      if (source === undefined || !formed || !signed) {
        const error = new GlassError("unauthenticated", "the signature of this push does not hold", {
          next: "Sign it as docs/evidence.md says, with the secret of this source.",
        });
        return refuse(name, "signature", error);
      }
      const nowMs = clock.now().getTime();
      if (Math.abs(nowMs - Number(timestamp) * 1000) > TOLERANCE_MS)
        return refuse(name, "age", usage("webhook-timestamp is more than 5 minutes off"));
      let facts: PushedFacts;
      try {
        facts = readChecked(push.body, read, nowMs);
      } catch (error) {
        return refuse(name, "form", error instanceof GlassError ? error : usage("the body cannot be read"));
      }
      await forgetOld(store, name).catch(() => {}); // the store being away is told by what follows
      const taken = await store.transaction().execute((tx) => take(tx, name, id, facts, clock.now()));
      if (taken === "repeated") {
        const error = new GlassError("conflict", "a push of this id was taken already; nothing has changed");
        return refuse(name, "repeated", error);
      }
      if (taken === "full")
        return refuse(name, "full", usage(`this source has pushed more than ${MAX_FACTS_OF_A_SOURCE} facts`));
      return { taken: taken.length, outdated: facts.oncall.size + facts.incidents.size - taken.length };
    },
  };
}

type Refusal = "signature" | "age" | "form" | "repeated" | "full";

/** The key of a `whsec_…` secret: 24 to 64 bytes. @throws GlassError `config_invalid`. */
export function keyOf(secret: Secret): Buffer {
  const base64 = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(secret.reveal())?.[1];
  const key = Buffer.from(base64 ?? "", "base64");
  if (key.length >= 24 && key.length <= 64) return key;
  throw new GlassError(
    "config_invalid",
    "the secret of a webhook source is not of the form that Standard Webhooks has",
    {
      next: 'Make one with: echo "whsec_$(openssl rand -base64 32)"',
    },
  );
}

/** The MAC of Standard Webhooks' `v1`. */
export function macOf(key: Buffer, id: string, timestamp: string, body: Buffer): Buffer {
  return createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
}

function isSigned(push: Push, keys: readonly Buffer[]): boolean {
  const given = (push.signature ?? "").slice(0, 4096).split(" ").slice(0, MAX_SIGNATURES);
  let holds = false;
  for (const key of keys) {
    const mac = macOf(key, push.id ?? "", push.timestamp ?? "", push.body);
    for (const signature of given) {
      const base64 = /^v1,([A-Za-z0-9+/]{43}=)$/.exec(signature)?.[1] ?? "";
      if (equalSecret(Buffer.from(base64, "base64"), mac)) holds = true;
    }
  }
  return holds;
}

function readChecked(body: Buffer, read: (body: Buffer) => PushedFacts, nowMs: number): PushedFacts {
  const facts = read(body);
  const observedMs = facts.observedAt.getTime();
  if (observedMs > nowMs + TOLERANCE_MS) throw usage("observedAt is in the future");
  if (facts.ttlMs > MAX_TTL_MS) throw usage("ttl is longer than a day");
  if (observedMs + facts.ttlMs <= nowMs) throw usage("the facts are older than their own ttl");
  // A fast clock must not outlive what is observed next.
  return observedMs <= nowMs ? facts : { ...facts, observedAt: new Date(nowMs) };
}

/** Pushes long after their timestamp would be refused, and facts after any older push about them would be over. */
async function forgetOld(store: Store, source: string): Promise<void> {
  await store
    .deleteFrom("evidence_pushes")
    .where("received_at", "<", sql<Date>`now() - interval '1 hour'`)
    .execute();
  await store
    .deleteFrom("evidence_facts")
    .where("source", "=", source)
    .where("expires_at", "<", sql<Date>`now() - interval '25 hours'`)
    .execute();
}

/** @returns the facts that are news; or why nothing was taken. */
async function take(
  tx: Tx,
  source: string,
  id: string,
  { oncall, incidents, observedAt, ttlMs }: PushedFacts,
  now: Date,
): Promise<readonly string[] | "repeated" | "full"> {
  const rows = rowsOf(oncall, incidents);
  if (await isFull(tx, source, rows)) return "full";
  const first = await tx
    .insertInto("evidence_pushes")
    .values({ source, id })
    .onConflict((c) => c.columns(["source", "id"]).doNothing())
    .returning("source")
    .executeTakeFirst();
  if (first === undefined) return "repeated";
  const expiresAt = new Date(observedAt.getTime() + ttlMs);
  const taken: string[] = [];
  if (rows.length > 0) {
    const written = await tx
      .insertInto("evidence_facts")
      .values(rows.map((row) => ({ ...row, source, observed_at: observedAt, expires_at: expiresAt })))
      .onConflict((c) =>
        c
          .columns(["source", "fact"])
          .doUpdateSet((eb) => ({
            value: eb.ref("excluded.value"),
            severity: eb.ref("excluded.severity"),
            people: eb.ref("excluded.people"),
            observed_at: eb.ref("excluded.observed_at"),
            expires_at: eb.ref("excluded.expires_at"),
            received_at: sql<Date>`now()`,
          }))
          .whereRef("evidence_facts.observed_at", "<=", "excluded.observed_at"),
      )
      .returning("fact")
      .execute();
    taken.push(...written.map(({ fact }) => fact));
  }
  const data = { source, facts: taken, outdated: rows.length - taken.length, observedAt: observedAt.toISOString() };
  await append(tx, { type: "evidence.received", at: now, actor: "glasskey", data });
  return taken;
}

function usage(message: string): GlassError {
  return new GlassError("usage", message);
}

function rowsOf(oncall: PushedFacts["oncall"], incidents: PushedFacts["incidents"]) {
  return [
    ...[...oncall].map(([rota, people]) => ({
      ...{ fact: `oncall:${rota}`, value: "true" as const, severity: null, people: JSON.stringify(people) },
    })),
    ...[...incidents].map(([ref, incident]) => ({
      ...{ fact: `incident:${ref}`, people: null },
      ...(incident.state === "open"
        ? { value: "true" as const, severity: incident.severity }
        : { value: "false" as const, severity: null }),
    })),
  ].toSorted((a, b) => (a.fact < b.fact ? -1 : 1)); // two pushes at once take their rows in the same order
}

async function isFull(tx: Tx, source: string, rows: readonly { fact: string }[]): Promise<boolean> {
  if (rows.length === 0) return false;
  const { others } = await tx
    .selectFrom("evidence_facts")
    .select((eb) => eb.fn.countAll<number>().as("others"))
    .where("source", "=", source)
    .where(
      "fact",
      "not in",
      rows.map(({ fact }) => fact),
    )
    .executeTakeFirstOrThrow();
  return others + rows.length > MAX_FACTS_OF_A_SOURCE;
}
