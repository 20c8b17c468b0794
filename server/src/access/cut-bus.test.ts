import { sql, type KyselyPlugin } from "kysely";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { CutReason, SessionCutter } from "./access.ts";
import { startCutBus, type CutBus } from "./cut-bus.ts";
import { openSession } from "./sessions.ts";
import { book, startTestAccess, type TestAccess } from "./testing/access.ts";

let house: TestAccess;
beforeAll(async () => {
  house = await startTestAccess(inject("pg18"), book("longer", { time: "{ max: 60m, extend: 2x10m }" }));
});
afterAll(() => house[Symbol.asyncDispose]());

const ENDED: CutReason = { code: "ended", text: "ended by ann" };

interface Sessions extends SessionCutter {
  held: { session: string; grant: string }[];
  readonly cuts: object[];
  readonly extended: [grant: string, endsAtMs: number][];
}

/** What a data plane would be told. */
function sessions(): Sessions {
  const told: Sessions = {
    ...{ held: [], cuts: [], extended: [] },
    async cut(filter) {
      told.cuts.push(filter);
      return 1;
    },
    async extend(grant, endsAtMs) {
      told.extended.push([grant, endsAtMs]);
    },
    activity: async () => told.held.map((one) => ({ ...one, busy: false, idleMs: 0 })),
  };
  return told;
}

function bus(node: string, local: SessionCutter, plugin?: KyselyPlugin): CutBus {
  const store = plugin === undefined ? house.store : house.store.withPlugin(plugin);
  const { address, warnings } = house;
  return startCutBus({ address, store, node, local, warn: (line) => warnings.push(line) });
}

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await holds()); tries += 1) {
    if (tries > 1_200) throw new Error("it never came to that");
    await sleep(25);
  }
}

const listening = (count: number) =>
  until(async () => {
    const { rows } = await sql`select from pg_stat_activity
      where datname = current_database() and query ilike 'listen%' and state = 'idle'`.execute(house.store);
    return rows.length === count;
  });

test("a cut that the store did not pass on at once reaches a process that listened all the while", async () => {
  let failing = true;
  const away: KyselyPlugin = {
    transformQuery: ({ node }) => {
      if (failing) throw new Error("the store is away");
      return node;
    },
    transformResult: async ({ result }) => result,
  };
  const [here, there] = [sessions(), sessions()];
  const [first, second] = [bus("nd_1", here, away), bus("nd_2", there)];
  try {
    await listening(2);
    expect(await first.cut({ grant: "gr_gone" }, ENDED)).toBe(1);
    expect(house.warnings.at(-1)).toContain("the store is away");
    failing = false;
    await until(() => there.cuts.length > 0);
    expect(there.cuts).toEqual([{ grant: "gr_gone" }]);
    expect(here.cuts).toEqual([{ grant: "gr_gone" }]);
  } finally {
    await Promise.all([first.stop(), second.stop()]);
  }
});

test("a session that goes on long after its kill was stored is cut here, though whoever stored it died before telling anybody", async () => {
  const grant = await house.break("longer", { forMs: 600_000 });
  await house.until(grant, "active");
  const { session } = await openSession(house.access, { user: grant, remoteAddress: "127.0.0.1", client: {} });
  const here = sessions();
  here.held.push({ session, grant });
  const one = bus("nd_1", here);
  const asked = (agoS: number) =>
    house.store
      .updateTable("sessions")
      .set({ kill_asked_at: sql<Date>`clock_timestamp() - ${agoS} * interval '1 second'`, kill_asked_by: "sam" })
      .where("id", "=", session)
      .execute();
  try {
    await one.cutForgotten();
    await asked(-60);
    await one.cutForgotten(); // whoever killed it is about to cut it, and says why
    expect(here.cuts).toEqual([]);
    await asked(6);
    await one.cutForgotten();
    expect(here.cuts).toEqual([{ session }]);
  } finally {
    await one.stop();
  }
});

test("who was not listening when a grant was extended looks it up, and its sessions go on", async () => {
  const grant = await house.break("longer", { forMs: 600_000 });
  await house.until(grant, "active");
  const request = { user: grant, remoteAddress: "127.0.0.1", client: {} };
  const { session, endsAtMs } = await openSession(house.access, request);
  const here = sessions();
  here.held.push({ session, grant });
  const later = { ends_at: sql<Date>`ends_at + interval '10 minutes'` };
  await house.store.updateTable("grants").set(later).where("id", "=", grant).execute();
  const late = bus("nd_1", here);
  try {
    await until(() => here.extended.length > 0);
    expect(here.extended).toEqual([[grant, endsAtMs + 600_000]]);
    expect(here.cuts).toEqual([]);
  } finally {
    await late.stop();
  }
});
