import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import {
  consistencyProof,
  FormatError,
  openWitnessed,
  parseCheckpointText,
  parseNote,
  VerifyError,
  witnessPolicy,
  type Cosignature,
  type NoteVerifier,
} from "@glasskey/verify";
import { sql } from "kysely";
import { sleep, systemClock, within } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";
import { createLogReader, readStoredTile } from "./read.ts";
import type { ThirdPlace } from "./sequencer.ts";
import { nodesOf } from "./tree.ts";
import { createWitnessClient, type WitnessAnswer, type WitnessClient } from "./witness-client.ts";
import type { WitnessConfig, WitnessesConfig } from "./witness-config.ts";

export interface WitnessesOptions {
  readonly store: Store;
  readonly config: WitnessesConfig;
  /** Every key of the log, former ones too. */
  readonly logKeys: () => Promise<readonly NoteVerifier[]>;
  readonly alarms: { raise(key: string, text: string): Promise<unknown>; clear(key: string): Promise<unknown> };
  readonly warn: (line: string) => void;
  readonly now?: (() => Date) | undefined;
  readonly pauseMs?: number | undefined;
  readonly timeoutMs?: number | undefined;
  readonly alarmAfterMs?: number | undefined;
}

/** The witnesses of this installation's log: asked about its newest checkpoint, and what they said of it. */
export interface Witnesses extends ThirdPlace {
  /** Whether the log and enough witnesses signed this checkpoint, by the policy of now. */
  satisfies(note: string): Promise<boolean>;
  /** Begins to ask about every newest checkpoint, one process at a time. */
  start(): void;
  /** Asks once more, about what was signed last, and lets go of the claim. */
  stop(): Promise<void>;
}

const PAUSE_MS = 1_000; // one question a second to each witness
const TIMEOUT_MS = 10_000; // of one witness in one round, a second question after a 409 included
const GRACE_MS = 500; // for the others, when enough have signed: an auditor may ask for more of them than we do
const LAST_MS = 3_000; // at a stop
const CONFIRM_MS = 5_000; // at a start, for all together
const CLAIM_MS = 30_000; // longer than a round
const ALARM_AFTER_MS = 300_000;
/** After failures in a row, the last one for all further ones: a witness that is back is noticed within a minute. */
const PAUSES_MS = [1_000, 2_000, 5_000, 15_000, 60_000] as const;
const POLICY_ALARM = "witnesses";

/** One witness, as this process knows it. What is lost with the process costs one question: a 409 tells it again. */
interface Peer {
  readonly client: WitnessClient;
  /** Size of the last checkpoint that it cosigned or said that it knows. */
  size: number | undefined;
  busy: boolean;
  failures: number;
  restUntilMs: number;
  /** Whether it says that it saw another log; undefined before its first word, when an alarm from earlier may be open. */
  accuses: boolean | undefined;
}

type Checkpoint = { readonly size: number; readonly note: string };

