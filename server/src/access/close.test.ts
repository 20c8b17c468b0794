import { expect, test } from "vitest";
import type { Access, SessionCutter } from "./access.ts";
import { cutSessions } from "./close.ts";

test("a data plane that fails in the middle of a cut is said so, and takes nothing else with it", async () => {
  const warnings: string[] = [];
  const broken: Pick<SessionCutter, "cut"> = { cut: () => Promise.reject(new Error("the data plane is gone")) };
  const access = { cutter: () => broken, warn: (line: string) => warnings.push(line) } as unknown as Access;
  const reason = { code: "expired", text: "over" } as const;
  await expect(cutSessions(access, "gr_000000000000", reason)).resolves.toBe(0);
  expect(warnings).toEqual(["cutting the sessions of gr_000000000000: the data plane is gone"]);
});
