import { afterAll, beforeAll, expect, inject, test } from "vitest";
import {
  type SearchedSession,
  searchRecordings,
  type SearchLimits,
  type SearchPage,
  type SearchQuery,
} from "./search.ts";
import { destroySessionKey } from "./session-keys.ts";
import { testFolder } from "./testing/journal.ts";
import { type TestStore, testStore } from "./testing/store.ts";
import { openStudio, type Studio } from "./testing/terminal.ts";

let base: TestStore;
beforeAll(async () => {
  base = await testStore(inject("pg18"));
});
afterAll(() => base[Symbol.asyncDispose]());

const never = new AbortController().signal;
const WIDE: SearchLimits = { ms: 60_000, hits: 1_000, warmUpChunks: 16 };

function search(
  { chunks }: Studio,
  query: Partial<SearchQuery>,
  { may = () => true, limits = WIDE }: { may?: (session: SearchedSession) => boolean; limits?: SearchLimits } = {},
): Promise<SearchPage> {
  const sealed = { store: base.store, keyring: base.keyring, chunks };
  return searchRecordings(sealed, { text: "", regex: false, ...query }, may, never, limits);
}

/** All pages, one after the other. */
async function searchAll(studio: Studio, query: Partial<SearchQuery>, limits: SearchLimits): Promise<SearchPage[]> {
  const pages: SearchPage[] = [];
  let cursor: string | undefined;
  do {
    const page = await search(studio, { ...query, cursor }, { limits });
    pages.push(page);
    cursor = page.next;
  } while (cursor !== undefined && pages.length < 500);
  return pages;
}

test("statements, parameters, errors, refusals and what a terminal showed are found, newest session first", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const sql = await studio.session();
  await sql.begin();
  await sql.statement(1, "update orders set status = 'Lost-Marker-1'");
  await sql.statement(2, "select 1", {
    error: { sqlstate: "42P01", message: 'relation "lost-marker-2" does not exist' },
  });
  await sql.end();
  const shell = await studio.session();
  await shell.begin();
  await shell.resize(80, 24);
  // The bytes never contain the words: the screen does.
  await shell.output("$ cat lost\x1b[31m-marker\x1b[0m-3\r\nlosX\bt-marker-4\r\n");
  await shell.end();
  await studio.sealer.sealNow();
  const { hits, next, sessions } = await search(studio, { text: "LOST-marker" });
  expect(next).toBeUndefined();
  expect(sessions).toBeGreaterThanOrEqual(2);
  expect(hits.map(({ where, text, session }) => [session.session, where, text])).toEqual([
    [shell.session, "screen", "$ cat lost-marker-3"],
    [shell.session, "screen", "lost-marker-4"],
    [sql.session, "statement", "update orders set status = 'Lost-Marker-1'"],
    [sql.session, "error", '42P01 relation "lost-marker-2" does not exist'],
  ]);
  expect((await search(studio, { text: "lost-marker-[34]$", regex: true })).hits).toHaveLength(2);
});

test(
  "page by page the same is found as at once, each hit once, also in the middle of a long recording",
  { timeout: 120_000 },
  async () => {
    await using folder = await testFolder();
    await using studio = await openStudio(folder.path, base);
    const wanted: string[] = [];
    for (const name of ["one", "two"]) {
      const take = await studio.session();
      await take.begin();
      for (let n = 1; n <= 16; n++) {
        await take.statement(n, `select 'needle-${name}-${n}' /* ${"x".repeat(30_000)} */`);
        await take.output(`pin-${name}-${n}\r\n${"y".repeat(40_000)}\r\n`);
        wanted.push(`needle-${name}-${n}`, `pin-${name}-${n}`);
      }
      await take.end();
    }
    await studio.sealer.sealNow();
    const query = { text: "(?:needle|pin)-(?:one|two)-\\d+", regex: true };
    const pages = await searchAll(studio, query, { ms: 60_000, hits: 5, warmUpChunks: 1 });
    expect(pages.length).toBeGreaterThan(5);
    const found = pages.flatMap(({ hits }) => hits.map(({ text }) => /(?:needle|pin)-\w+-\d+/.exec(text)?.[0] ?? ""));
    expect(found.toSorted()).toEqual(wanted.toSorted());
  },
);

test("a session that the asker may not read is not looked into", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const [mine, other] = [await studio.session(), await studio.session()];
  for (const take of [mine, other]) {
    await take.begin();
    await take.statement(1, "select 'forbidden-fruit'");
    await take.end();
  }
  await studio.sealer.sealNow();
  const { hits, sessions } = await search(
    studio,
    { text: "forbidden-fruit" },
    { may: ({ session }) => session === mine.session },
  );
  expect(hits.map(({ session }) => session.session)).toEqual([mine.session]);
  expect(sessions).toBe(1);
});

