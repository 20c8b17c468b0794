import { createCipheriv, randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { RECORD } from "../targets/target.ts";
import { asciicast } from "./asciicast.ts";
import type { StoredRecord } from "./record.ts";
import { startScreenThread } from "./screen-thread.ts";
import { testFolder } from "./testing/journal.ts";
import { type TestStore, testStore } from "./testing/store.ts";
import { numbered, openStudio } from "./testing/terminal.ts";

let base: TestStore;
beforeAll(async () => {
  base = await testStore(inject("pg18"));
});
afterAll(() => base[Symbol.asyncDispose]());

const never = new AbortController().signal;
const SESSION = "se_0123456789ab";

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

const record = (seq: number, kind: number, payload: Buffer | object, ms: number): StoredRecord => ({
  ...{ session: SESSION, seq, kind, timeUs: ms * 1000 },
  payload: Buffer.isBuffer(payload) ? payload : Buffer.from(JSON.stringify(payload)),
});

async function cast(records: readonly StoredRecord[], which?: number): Promise<unknown[]> {
  const source = async function* (): AsyncGenerator<StoredRecord> {
    yield* records;
  };
  return (await all(asciicast(SESSION, source(), which))).map((line) =>
    line.startsWith("#") ? line : (JSON.parse(line) as unknown),
  );
}

/** A run as the gateway writes it: parts of ciphertext, and its key. */
function run(n: number, id: number): { part(text: string): Buffer; key: Buffer; gone: Buffer } {
  const key = randomBytes(32);
  const cipher = createCipheriv("aes-256-ctr", key, Buffer.alloc(16));
  const head = Buffer.alloc(8);
  head.writeUInt32BE(n, 0);
  head.writeUInt32BE(id, 4);
  return {
    part: (text) => Buffer.concat([head, cipher.update(text)]),
    key: Buffer.concat([head, key]),
    gone: head,
  };
}

test("what was typed and echoed is in the asciicast when it was typed, and what was not is not", async () => {
  const [command, password, lost] = [run(1, 1), run(1, 2), run(1, 3)];
  const events = await cast([
    record(1, RECORD.terminalResize, { n: 1, cols: 80, rows: 24 }, 0),
    record(2, RECORD.terminalOutput, numbered("$ "), 0),
    record(3, RECORD.terminalHidden, command.part("s"), 1_000),
    record(4, RECORD.terminalOutput, numbered("s"), 1_500),
    record(5, RECORD.terminalHidden, command.part("u"), 2_000),
    record(6, RECORD.terminalOutput, numbered("u"), 2_500),
    record(7, RECORD.terminalInput, numbered("\r"), 3_000),
    record(8, RECORD.terminalReveal, command.key, 3_000),
    record(9, RECORD.terminalHidden, password.part("hunter2"), 4_000),
    record(10, RECORD.terminalInput, numbered("\r"), 5_000),
    record(11, RECORD.terminalOutput, numbered("\r\n# "), 6_000),
    record(12, RECORD.terminalReveal, password.gone, 6_000),
    record(13, RECORD.terminalHidden, lost.part("id"), 7_000), // and the gateway was killed
    record(14, RECORD.terminalOutput, numbered("id"), 8_000),
    record(15, RECORD.sessionEnded, { cause: "lost" }, 9_000),
  ]);
  expect(events.slice(1)).toEqual([
    [0, "o", "$ "],
    [1, "i", "s"],
    [0.5, "o", "s"],
    [0.5, "i", "u"],
    [0.5, "o", "u"],
    [0.5, "i", "\r"],
    [2, "i", "\r"],
    [1, "o", "\r\n# "],
    [2, "o", "id"],
    [1, "m", "session ended: lost"],
  ]);
});

test("of several terminals the asciicast is of one, to the end of that one, and names the others", async () => {
  const records = [
    record(1, RECORD.terminalResize, { n: 2, cols: 100, rows: 30 }, 0),
    record(2, RECORD.terminalOutput, numbered("two", 2), 0),
    record(3, RECORD.terminalResize, { n: 5, cols: 60, rows: 20 }, 1_000),
    record(4, RECORD.terminalOutput, numbered("five", 5), 1_000),
    record(5, RECORD.statementCompleted, { n: 2, tag: "exit 4", us: 1 }, 2_000),
    record(6, RECORD.notice, { text: "1 minute left" }, 3_000),
    record(7, RECORD.terminalOutput, numbered("more", 5), 4_000),
  ];
  expect(await cast(records)).toMatchObject([
    { term: { cols: 100, rows: 30 } },
    [0, "o", "two"],
    [2, "x", "4"],
    `# this is terminal 2 of ${SESSION}; others: 5\n`,
  ]);
  expect((await cast(records, 5)).slice(0, -1)).toMatchObject([
    { term: { cols: 60, rows: 20 } },
    [0, "o", "five"],
    [2, "m", "Glasskey: 1 minute left"],
    [1, "o", "more"],
  ]);
  await expect(cast(records, 3)).rejects.toMatchObject({ code: "usage", next: expect.stringContaining("2, 5") });
});

test("output without end while a run waits for its word does not gather in memory: it is taken for hidden", async () => {
  const waiting = run(1, 1);
  const records = [record(1, RECORD.terminalHidden, waiting.part("x"), 0)];
  for (let seq = 2; seq < 12; seq++)
    records.push(record(seq, RECORD.terminalOutput, numbered(Buffer.alloc(600_000, 0x61)), seq));
  records.push(
    record(12, RECORD.terminalReveal, waiting.key, 12),
    record(13, RECORD.terminalOutput, numbered("end"), 13),
  );
  const events = await cast(records);
  expect(events).toHaveLength(12);
  expect(events.at(-1)).toEqual([expect.any(Number), "o", "end"]);
});

test("records that are too short for their kind are damage, not input", async () => {
  for (const kind of [RECORD.terminalOutput, RECORD.terminalInput, RECORD.terminalHidden, RECORD.terminalReveal])
    await expect(cast([record(1, kind, Buffer.from([0, 0]), 0)])).rejects.toMatchObject({ code: "integrity" });
  const short = Buffer.concat([numbered(Buffer.from([0, 0, 0, 1])), Buffer.alloc(31)]);
  await expect(cast([record(1, RECORD.terminalReveal, short, 0)])).rejects.toMatchObject({ code: "integrity" });
});

test("a session with two shells and a command, in every form", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.started(1, "shell one");
  await take.resize(40, 5, 1);
  await take.output("one$ ls\r\n", 1);
  await take.started(2, "shell two");
  await take.resize(60, 6, 2);
  await take.output("two$ \x1b]133;C\x07id\r\nuid=0(root)\r\n", 2);
  await take.output("file-of-one\r\n", 1);
  await take.started(3, "systemctl status app");
  await take.wrote(3, 1, "active: running\nsince Mon");
  await take.wrote(3, 2, "a warning\n");
  await take.wrote(3, 1, "day");
  await take.completed(3, {
    tag: "exit 0",
    bytes: 26,
    us: 5,
    detail: { path: "/srv/app.conf", direction: "read", sha256: "ab12", stdout: { bytes: 26 } },
  });
  await take.completed(2, { tag: "exit 0", us: 10 });
  await take.output("one is still there", 1);
  await take.end();

  const exported = async (format: "json" | "text" | "raw"): Promise<string> =>
    (await all(studio.recordings.export(take.session, format, never))).join("");
  const lines = (await exported("json")).trimEnd().split("\n");
  const json = lines.map((line) => JSON.parse(line) as { what: string; n?: number; text?: string });
  const of = (n: number): unknown[] => json.filter((line) => line.n === n).map(({ what, text }) => `${what} ${text}`);
  expect(of(1)).toEqual([...["shown one$ ls", "shown file-of-one", "shown one is still there", "statement shell one"]]);
  expect(of(2).slice(-1)).toEqual(["statement shell two"]);
  expect(of(2)).toContain("shown uid=0(root)");
  expect(of(3)).toEqual([
    ...["output active: running", "output a warning", "output since Monday", "statement systemctl status app"],
  ]);
  const text = await exported("text");
  expect(text).toContain("#3  simple: systemctl status app");
  expect(text).toContain("exit 0  26 bytes");
  expect(text).toContain("path /srv/app.conf, direction read, sha256 ab12, stdout 26 bytes");
  expect(text).toContain("#2 │ uid=0(root)");
  expect(text).toContain("#3 » since Monday");
  expect(await exported("raw")).toContain(`"kind":"output"`);

  const frames = async (which?: number): Promise<unknown[]> =>
    (await all(studio.recordings.replay(take.session, "frames", never, which))).flatMap((item): unknown[] =>
      item.what === "screen" ? [item.drawn.n] : item.what === "terminals" ? [item] : [],
    );
  const first = await frames();
  expect(first.at(-1)).toEqual({ what: "terminals", shown: 1, others: [2] });
  expect(new Set(first.slice(0, -1))).toEqual(new Set([1]));
  expect(new Set((await frames(2)).slice(0, -1))).toEqual(new Set([2]));
  await expect(frames(3)).rejects.toMatchObject({ code: "usage" });

  const search = async (words: string): Promise<unknown[]> =>
    (
      await studio.recordings.search({ text: words, regex: false }, ({ session }) => session === take.session, never)
    ).hits.map(({ where }) => where);
  expect(await search("uid=0(root)")).toContain("screen");
  expect(await search("file-of-one")).toEqual(["screen"]);
  expect(await search("systemctl status")).toEqual(["statement"]);
  expect(await search("since Monday")).toEqual(["output"]);
  expect(await search("/srv/app.conf")).toEqual(["statement"]);
});