/** @throws GlassError `config_invalid` where a CA cannot be read. */
export function createWitnesses(options: WitnessesOptions): Witnesses {
  const { store, config, warn, alarms } = options;
  const { now = () => systemClock.now(), pauseMs = PAUSE_MS, timeoutMs = TIMEOUT_MS } = options;
  const policy = witnessPolicy(
    config.need,
    config.of.map(({ key }) => key),
  );
  const reader = createLogReader(store, { witnessed: satisfies });
  const me = randomUUID();
  const stopping = new AbortController();
  const peers = config.of.map((witness): Peer => {
    const client = createWitnessClient({ keys: keysOf(witness), url: witness.url, ca: caOf(witness), now });
    return { client, size: undefined, busy: false, failures: 0, restUntilMs: 0, accuses: undefined };
  });
  let work: Promise<void> = Promise.resolve();
  let asks = false; // had the claim when it last looked
  let mayBeRaised = true;

  function keysOf({ key }: WitnessConfig): [NoteVerifier, ...NoteVerifier[]] {
    const verifier = policy.keys.find(({ vkey }) => vkey === key);
    if (verifier === undefined) throw new GlassError("internal", "a witness is not in its policy");
    return [verifier];
  }

  async function satisfies(note: string): Promise<boolean> {
    try {
      openWitnessed(note, await options.logKeys(), policy);
      return true;
    } catch (error) {
      if (error instanceof FormatError || error instanceof VerifyError) return false;
      throw error;
    }
  }

  async function newest(): Promise<Checkpoint | undefined> {
    return store
      .selectFrom("log_checkpoints")
      .select(["size", "note"])
      .orderBy("size", "desc")
      .limit(1)
      .executeTakeFirst();
  }

  async function claim(): Promise<boolean> {
    const taken = await store
      .updateTable("witness_claim")
      .set({ claimed_by: me, claimed_until: sql<Date>`now() + ${CLAIM_MS} * interval '1 millisecond'` })
      .where((eb) =>
        eb.or([eb("claimed_by", "is", null), eb("claimed_by", "=", me), sql<boolean>`claimed_until < now()`]),
      )
      .returning("only_one")
      .executeTakeFirst();
    return taken !== undefined;
  }

  /** One witness in one round: the question, and once more with what a 409 told. */
  async function ask(peer: Peer, head: Checkpoint, guess: number, signal: AbortSignal): Promise<WitnessAnswer> {
    let from = Math.min(peer.size ?? guess, head.size);
    for (let attempt = 1; ; attempt += 1) {
      const proof =
        from === 0 || from === head.size ? [] : await consistencyProof(from, head.size, nodesOf(readStoredTile(store)));
      const answer = await peer.client.ask(head.note, from, proof, signal);
      if (answer.kind !== "size" || answer.size > head.size || attempt === 2) return answer;
      if (peer.size !== undefined && answer.size < peer.size)
        warn(`witness ${peer.client.name} lost its memory: it cosigned ${peer.size} entries, and says ${answer.size}`);
      from = answer.size;
    }
  }

  async function settle(peer: Peer, head: Checkpoint, answer: WitnessAnswer): Promise<Cosignature | undefined> {
    const { name } = peer.client;
    const suspect = async (text: string): Promise<void> => {
      peer.accuses = true;
      await alarms.raise(`witness ${name}`, `the witness ${name} saw another log than this one: ${text}`);
    };
    switch (answer.kind) {
      case "cosigned":
        if (peer.failures > 0) warn(`witness ${name} cosigns now`);
        Object.assign(peer, { size: head.size, failures: 0, restUntilMs: 0 });
        // Old and new key of one witness are two peers with one alarm.
        if (
          peer.accuses !== false &&
          !peers.some((other) => other !== peer && other.client.name === name && other.accuses)
        )
          await alarms.clear(`witness ${name}`);
        peer.accuses = false;
        return answer.cosignature;
      case "size": {
        const published = (await newest())?.size ?? 0; // read now: another process may have published, and asked
        if (answer.size > published) {
          await suspect(`it knows ${answer.size} entries, and ${published} were ever signed here`);
        } else if (answer.size > head.size) {
          peer.size = answer.size;
          return undefined;
        } else if (peer.failures === 0) warn(`witness ${name} is asked again later: it does not keep to one size`);
        break;
      }
      case "inconsistent":
        await suspect(`the ${head.size} entries of here are no continuation of what it cosigned`);
        break;
      case "failed":
        if (peer.failures === 0) warn(`witness ${name} is asked again later: ${answer.why}`);
        break;
    }
    peer.failures += 1;
    peer.size = undefined;
    peer.restUntilMs = performance.now() + (PAUSES_MS[Math.min(peer.failures, PAUSES_MS.length) - 1] ?? 0);
    return undefined;
  }

  /** Asks whoever is free about this checkpoint, and stores it when enough have signed. */
  async function round(head: Checkpoint, guess: number, limitMs: number, last: boolean): Promise<void> {
    const free = peers.filter((peer) => !peer.busy && (last || peer.restUntilMs <= performance.now()));
    const signed: Cosignature[] = [];
    const met = Promise.withResolvers<void>();
    const asked = free.map(async (peer) => {
      peer.busy = true;
      try {
        // The stop does not break off what is under way: a witness that has signed should be heard.
        const answer = await ask(peer, head, guess, AbortSignal.timeout(limitMs));
        const cosignature = await settle(peer, head, answer);
        if (cosignature === undefined) return;
        signed.push(cosignature);
        if (policy.isMetBy(signed.map(({ vkey }) => vkey))) met.resolve();
      } catch (error) {
        warn(`witness ${peer.client.name} was not asked: ${describe(error)}`);
      } finally {
        peer.busy = false;
      }
    });
    const all = Promise.all(asked);
    const enough = Promise.race([all.then(() => {}), met.promise.then(() => sleep(GRACE_MS))]);
    await within(limitMs + pauseMs, enough, () => {});
    if (!policy.isMetBy(signed.map(({ vkey }) => vkey))) return;
    const note = `${head.note}${signed.map(({ line }) => line).join("")}`;
    const { size, root } = openWitnessed(note, await options.logKeys(), policy);
    await store
      .insertInto("witnessed_checkpoints")
      .values({ size, root: Buffer.from(root), note })
      .onConflict((c) => c.doNothing()) // the process that had the claim before
      .execute();
  }

  /** An alarm when news has waited too long for its witnesses, by the store's clock. */
  async function watch(witnessed: number): Promise<void> {
    const afterMs = options.alarmAfterMs ?? ALARM_AFTER_MS;
    const waiting = await store
      .selectFrom("log_checkpoints")
      .select(["size", sql<boolean>`signed_at < now() - ${afterMs} * interval '1 millisecond'`.as("late")])
      .where("size", ">", witnessed)
      .orderBy("size")
      .limit(1)
      .executeTakeFirst();
    if (waiting?.late === true) {
      mayBeRaised = true;
      const wanted = `${policy.description} must cosign, and the output says which does not, and why`;
      const text = `the log has not been witnessed since its entry ${witnessed}: ${wanted}`;
      await alarms.raise(POLICY_ALARM, text);
    } else if (mayBeRaised) {
      await alarms.clear(POLICY_ALARM);
      mayBeRaised = false;
    }
  }

  async function look(limitMs: number, last = false): Promise<void> {
    const asked = asks;
    asks = await claim();
    if (!asks) return;
    if (!asked) {
      // Whoever asked in between may have raised alarms, and be gone.
      mayBeRaised = true;
      for (const peer of peers) if (peer.accuses === false) peer.accuses = undefined;
    }
    const head = await newest();
    const witnessed = (await reader.witnessedSize()) ?? 0;
    if (head !== undefined && head.size > witnessed) await round(head, witnessed, limitMs, last);
    await watch((await reader.witnessedSize()) ?? 0);
  }

  return {
    satisfies,
    start() {
      work = (async () => {
        while (!stopping.signal.aborted) {
          const begun = performance.now();
          await look(timeoutMs).catch((error: unknown) => warn(`the witnesses wait: ${describe(error)}`));
          const restMs = Math.max(pauseMs / 10, pauseMs - (performance.now() - begun));
          await sleep(restMs, stopping.signal).catch(() => {});
        }
      })();
    },
    async stop() {
      stopping.abort(new Error("Glasskey is stopping"));
      await work;
      try {
        await look(LAST_MS, true);
        await store
          .updateTable("witness_claim")
          .set({ claimed_by: null, claimed_until: null })
          .where("claimed_by", "=", me)
          .execute();
      } finally {
        for (const { client } of peers) client.close();
      }
    },
    async confirm(last, newestSize) {
      const { size } = parseCheckpointText(parseNote(last).text);
      const signal = AbortSignal.timeout(CONFIRM_MS);
      const answers = await Promise.all(
        peers.map(async (peer) => ({ ...peer, answer: await ask(peer, { size, note: last }, size, signal) })),
      );
      for (const { client, answer } of answers) {
        if (answer.kind === "inconsistent")
          throw forgotten(client.name, `these ${size} entries do not go on from them`);
        if (answer.kind !== "size" || answer.size <= size) continue;
        const published = await newestSize();
        if (answer.size > published)
          throw forgotten(
            client.name,
            `it knows ${answer.size} entries, and the store and the data folder ${published}`,
          );
      }
      const silent = answers.flatMap(({ client, answer }) =>
        answer.kind === "failed" ? [`${client.name}: ${answer.why}`] : [],
      );
      if (silent.length === answers.length)
        warn(`no witness says whether this is the newest state of the log; going on without: ${silent.join("; ")}`);
    },
  };
}

function forgotten(witness: string, what: string): GlassError {
  return new GlassError("integrity", `the log is not what the witness ${witness} saw: ${what}`, {
    next: "Keep everything as it is. If a backup was restored, bring back what came after it. If the witness is wrong, take it out of `log: witnesses:`.",
  });
}

function caOf({ ca }: WitnessConfig): string | undefined {
  try {
    return ca === undefined ? undefined : readFileSync(ca, "utf8");
  } catch (cause) {
    throw new GlassError("config_invalid", `the CA of a witness cannot be read: ${describe(cause)}`, { cause });
  }
}
