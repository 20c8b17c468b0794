import { createHash } from "node:crypto";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { join } from "node:path";
import type { SearchAnswer, WatchLine } from "@glasskey/contract";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { eventually, openEstate, type Estate, type Opened } from "./estate.ts";

const why = missingSshd();
interface RawLine {
  readonly kind: string;
  readonly bytes?: string;
}

const PASSWORD = "correct-horse-battery-staple";

describe.skipIf(why !== undefined)(`what is on record of a host${why === undefined ? "" : `, skipped: ${why}`}`, () => {
  let estate: Estate;

  beforeAll(async () => {
    estate = await openEstate(inject("pg18"));
  });
  afterAll(() => estate?.[Symbol.asyncDispose]());

  const search = async (text: string): Promise<SearchAnswer> =>
    estate.ida.call<SearchAnswer>("POST", "/v1/recordings/search", { text });
  async function sessionOf(opened: Opened): Promise<string> {
    await eventually(async () => {
      const rows = await opened.sessions();
      return rows.length > 0 && rows.every((row) => row.recording_complete);
    });
    return (await opened.sessions())[0]?.id ?? "";
  }

  test("a command, its input and its output's digest are found by replay, search and export", async () => {
    const opened = await estate.open("shell");
    const input = Buffer.alloc(200_000, "needle in the input\n");
    const run = await opened.ssh([opened.grant, "tr a-z A-Z # crocodile"], { input });
    const session = await sessionOf(opened);
    const [statement] = await opened.statements();
    expect(statement).toMatchObject({
      text: "tr a-z A-Z # crocodile",
      detail: {
        stdin: { bytes: input.length, sha256: sha256(input) },
        stdout: { bytes: run.stdout.length, sha256: sha256(run.stdout) },
      },
    });
    expect((await search("crocodile")).hits).toMatchObject([{ session, where: "statement" }]);
    expect(await estate.export(session, "text")).toContain("tr a-z A-Z # crocodile");
    expect(await estate.export(session, "json")).toContain("crocodile");
    expect(await estate.export(session, "raw")).not.toBe("");
    await opened.end();
  });

  test("a copied file is found by its path, with its bytes and the SHA-256 that sha256sum gives", async () => {
    const opened = await estate.open("files");
    const [from, to] = [join(estate.work.folder, "dump.sql"), join(estate.work.folder, "platypus.sql")];
    await writeFile(from, Buffer.alloc(1_000_000, "insert into orders values (1);\n"));
    const copied = await estate.work.run("scp", ["-F", opened.config, from, `${opened.grant}:${to}`]);
    expect(copied).toMatchObject({ code: 0 });
    const session = await sessionOf(opened);
    const [sum] = (await estate.work.run("sha256sum", [from])).text.split(" ");
    const hits = (await search("platypus.sql")).hits.filter((hit) => hit.session === session);
    expect(hits.some(({ where, text }) => where === "statement" && text.includes(to))).toBe(true);
    const text = await estate.export(session, "text");
    expect(text).toContain(to);
    expect(text).toContain(sum);
    expect(await estate.export(session, "json")).toContain(sum);
    await opened.end();
  });

  test("a shell is played as it was seen, found by what its screen showed, and a password typed without echo is nowhere", async () => {
    const opened = await estate.open("shell");
    const run = estate.work.terminal("ssh", ["-F", opened.config, "-tt", opened.grant]);
    await run.until(/everything you send is recorded/);
    run.write("PS1='> '; bind 'set enable-bracketed-paste off'\n");
    run.write("read -rsp 'pass''word: ' word; echo; echo got ${#word} let''ters\n");
    await run.until(/password: /);
    for (const key of PASSWORD) run.write(key);
    run.write("\n");
    await run.until(new RegExp(`got ${PASSWORD.length} letters`));
    run.write("echo hippo''potamus\n");
    await run.until(/hippopotamus/);
    run.write("exit\n");
    await run.done;
    const session = await sessionOf(opened);
    expect((await search("hippopotamus")).hits).toContainEqual(expect.objectContaining({ session, where: "screen" }));

    const cast = await estate.export(session, "asciicast");
    const [header, ...events] = cast
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as unknown);
    expect(header).toMatchObject({ version: 3, term: { cols: 80, rows: 24 } });
    const shown = (events as [number, string, string][]).filter(([, what]) => what === "o").map(([, , data]) => data);
    expect(shown.join("")).toContain("hippopotamus");
    // Typed key by key, so it must not be there when the keys are put together either; what was echoed is.
    const typed = (events as [number, string, string][])
      .filter(([, what]) => what === "i")
      .map(([, , data]) => data)
      .join("");
    expect(typed).toContain("echo hippo''potamus");
    expect(typed).not.toContain(PASSWORD);
    const raw = (await estate.export(session, "raw"))
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as RawLine);
    expect(raw.some(({ kind }) => kind === "terminalHidden")).toBe(true);
    for (const kind of ["terminalInput", "terminalOutput", "data"]) {
      const of = raw.filter((line) => line.kind === kind).map(({ bytes }) => Buffer.from(bytes ?? "", "base64"));
      expect(Buffer.concat(of).includes(PASSWORD), kind).toBe(false);
    }

    const everything = await Promise.all(
      (["json", "text", "asciicast", "raw"] as const).map((format) => estate.export(session, format)),
    );
    everything.push(JSON.stringify(await estate.replay(session)), ...(await filesBelow(estate.system.config.dataDir)));
    expect(everything.length).toBeGreaterThan(6);
    for (const text of everything) {
      expect(text.includes(PASSWORD)).toBe(false);
      expect(text.includes(Buffer.from(PASSWORD).toString("base64").slice(0, 20))).toBe(false);
    }
    expect(everything[0]).toContain("letters");
    await opened.end();
  });

  test("whoever watches sees a shell as it goes on, and its end", async () => {
    const opened = await estate.open("shell");
    const run = estate.work.terminal("ssh", ["-F", opened.config, "-tt", opened.grant]);
    await run.until(/everything you send is recorded/);
    const [row] = await opened.sessions();
    const watched = await watch(estate, row?.id ?? "");
    run.write("echo rhino''ceros\n");
    await eventually(() => watched.lines.some((line) => JSON.stringify(line).includes("rhinoceros")));
    run.write("exit\n");
    await run.done;
    await eventually(() => watched.lines.some(({ what }) => what === "over"));
    const texts = watched.lines.map((line) => JSON.stringify(line));
    const seen = texts.findIndex((line) => line.includes("rhinoceros"));
    expect(seen).toBeLessThan(texts.findIndex((line) => line.includes('"over"')));
    watched.leave();
    await opened.end();
  });

  test("what was refused is on record with the reason, beside what ran", async () => {
    const opened = await estate.open("commands");
    expect(await opened.ssh([opened.grant, "echo hello"])).toMatchObject({ code: 0, text: "hello\n" });
    for (const command of ["cat /etc/shadow", "echo hi; id", "echo $(id)", "sh -c id"]) {
      const run = await opened.ssh([opened.grant, command]);
      expect(run, command).toMatchObject({ code: 254, text: "" });
      expect(run.stderr).toContain("glasskey:");
    }
    expect(await opened.ssh([opened.grant])).toMatchObject({
      code: 254,
      stderr: expect.stringContaining("has no shell"),
    });
    await opened.end();
    const told = await opened.statements();
    expect(told.map(({ outcome, text }) => `${outcome} ${text}`)).toEqual([
      ...[
        "done echo hello",
        "refused cat /etc/shadow",
        "refused echo hi; id",
        "refused echo $(id)",
        "refused sh -c id",
      ],
      "refused shell",
    ]);
  });
});

const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

/** Every file's bytes, one byte a character. */
async function filesBelow(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return Promise.all(files.map((file) => readFile(file, "latin1").catch(() => "")));
}

async function watch(estate: Estate, session: string): Promise<{ lines: WatchLine[]; leave(): void }> {
  const { token } = await (
    await estate.system.as("")
  ).call<{ token: string }>("POST", "/v1/login", { name: "ida", secret: "a-secret-of-the-tests" });
  const { url, caFile } = estate.system.server();
  const lines: WatchLine[] = [];
  const ca = await readFile(caFile);
  const asked = request(new URL(`/v1/sessions/${session}/watch`, url), {
    ca,
    headers: { authorization: `Bearer ${token}` },
  });
  asked.once("error", () => {}); // left
  asked.once("response", (response) => {
    let rest = "";
    response.on("error", () => {});
    response.setEncoding("utf8").on("data", (text: string) => {
      const parts = (rest + text).split("\n");
      rest = parts.pop() ?? "";
      for (const part of parts) if (part !== "") lines.push(JSON.parse(part) as WatchLine);
    });
  });
  asked.end();
  await eventually(() => lines.some(({ what }) => what === "watching"));
  return { lines, leave: () => void asked.destroy() };
}
