import { GlassError } from "../core/errors.ts";
import type { Store } from "../store/database.ts";
import type { Notifier } from "./access.ts";
import { clearAlarm, raiseAlarm } from "./alarms.ts";
import type { Doors } from "./doors.ts";

/**
 * What becomes of an integrity error: nothing new is opened, somebody is told, and everything that ends, revokes and proves
 * goes on. It lasts until that part begins again on sound ground, which is at the next start.
 */
export interface Trouble {
  /** @param part what is unsound, such as `log`. @param alarm the alarm's key. */
  found(part: string, alarm: string, error: GlassError): void;
  over(part: string, alarm: string): Promise<void>;
  /** Begins a part. @returns undefined where it is unsound; everything else that goes wrong is thrown. */
  begin<T>(part: string, alarm: string, work: () => Promise<T>): Promise<T | undefined>;
  /** Stores the alarms that the store could not take yet. Called again and again. */
  tell(): Promise<void>;
}

const STILL =
  'Grants can be ended, killed and denied as always, and are revoked and proved. Once what was changed is put back, start Glasskey again (docs/retention.md, "When something does not verify").';

export function createTrouble(deps: {
  store: Store;
  warn: (line: string) => void;
  notifier: Pick<Notifier, "post">;
  doors: Doors;
}): Trouble {
  const { store, warn, notifier, doors } = deps;
  const untold = new Map<string, string>();

  // One after the other: an alarm that is still on its way into the store when its cause is over would never be cleared.
  let turn: Promise<void> = Promise.resolve();
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const done = turn.then(work);
    turn = done.catch(() => {});
    return done;
  };
  const tell = (): Promise<void> =>
    inTurn(async () => {
      for (const [key, text] of untold) {
        await raiseAlarm(store, warn, key, text, notifier);
        if (untold.get(key) === text) untold.delete(key);
      }
    });
  const found = (part: string, alarm: string, error: GlassError): void => {
    const { message } = error;
    const next = error.next === undefined ? STILL : `${error.next} ${STILL}`;
    const news = doors.reasons().every(({ reason, error: known }) => reason !== part || known.message !== message);
    doors.shut(part, new GlassError("integrity", message, { next, cause: error }));
    if (!news) return;
    untold.set(alarm, `nothing new is opened: ${message}`);
    void tell().catch(() => {}); // the loop says it again
  };
  const over = async (part: string, alarm: string): Promise<void> => {
    untold.delete(alarm);
    await inTurn(() => clearAlarm(store, warn, alarm, notifier));
    doors.reopen(part);
  };
  return {
    ...{ found, over, tell },
    async begin(part, alarm, work) {
      try {
        const begun = await work();
        await over(part, alarm);
        return begun;
      } catch (error) {
        if (!(error instanceof GlassError && error.code === "integrity")) throw error;
        found(part, alarm, error);
        return undefined;
      }
    },
  };
}
