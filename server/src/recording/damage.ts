import { sql } from "kysely";
import { GlassError } from "../core/errors.ts";
import { CHUNK_MISSING, readSealed, type Sealed } from "./sealed.ts";

/**
 * What becomes of a sealed recording of which something is gone or changed: whoever reads it is refused, people are told by
 * an alarm, and retention keeps it, as it may be evidence. It shuts no door: what is recorded now goes through the journal
 * and is whole, and one byte that a disk lost in an old recording must not keep everybody out. The alarm is over once the
 * recording can be read to its end again, or was erased.
 */
export interface DamageWatch {
  /** Something of that recording does not verify. Never throws; told again and again until the store takes it. */
  found(session: string, error: GlassError): void;
  /**
   * Tells what is not told yet, and reads one of the recordings that have an alarm again. Called again and again.
   * @throws when the store does not answer.
   */
  look(signal: AbortSignal): Promise<void>;
}

export interface DamageOptions extends Pick<Sealed, "store" | "keyring" | "chunks"> {
  /** This process's id: without a shared store only what it recorded itself has to be here. */
  readonly node: string;
  /** Whether all processes have their chunks in one place. */
  readonly shared: boolean;
  readonly alarms: {
    raise(key: string, text: string): Promise<unknown>;
    clear(key: string): Promise<unknown>;
  };
  /** It can be read again: what was left out of copies while it could not is put there now. */
  onMended(session: string): Promise<void>;
}

/** The alarm about one recording. */
export function damageAlarm(session: string): string {
  return `damaged ${session}`;
}

const OPEN_ALARMS = "damaged %";
/** So many recordings are named. Where a whole folder is gone, one more alarm says so for all others. */
const MAX_NAMED = 20;
const MORE = "damaged more";
const MAX_UNTOLD = 100; // what is not told in time is found again
/** Reading a long recording takes a while: for so many times as long it is left alone. */
const REST = 20;
const NEXT =
  'Nothing else is closed. Put the file back, from the archive or a backup: the alarm is over by itself. Retention leaves this recording alone meanwhile (docs/retention.md, "When something does not verify")';

export function watchDamage(options: DamageOptions): DamageWatch {
  const { store, node, shared, alarms } = options;
  const untold = new Map<string, GlassError>();
  const looked = new Map<string, number>();
  const foundSince = new Set<string>(); // while it was read again
  let restUntilMs = 0;
  let turn: Promise<void> = Promise.resolve();

  /** The recordings that have an open alarm, and whether there are more than those. */
  const openAlarms = async (): Promise<{ named: string[]; more: boolean }> => {
    const rows = await store
      .selectFrom("alarms")
      .select("key")
      .where("key", "like", OPEN_ALARMS)
      .where("cleared_at", "is", null)
      .orderBy("raised_at")
      .execute();
    const keys = rows.map(({ key }) => key);
    return {
      named: keys.filter((key) => key !== MORE).map((key) => key.slice(damageAlarm("").length)),
      more: keys.includes(MORE),
    };
  };

  /** Not here, and not to be here: it lies with the process that recorded it. */
  const elsewhere = async (session: string, error: GlassError): Promise<boolean> => {
    if (shared || error.details?.["missing"] !== CHUNK_MISSING.missing) return false;
    const row = await store.selectFrom("sessions").select("node").where("id", "=", session).executeTakeFirst();
    return row !== undefined && row.node !== node;
  };

  const tell = async (): Promise<void> => {
    for (const [session, error] of untold) {
      if (!(await elsewhere(session, error))) {
        const { named } = await openAlarms();
        if (named.includes(session) || named.length < MAX_NAMED)
          await alarms.raise(
            damageAlarm(session),
            `the recording of ${session} does not verify: ${error.message}. ${NEXT}`,
          );
        else
          await alarms.raise(
            MORE,
            `more than ${MAX_NAMED} recordings do not verify, the first of them with alarms of their own: is the folder or the bucket with the chunks there? glass verify names them all`,
          );
      }
      untold.delete(session);
    }
  };
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const done = turn.then(work);
    turn = done.catch(() => {});
    return done;
  };

  /** @returns whether nothing is wrong with it any more. */
  const sound = async (session: string, signal: AbortSignal): Promise<boolean> => {
    try {
      for await (const _record of readSealed(options, session)) signal.throwIfAborted();
      await options.onMended(session);
      return true;
    } catch (error) {
      if (!(error instanceof GlassError)) throw error;
      if (error.code === "integrity" || error.code === "not_found") return false; // or the session's row is gone with it
      if (error.code === "erased") return true; // nobody reads it again
      throw error;
    }
  };

  return {
    found(session, error) {
      foundSince.add(session);
      if (untold.size >= MAX_UNTOLD && !untold.has(session)) return;
      untold.set(session, error);
      void inTurn(tell).catch(() => {}); // the loop says it again
    },
    async look(signal) {
      await inTurn(tell);
      if (performance.now() < restUntilMs) return;
      const { named, more } = await openAlarms();
      for (const session of looked.keys()) if (!named.includes(session)) looked.delete(session);
      const [next] = named.toSorted((a, b) => (looked.get(a) ?? 0) - (looked.get(b) ?? 0));
      const startedMs = performance.now();
      foundSince.clear();
      if (next !== undefined) {
        looked.set(next, startedMs);
        if (await sound(next, signal))
          await inTurn(async () => {
            // A reader was refused meanwhile: what it missed was read here before it was gone.
            if (!foundSince.has(next)) await alarms.clear(damageAlarm(next));
          });
      }
      if (more && named.length < MAX_NAMED) await alarms.clear(MORE);
      restUntilMs = performance.now() + REST * (performance.now() - startedMs);
    },
  };
}

/** Whether a recording has an open alarm of this kind, for a query that has `sessions`. */
export const DAMAGED = sql<boolean>`exists (select from alarms where alarms.key = 'damaged ' || sessions.id
  and alarms.cleared_at is null)`;