test(
  "a recording that is erased, damaged or made to be slow hides nothing of the others",
  { timeout: 120_000 },
  async () => {
    await using folder = await testFolder();
    await using studio = await openStudio(folder.path, base);
    const takes: string[] = [];
    for (let i = 0; i < 4; i++) {
      const take = await studio.session();
      await take.begin();
      if (i === 2) await take.output("\x1b[5S\x1b[5L".repeat(100_000));
      await take.statement(1, "select 'still-here'");
      await take.end();
      takes.push(take.session);
    }
    await studio.sealer.sealNow();
    await base.store.transaction().execute((trx) => destroySessionKey(trx, takes[0] ?? ""));
    await base.store
      .deleteFrom("chunks")
      .where("session", "=", takes[1] ?? "")
      .execute();
    const { hits, erased, problems } = await search(studio, { text: "still-here" });
    expect(hits.map(({ session }) => session.session)).toContain(takes[3]);
    expect(erased).toBe(1);
    expect(problems.map(({ session }) => session)).toContain(takes[1]);
  },
);

test("a cursor tells nothing of sessions that the asker may not read", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  for (let i = 0; i < 3; i++) {
    const take = await studio.session();
    await take.begin();
    await take.end();
  }
  await studio.sealer.sealNow();
  const { next } = await search(studio, { text: "x" }, { may: () => false, limits: { ...WIDE, ms: 0 } });
  expect(Buffer.from(next ?? "", "base64url").toString("latin1")).not.toMatch(/se_|\d{13}/);
});

test("a search gets to its end, however slow the store is", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.statement(1, "select 'slowly-found'");
  await take.end();
  await studio.sealer.sealNow();
  const pages = await searchAll(studio, { text: "slowly-found" }, { ...WIDE, ms: 0 });
  expect(pages.at(-1)?.next).toBeUndefined();
  expect(pages.flatMap(({ hits }) => hits)).toHaveLength(1);
});

test("what was said is found as it was said: quotes, backslashes, and the words in the excerpt", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.notice('C:\\temp is "full"');
  await take.statement(1, `${"\u0130".repeat(400)} Far-Away ${"z".repeat(300)}`);
  await take.end();
  await studio.sealer.sealNow();
  expect((await search(studio, { text: 'c:\\TEMP is "full"' })).hits).toMatchObject([{ where: "notice" }]);
  expect((await search(studio, { text: "far-away" })).hits.map(({ text }) => text)).toEqual([
    expect.stringContaining("Far-Away"),
  ]);
});

test("the error of a statement that began pages before is found", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.started(1, "copy t from stdin");
  for (let n = 2; n <= 12; n++) await take.statement(n, `select 'page-filler' /* ${"x".repeat(60_000)} */`);
  await take.completed(1, { error: { sqlstate: "23505", message: "duplicate page-filler" } });
  await take.end();
  await studio.sealer.sealNow();
  const pages = await searchAll(studio, { text: "page-filler" }, { ms: 60_000, hits: 2, warmUpChunks: 1 });
  const found = pages.flatMap(({ hits }) => hits.map(({ where }) => where));
  expect(found.filter((where) => where === "statement")).toHaveLength(11);
  expect(found.filter((where) => where === "error")).toHaveLength(1);
});

test("what stands on a screen for many pages is found once", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.resize(80, 24);
  await take.output("\x1b[1;1Hstanding-stone");
  for (let n = 1; n <= 12; n++) {
    await take.output(`\x1b[5;1Hrow ${"y".repeat(60)}`.repeat(900));
    await take.statement(n, "select 'standing-stone'");
  }
  await take.end();
  await studio.sealer.sealNow();
  const pages = await searchAll(studio, { text: "standing-stone" }, { ms: 60_000, hits: 2, warmUpChunks: 1 });
  const found = pages.flatMap(({ hits }) => hits.map(({ where }) => where));
  expect(pages.length).toBeGreaterThan(3);
  expect(found.filter((where) => where === "screen")).toHaveLength(1);
  expect(found.filter((where) => where === "statement")).toHaveLength(12);
});

test("an expression that is too large to run is told as that, not as a damaged recording", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.statement(1, "select 'aaaa'");
  await take.end();
  await studio.sealer.sealNow();
  const large = "((((((((((a?){50}){50}){50}){50}){50}){50}){50}){50}){50})";
  const { problems } = await search(studio, { text: large, regex: true });
  expect(problems).toContainEqual({ session: take.session, message: "this expression takes too long" });
});

test("filters: person, target, playbook and time", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const take = await studio.session();
  await take.begin();
  await take.statement(1, "select 'filtered'");
  await take.end();
  await studio.sealer.sealNow();
  const hitsOf = async (query: Partial<SearchQuery>): Promise<number> =>
    (await search(studio, { text: "filtered", ...query })).hits.length;
  const tomorrow = new Date(Date.now() + 86_400_000);
  expect(await hitsOf({ person: "ann", target: "t", playbook: "p", since: new Date(0), until: tomorrow })).toBe(1);
  for (const none of [{ person: "bob" }, { target: "u" }, { playbook: "q" }, { until: new Date(0) }])
    expect(await hitsOf(none)).toBe(0);
  await base.store.updateTable("sessions").set({ closed_at: new Date() }).where("id", "=", take.session).execute();
  expect(await hitsOf({ since: tomorrow })).toBe(0);
});

test("a pattern or a cursor that is none is refused", async () => {
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  for (const query of [
    { text: "" },
    { text: "x".repeat(201) },
    { text: "(", regex: true },
    { text: "x", cursor: "AAAA" },
    { text: "x", cursor: Buffer.from('["a",1,{}]').toString("base64url") },
  ])
    await expect(search(studio, query)).rejects.toMatchObject({ code: "usage" });
});
