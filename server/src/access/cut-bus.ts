import { sql } from "kysely";
import pg from "pg";
import { sleep } from "../core/clock.ts";
import { describe } from "../core/errors.ts";
import { clientConfig, type Store, type StoreAddress } from "../store/database.ts";
import type { CutReason, SessionCutter } from "./access.ts";

const CHANNEL = "gk_cut";
const RECONNECT_MS = 1_000;
const TELL_AGAIN_MS = 500;

type Message =
  | { from: string; cut: { grant: string } | { session: string }; reason: CutReason }
  | { from: string; extend: string; endsAtMs: number };

/** Whoever ended a grant cuts its sessions at once, and says why; what goes on for longer was forgotten. */
const FORGOTTEN_MS = 5_000;
const CODES = ["expired", "ended", "killed", "idle", "drift"] as const satisfies readonly CutReason["code"][];

/** Why a grant's sessions are cut, as its row says it. */
export function cutReasonOf(grant: { end_cause: string | null; end_text: string | null }): CutReason {
  const code = CODES.find((known) => known === grant.end_cause) ?? "ended";
  return { code, text: grant.end_text ?? "this access is over" };
}

export interface CutBus extends SessionCutter {
  /** Looks up in the store what this process should have cut or extended, and does so. */
  catchUp(): Promise<void>;
  /** Cuts here what goes on long after it was ended or killed: whoever decided that may have died before the cut. */
  cutForgotten(): Promise<void>;
  stop(): Promise<void>;
}

export interface CutBusOptions {
  address: StoreAddress;
  store: Store;
  node: string;
  /** The sessions of this process. */
  local: SessionCutter;
  warn(line: string): void;
}

/**
 * Cuts sessions in this process and in every other one. Others are told by NOTIFY; whoever was not listening at that
 * moment looks its grants up in the store when it listens again, and what the store does not pass on is said again: no cut and
 * no extension is lost.
 */
export function startCutBus(options: CutBusOptions): CutBus {
  const { address, store, node, local, warn } = options;
  const stopped = new AbortController();
  let client: pg.Client | undefined;

  const telling = new Set<Promise<void>>();
  const notify = async (message: Message): Promise<void> => {
    await sql`select pg_notify(${CHANNEL}, ${JSON.stringify(message)})`.execute(store);
  };
  /** Others may have listened all the while, and would never look it up. Hearing it twice changes nothing. */
  const tellAgain = async (message: Message): Promise<void> => {
    while (!stopped.signal.aborted) {
      await sleep(TELL_AGAIN_MS, stopped.signal).catch(() => {});
      try {
        if (!stopped.signal.aborted) await notify(message);
        return;
      } catch {
        // said once, and tried again
      }
    }
  };
  const tell = async (message: Message): Promise<void> => {
    await notify(message).catch((error: unknown) => {
      warn(`other processes are not told of a cut or an extension yet: ${describe(error)}`);
      const task = tellAgain(message).finally(() => telling.delete(task));
      telling.add(task);
    });
  };
  const hear = (payload: string | undefined): void => {
    const message = JSON.parse(payload ?? "{}") as Message;
    if (message.from === node) return;
    const done =
      "cut" in message ? local.cut(message.cut, message.reason) : local.extend(message.extend, message.endsAtMs);
    done.catch((error: unknown) => warn(`a cut from another process failed: ${describe(error)}`));
  };
  /**
   * What this process still holds although the store says that it is over, also when others took it for dead meanwhile; and
   * the ends of the others, which may have moved.
   */
  const catchUp = async (): Promise<void> => {
    const held = (await local.activity()).map(({ session }) => session);
    if (held.length === 0) return;
    const rows = await store
      .selectFrom("sessions")
      .innerJoin("grants", "grants.id", "sessions.grant_id")
      .select(["sessions.id", "sessions.grant_id", "sessions.kill_asked_at", "grants.ends_at"])
      .select(["grants.end_cause", "grants.end_text"])
      .select((eb) =>
        eb
          .or([
            eb("grants.state", "<>", "active"),
            eb("sessions.kill_asked_at", "is not", null),
            eb("sessions.closed_at", "is not", null),
          ])
          .as("over"),
      )
      .where("sessions.id", "in", held)
      .execute();
    const ends = new Map<string, number>();
    for (const row of rows) {
      if (!row.over) {
        if (row.ends_at !== null) ends.set(row.grant_id, row.ends_at.getTime());
        continue;
      }
      await local.cut({ session: row.id }, reasonOf(row));
    }
    for (const [grant, endsAtMs] of ends) await local.extend(grant, endsAtMs);
  };
  const cutForgotten = async (): Promise<void> => {
    const held = (await local.activity()).map(({ session }) => session);
    if (held.length === 0) return;
    const before = sql<Date>`clock_timestamp() - ${FORGOTTEN_MS} * interval '1 millisecond'`;
    const rows = await store
      .selectFrom("sessions")
      .innerJoin("grants", "grants.id", "sessions.grant_id")
      .select(["sessions.id", "sessions.kill_asked_at", "grants.end_cause", "grants.end_text"])
      .where("sessions.id", "in", held)
      .where((eb) => eb.or([eb("grants.closing_at", "<", before), eb("sessions.kill_asked_at", "<", before)]))
      .execute();
    for (const row of rows) await local.cut({ session: row.id }, reasonOf(row));
  };
  const listen = async (): Promise<void> => {
    while (!stopped.signal.aborted) {
      const connection = new pg.Client(clientConfig(address));
      const broken = new Promise<void>((resolve) => {
        connection.once("error", () => resolve());
        connection.once("end", () => resolve());
      });
      try {
        await connection.connect();
        client = connection; // from here on a stop ends it
        stopped.signal.throwIfAborted();
        connection.on("notification", ({ payload }) => hear(payload));
        await connection.query(`listen ${CHANNEL}`);
        await catchUp();
        await broken;
      } catch (error) {
        if (!stopped.signal.aborted) warn(`cuts from other processes wait for the store: ${describe(error)}`);
      }
      await connection.end().catch(() => {});
      await sleep(RECONNECT_MS, stopped.signal).catch(() => {});
    }
  };
  const listening = listen();
  return {
    async cut(filter, reason) {
      const [count] = await Promise.all([local.cut(filter, reason), tell({ from: node, cut: filter, reason })]);
      return count;
    },
    async extend(grant, endsAtMs) {
      await Promise.all([local.extend(grant, endsAtMs), tell({ from: node, extend: grant, endsAtMs })]);
    },
    activity: () => local.activity(),
    catchUp,
    cutForgotten,
    async stop() {
      stopped.abort();
      await client?.end().catch(() => {});
      await listening;
      await Promise.all(telling);
    },
  };
}

function reasonOf(row: { kill_asked_at: Date | null; end_cause: string | null; end_text: string | null }): CutReason {
  if (row.kill_asked_at === null) return cutReasonOf(row);
  return { code: "killed", text: row.end_text ?? "killed by a security officer" };
}
