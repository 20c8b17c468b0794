import { expect, inject, test } from "vitest";
import { GlassError } from "../core/errors.ts";
import { startTestAccess, book } from "./testing/access.ts";
import { createTrouble } from "./trouble.ts";

test("trouble that is over before its alarm is in the store leaves no alarm behind", async () => {
  await using rig = await startTestAccess(inject("pg18"), book("free"));
  const { store, doors } = rig;
  const slow = Promise.withResolvers<void>();
  const trouble = createTrouble({
    ...{ store, doors, warn: () => {} },
    notifier: { post: () => slow.promise },
  });
  trouble.found("export", "export nd_1", new GlassError("integrity", "it is another log"));
  expect(doors.mayOpen()).toMatchObject({ code: "integrity" });
  const over = trouble.over("export", "export nd_1");
  slow.resolve();
  await over;
  await trouble.tell();
  expect(doors.mayOpen()).toBeUndefined();
  const open = await store.selectFrom("alarms").select("key").where("cleared_at", "is", null).execute();
  expect(open).toEqual([]);
});
