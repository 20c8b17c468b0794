import { sql } from "kysely";
import { GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";

/** One thing that keeps everything new closed. */
export interface ShutDoor {
  /** What found it, such as `log`, `journal` or `disk`. */
  readonly reason: string;
  readonly error: GlassError;
  readonly since: Date;
}

/**
 * Whether anything new may be opened: the one place that every opening path asks, and where whatever finds trouble says
 * so. What ends, revokes and proves never asks. Reasons live in this process, as what they tell of does; what concerns
 * everybody, {@link watchDoors} hears from the others.
 */
export interface Doors {
  /** Why not, for the person who asks; undefined where nothing is in the way. */
  mayOpen(): GlassError | undefined;
  /** From now on nothing new is opened. Said again, the newest text counts. */
  shut(reason: string, error: GlassError): void;
  /** That reason is over. Where there was none, nothing happens. */
  reopen(reason: string): void;
  /** Everything that is in the way, oldest first. */
  reasons(): readonly ShutDoor[];
}

export function createDoors(): Doors {
  const shut = new Map<string, ShutDoor>();
  return {
    mayOpen() {
      // An integrity error outranks a disk that is full: it is the one that does not pass by itself.
      const all = [...shut.values()];
      const first = all.find(({ error }) => error.code === "integrity") ?? all[0];
      if (first === undefined) return undefined;
      const { code, message, next } = first.error;
      return new GlassError(code, `nothing new is opened: ${message}`, {
        ...(next === undefined ? {} : { next }),
        cause: first.error,
      });
    },
    shut(reason, error) {
      shut.set(reason, { reason, error, since: shut.get(reason)?.since ?? new Date() });
    },
    reopen: (reason) => void shut.delete(reason),
    reasons: () => [...shut.values()],
  };
}

const ALIVE_MS = 15_000; // the same as for sessions: a process that was not seen for longer is dead

/** The alarm of a process that found that the log does not verify. Its key names the process. */
export function logAlarm(node: string): string {
  return `log integrity ${node}`;
}

/**
 * The log is everybody's: while a process that found it unsound is up, no other opens anything. Called every second.
 * A process that is gone has nothing to say any more; those that are left look at the log themselves.
 */
export async function watchDoors(store: Store, node: string, doors: Doors): Promise<void> {
  const other = await store
    .selectFrom("alarms")
    .innerJoin("nodes", (join) => join.on("alarms.key", "=", sql<string>`'log integrity ' || nodes.id`))
    .select(["alarms.text", "nodes.id"])
    .where("alarms.cleared_at", "is", null)
    .where("nodes.id", "<>", node)
    .where(sql<boolean>`nodes.seen_at > clock_timestamp() - ${ALIVE_MS} * interval '1 millisecond'`)
    .limit(1)
    .executeTakeFirst();
  if (other === undefined) return doors.reopen("log of another process");
  doors.shut(
    "log of another process",
    new GlassError("integrity", `${other.id} says: ${other.text}`, { next: `Look at what ${other.id} prints.` }),
  );
}
