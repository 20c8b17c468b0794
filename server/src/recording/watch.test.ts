import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { followRecords } from "./follow.ts";
import { RECORD } from "../targets/target.ts";
import type { StoredRecord } from "./record.ts";
import { readSealed } from "./sealed.ts";
import { destroySessionKey } from "./session-keys.ts";
import { testFolder } from "./testing/journal.ts";
import { type TestStore, testStore } from "./testing/store.ts";
import { openStudio, type Studio } from "./testing/terminal.ts";
import type { WatchOrder, WatchReport } from "./testing/watch-child.ts";
import { type Watched, watchSession } from "./watch.ts";

let base: TestStore;
beforeAll(async () => {
  base = await testStore(inject("pg18"));
});
afterAll(() => base[Symbol.asyncDispose]());

const never = new AbortController().signal;

/** Sequence numbers as a follower gets them, until the end. */
async function follow(
  { sealer, chunks }: Studio,
  session: string,
  options: { slow?: () => Promise<void>; live?: boolean } = {},
): Promise<{ seqs: number[]; behind: number }> {
  const seqs: number[] = [];
  let behind = 0;
  const sealed = (afterSeq: number): ReturnType<typeof readSealed> =>
    readSealed({ store: base.store, keyring: base.keyring, chunks }, session, { afterSeq });
  const live = options.live === false ? undefined : sealer;
  for await (const followed of followRecords({ session, afterSeq: 0, sealed, live, signal: never, pollMs: 50 })) {
    if (followed.what === "records") seqs.push(...followed.records.map(({ seq }) => seq));
    if (followed.what === "behind") behind += followed.records;
    if (followed.what === "records") await options.slow?.();
  }
  return { seqs, behind };
}

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1);

/** Items until one fits; the watch is over then. */
async function until(items: AsyncIterable<Watched>, fits: (item: Watched) => boolean): Promise<Watched[]> {
  const seen: Watched[] = [];
  for await (const item of items) {
    seen.push(item);
    if (fits(item)) break;
  }
  return seen;
}

const text = (item: Watched): string =>
  item.what === "line" && item.line.what === "statement"
    ? `${item.line.statement.text} ${item.line.statement.outcome}`
    : item.what === "screen"
      ? item.drawn.frame.lines.map(({ runs }) => runs.map((run) => run.text).join("")).join("|")
      : item.what;

test(
  "whoever joins, at any moment of a session under load, gets every record once and in order",
  { timeout: 120_000 },
  async () => {
    await using folder = await testFolder();
    await using studio = await openStudio(folder.path, base, { sealAfterMs: 60, pollMs: 5 });
    studio.sealer.start();
    const take = await studio.session();
    await take.begin();
    const followers: Promise<{ seqs: number[]; behind: number }>[] = [];
    for (let n = 1; n <= 300; n++) {
      if (n % 12 === 0) followers.push(follow(studio, take.session, { live: n % 24 === 0 }));
      await take.statement(n, "x".repeat((n * 997) % 3_000));
    }
    await take.end();
    for (const { seqs } of await Promise.all(followers)) expect(seqs).toEqual(upTo(602));
  },
);

test("a session without anybody's load is followed while its records are in no chunk yet", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base, { sealAfterMs: 3_600_000, pollMs: 5 });
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  await take.started(1, "select 1");
  const items = watchSession({ ...studioParts(studio), live: studio.sealer, node: "nd_1" }, take.session, never);
  const seen = await until(items, (item) => text(item).startsWith("select 1"));
  expect(seen.map(text)).toEqual(["watching", "line", "select 1 running"]);
  const rows = await base.store.selectFrom("chunks").selectAll().where("session", "=", take.session).execute();
  expect(rows).toEqual([]);
});

test("a watcher that is slower than the session is told so, and misses nothing", { timeout: 120_000 }, async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base, { sealAfterMs: 50, pollMs: 5 });
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  const [gate, joined] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const slow = (): Promise<void> => {
    joined.resolve();
    return gate.promise;
  };
  const follower = follow(studio, take.session, { slow });
  await joined.promise; // else it would find in the chunks what it is to miss
  for (let n = 1; n <= 40; n++) await take.output(Buffer.alloc(200_000, n)); // four times what waits for it
  gate.resolve();
  await take.end();
  const { seqs, behind } = await follower;
  expect(seqs).toEqual(upTo(42));
  expect(behind).toBeGreaterThan(0);
});

test("joining late: the last statements, what has no answer yet among them, and then what comes", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base, { sealAfterMs: 20, pollMs: 5 });
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  for (let n = 1; n <= 50; n++) await take.statement(n, `select ${n}`);
  await take.started(51, "select slow");
  await studio.sealer.sealNow(); // it has read all of it
  const joined = Promise.withResolvers<void>();
  const items = studio.recordings.watch(take.session, never);
  const watching = until(items, (item) => {
    if (text(item) === "select slow running") joined.resolve();
    return item.what === "line" && item.line.what === "ended";
  });
  await joined.promise;
  await take.completed(51);
  await take.end();
  const seen = await watching;
  const [first] = seen;
  expect(first).toMatchObject({ what: "watching", live: true, person: "ann", earlierLines: 32 });
  expect(seen.slice(1).map(text)).toEqual([
    "line", // the session's beginning
    ...upTo(18).map((i) => `select ${32 + i} done`),
    "select slow running",
    "select slow done",
    "line",
  ]);
});

