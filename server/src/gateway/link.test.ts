import { MessageChannel } from "node:worker_threads";
import { afterEach, expect, test } from "vitest";
import { GlassError } from "../core/errors.ts";
import { createLink, type Handlers, type Link } from "./link.ts";

type Asked = { double: { ask: number; answer: number } };

let ports: { close(): void }[] = [];
afterEach(() => {
  for (const port of ports) port.close();
  ports = [];
});

function pair(
  handlers: Handlers<Asked>,
  maxUnanswered = 4,
): { link: Link<Asked>; defects: string[]; hangUp: () => void } {
  const { port1, port2 } = new MessageChannel();
  ports.push(port1, port2);
  const defects: string[] = [];
  const onDefect = (verb: string, error: unknown): void => void defects.push(`${verb}: ${String(error)}`);
  createLink<Asked, Asked>(port2, { handlers, peer: "the other", maxUnanswered, onDefect });
  const link = createLink<Asked, Asked>(port1, {
    ...{ handlers: { double: (n) => n * 2 }, peer: "the data plane", maxUnanswered, onDefect },
  });
  return { link, defects, hangUp: () => port2.close() };
}

const never = (): Promise<number> => new Promise(() => undefined);

test("an answer goes to the one who asked", async () => {
  const { link } = pair({
    double: async (n) => {
      await new Promise((resolve) => setTimeout(resolve, 20 - n));
      return n * 2;
    },
  });
  expect(await Promise.all([1, 2, 3].map((n) => link.ask("double", n)))).toEqual([2, 4, 6]);
});

test("an error keeps its code, message and next step; a defect tells nothing of itself", async () => {
  const { link, defects } = pair({
    double: (n) => {
      if (n === 1) throw new GlassError("grant_over", "the grant is over", { next: "Break it again." });
      throw new Error("password=hunter2");
    },
  });
  await expect(link.ask("double", 1)).rejects.toMatchObject({
    ...{ code: "grant_over", message: "the grant is over", next: "Break it again." },
  });
  const defect = await link.ask("double", 2).catch((error: unknown) => error);
  expect(defect).toMatchObject({ code: "internal" });
  expect(String(defect)).not.toContain("hunter2");
  expect(defects).toEqual(["double: Error: password=hunter2"]);
});

test("a peer that never answers costs bounded memory: what timed out still counts", async () => {
  const { link } = pair({ double: never });
  const timeouts = await Promise.allSettled([1, 2, 3, 4].map((n) => link.ask("double", n, { timeoutMs: 10 })));
  expect(timeouts.every(({ status }) => status === "rejected")).toBe(true);
  await expect(link.ask("double", 5, { timeoutMs: 10_000 })).rejects.toThrow(/the data plane is overloaded/);
  expect(link.tell("double", 6)).toBe(false);
});

test("an answer after the time-out is handed to the one who cleans up", async () => {
  let release = (): void => undefined;
  const { link } = pair({ double: (n) => new Promise((resolve) => (release = () => resolve(n * 2))) });
  const late = Promise.withResolvers<number>();
  await expect(link.ask("double", 21, { timeoutMs: 10, late: late.resolve })).rejects.toThrow(/does not answer/);
  release();
  expect(await late.promise).toBe(42);
});

test("when the other side is gone, questions fail at once, asked before or after", async () => {
  const { link, hangUp } = pair({ double: never });
  const before = link.ask("double", 1);
  hangUp();
  await expect(before).rejects.toThrow(/is gone/);
  expect(link.isGone).toBe(true);
  await expect(link.ask("double", 2)).rejects.toMatchObject({ code: "store_unavailable" });
});