test("a hundred terminals one after the other, and ten at once: each line is told, in bounded memory", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  const writes: Promise<void>[] = [];
  for (let n = 1; n <= 100; n++) {
    writes.push(take.resize(40, 5, n), take.output(`begin of ${n}\r\nrest of ${n}`, n));
    if (n > 10) writes.push(take.output(` goes on\r\n`, n - 10));
  }
  writes.push(take.end());
  await Promise.all(writes);
  const text = (await all(studio.recordings.export(take.session, "text", never))).join("");
  for (let n = 1; n <= 100; n++) {
    expect(text).toContain(`begin of ${n}\n`);
    expect(text).toContain(`rest of ${n}`);
  }
  expect(text).toContain("goes on");
});

test("who watches sees the terminal that is in use, or the one that was asked for", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  await take.resize(40, 5, 1);
  await take.output("first", 1);
  await take.resize(40, 5, 2);
  await take.output("second", 2);
  const watch = async (which?: number): Promise<string[]> => {
    const seen: string[] = [];
    for await (const item of studio.recordings.watch(take.session, never, which)) {
      if (item.what !== "screen") continue;
      const shown = item.drawn.frame.lines.map(({ runs }) => runs.map(({ text }) => text).join("")).join("|");
      seen.push(`${item.drawn.n} ${shown.replaceAll(/\|+$/g, "")}`);
    }
    return seen;
  };
  const [active, second] = [watch(), watch(2)];
  await take.output(" goes on", 1);
  await take.output(" too", 2);
  await take.end();
  expect((await active).every((seen) => seen.startsWith("1 first"))).toBe(true);
  expect((await second).at(-1)).toBe("2 second too");
});