test("joining a terminal late: its screen as it is now, and then what changes", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base, { sealAfterMs: 20, pollMs: 5 });
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  await take.resize(30, 4);
  for (let i = 1; i <= 100; i++) await take.output(`line ${i}\r\n`);
  const seen: Watched[] = [];
  const watching = until(studio.recordings.watch(take.session, never), (item) => {
    seen.push(item);
    return text(item).includes("done");
  });
  await expect.poll(() => seen.filter(({ what }) => what === "screen").length, { timeout: 30_000 }).toBe(1);
  await take.output("\x1b[1;1Hdone");
  await watching;
  const frames = seen.flatMap((item) => (item.what === "screen" ? [item.drawn.frame] : []));
  expect(frames[0]).toMatchObject({ cols: 30, rows: 4, whole: true });
  expect(seen.map(text)).toContain("line 98|line 99|line 100");
  expect(frames.at(-1)).toMatchObject({ whole: false, lines: [{ y: 0 }] });
});

test("a session of another process is followed from what is sealed, and the watcher is told", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base, { sealAfterMs: 20, pollMs: 5 });
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  const items = watchSession({ ...studioParts(studio), node: "nd_other" }, take.session, never);
  const watching = until(items, (item) => item.what === "line" && item.line.what === "ended");
  await take.statement(1, "select 1");
  await take.end();
  const seen = await watching;
  expect(seen[0]).toMatchObject({ what: "watching", live: false });
  expect(seen.map(text)).toContain("select 1 done");
});

test("a record that comes while the watcher takes the ones before is given at once", async () => {
  let put: ((record: StoredRecord) => void) | undefined;
  const live = { follow: (_: string, take: typeof put) => ((put = take), { waiting: [], stop() {} }) };
  const sealed = async function* (): AsyncGenerator<StoredRecord, { complete: boolean }> {
    yield* [];
    return { complete: false };
  };
  const leave = new AbortController();
  const options = { session: "se_0123456789ab", afterSeq: 0, live, sealed, signal: leave.signal };
  const items = followRecords(options)[Symbol.asyncIterator]();
  expect(await items.next()).toMatchObject({ value: { what: "caught up" } });
  put?.({ session: options.session, seq: 1, kind: RECORD.notice, timeUs: 1, payload: Buffer.from("{}") });
  const next = items.next();
  const first = await Promise.race([next, new Promise((done) => setImmediate(done, "it waits"))]);
  expect(first).toMatchObject({ value: { what: "records", records: [{ seq: 1 }] } });
  leave.abort();
});

test("a watcher who leaves is forgotten by the journal's reader", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base, { pollMs: 5 });
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  let followed = 0;
  const live = {
    follow(...args: Parameters<typeof studio.sealer.follow>) {
      followed++;
      const following = studio.sealer.follow(...args);
      return { ...following, stop: () => (followed--, following.stop()) };
    },
  };
  const leave = new AbortController();
  const items = watchSession({ ...studioParts(studio), live, node: "nd_1" }, take.session, leave.signal);
  const watching = until(items, () => false);
  await expect.poll(() => followed).toBe(1);
  leave.abort(new Error("left"));
  await expect(watching).rejects.toThrow("left");
  expect(followed).toBe(0);
});

test("an erased recording answers that it was erased, to replay, export and watch alike", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.end();
  await studio.sealer.sealNow();
  await base.store.transaction().execute((trx) => destroySessionKey(trx, take.session));
  const { recordings } = studio;
  for (const items of [
    recordings.replay(take.session, "lines", never),
    recordings.export(take.session, "raw", never),
    recordings.watch(take.session, never),
  ]) {
    await expect(items[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: "erased", status: 410 });
  }
});

function studioParts({ chunks }: Studio): {
  store: TestStore["store"];
  keyring: TestStore["keyring"];
  chunks: Studio["chunks"];
} {
  return { store: base.store, keyring: base.keyring, chunks };
}

test(
  "64 MiB of a terminal are watched at once and late, ignored by a third, and exported, in flat memory",
  { timeout: 300_000 },
  async () => {
    await using folder = await testFolder();
    const child = fork(fileURLToPath(new URL("testing/watch-child.ts", import.meta.url)), { execArgv: [] });
    const bytes = 64 << 20;
    const report = await new Promise<WatchReport>((resolve, reject) => {
      child.once("message", (message) => resolve(message as WatchReport));
      child.once("exit", (code) => reject(new Error(`the child ended with ${code}`)));
      child.send({ cluster: inject("pg18"), folder: folder.path, bytes } satisfies WatchOrder);
    });
    expect(report).toMatchObject({ lastText: "the end", lateText: "the end" });
    expect(report.frames).toBeGreaterThan(1);
    expect(report.exportedCharacters).toBeGreaterThan(bytes);
    // Everything that was written is several times this: what is held does not grow with it.
    expect(report.peakMiB).toBeLessThan(450);
  },
);
