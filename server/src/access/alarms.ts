import { append } from "../audit/append.ts";
import { newId } from "../core/ids.ts";
import type { Store, Tx } from "../store/database.ts";
import type { Notifier } from "./access.ts";

/**
 * Raises an alarm, once per key until it is cleared; the installation's own channels are told in the same transaction. One
 * that is raised again while it is open says from then on what it was raised with last; nobody is told a second time.
 * @returns whether it is new.
 */
export async function raiseAlarm(
  store: Store,
  warn: (line: string) => void,
  key: string,
  text: string,
  notifier?: Pick<Notifier, "post">,
): Promise<boolean> {
  const id = newId("alarm");
  const fresh = await store.transaction().execute(async (tx) => {
    const row = await tx
      .insertInto("alarms")
      .values({ id, key, text })
      .onConflict((c) => c.column("key").where("cleared_at", "is", null).doNothing())
      .returning("id")
      .executeTakeFirst();
    if (row === undefined) {
      const open = tx.updateTable("alarms").set({ text }).where("key", "=", key).where("cleared_at", "is", null);
      await open.where("text", "<>", text).execute();
      return false;
    }
    await append(tx, { type: "alarm.raised", at: new Date(), actor: "glasskey", data: { alarm: id, key } });
    await notifier?.post(tx, { event: "alarm", text, channels: [] });
    return true;
  });
  if (fresh) warn(`ALARM ${text}`);
  return fresh;
}

/** Clears the open alarm of that key, if there is one; whoever was told of it is told so, in the same transaction. */
export async function clearAlarm(
  store: Store,
  warn: (line: string) => void,
  key: string,
  notifier?: Pick<Notifier, "post">,
): Promise<void> {
  const texts = await store.transaction().execute((tx) => clearAlarmIn(tx, key, notifier));
  for (const text of texts) warn(`alarm over: ${text}`);
}

/**
 * The same in the transaction of what the alarm is over with, where nobody would look at its cause again: a crash in between
 * would leave it open for ever. @returns the texts of what was open, one at most.
 */
export async function clearAlarmIn(tx: Tx, key: string, notifier?: Pick<Notifier, "post">): Promise<readonly string[]> {
  const row = await tx
    .updateTable("alarms")
    .set({ cleared_at: new Date() })
    .where("key", "=", key)
    .where("cleared_at", "is", null)
    .returning(["id", "text"])
    .executeTakeFirst();
  if (row === undefined) return [];
  await append(tx, { type: "alarm.cleared", at: new Date(), actor: "glasskey", data: { alarm: row.id, key } });
  await notifier?.post(tx, { event: "alarm_over", text: row.text, channels: [] });
  return [row.text];
}