test("of terminals that are used in turn the picture is of the one in use: it changes when the one that is shown was quiet", async () => {
  await using thread = startScreenThread({ do: "draw", terminal: "active" });
  const output = (n: number, ms: number, text: string): StoredRecord =>
    record(ms, RECORD.terminalOutput, numbered(text, n), ms);
  const drawn = await thread.feed([
    ...[output(1, 100, "one"), output(2, 200, "two"), output(1, 300, " more"), output(2, 1_000, " more")],
    ...[output(2, 2_500, " and more"), output(1, 2_600, " late"), output(2, 2_700, "!")],
  ]);
  const seen = drawn.map(({ n, frame }) => `${n} ${frame.whole ? "whole " : ""}${frame.lines[0]?.runs[0]?.text ?? ""}`);
  expect(seen).toEqual(["1 whole one", "1 one more", "2 whole two more and more"]);
});

test("who watches reads what a command without a terminal writes, line by line, before its end", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  studio.sealer.start();
  const take = await studio.session();
  await take.begin();
  const items = studio.recordings.watch(take.session, never)[Symbol.asyncIterator]();
  const next = async (): Promise<string> => {
    const { value } = await items.next();
    if (value?.what === "shown") return `${value.shown.n} ${value.shown.text}`;
    return value?.what === "line" && value.line.what === "statement"
      ? value.line.statement.outcome
      : (value?.what ?? "");
  };
  expect([await next(), await next()]).toEqual(["watching", "line"]);
  await take.started(1, "backup");
  await take.wrote(1, 1, "step one\nstep ");
  await take.wrote(1, 1, "two\nthe rest");
  expect([await next(), await next(), await next()]).toEqual(["running", "1 step one", "1 step two"]);
  await take.completed(1, { tag: "exit 0" });
  expect([await next(), await next()]).toEqual(["1 the rest", "done"]);
  await take.end();
  await items.return?.(undefined);
});
