import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, inject, test } from "vitest";
import { committed, testFolder } from "../src/recording/testing/journal.ts";
import { testStore } from "../src/recording/testing/store.ts";
import { openStudio } from "../src/recording/testing/terminal.ts";
import { createTape } from "../src/targets/ssh/tape.ts";
import { RECORD } from "../src/targets/target.ts";

const never = new AbortController().signal;
const PASSWORD = "hunter2-b41f";
const STDIN = "customer-7731";

/** The text, and what it looks like where bytes are written as text. */
function forms(text: string): string[] {
  const bytes = Buffer.from(text);
  return [
    text,
    bytes.toString("base64").replace(/=+$/, "").slice(0, -1),
    bytes.toString("hex"),
    JSON.stringify([...bytes]),
  ];
}

async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

test("of a password typed without echo, and of masked standard input, no byte is in any file, record or export; all else is", async () => {
  await using base = await testStore(inject("pg18"));
  await using folder = await testFolder();
  await using studio = await openStudio(folder.path, base);
  const session = await base.session();
  const recorder = studio.journal.recorder(session);
  await committed(recorder, RECORD.sessionStarted, JSON.stringify({ person: "ann", target: "web-1", playbook: "web" }));

  const tape = createTape({ recorder, mask: { parameters: true, literals: false, key: Buffer.alloc(32, 3) } });
  const shell = tape.begin("shell", "", {}, () => {});
  const terminal = tape.terminal(shell, { cols: 80, rows: 24, term: "xterm" });
  const out = (text: string): void => terminal.output(Buffer.from(text));
  const type = (text: string, echo: (key: string) => string): Promise<void> =>
    new Promise((resolve) => {
      const keys = Array.from(text);
      const next = (): void => {
        const key = keys.shift();
        if (key === undefined) return resolve();
        terminal.input(Buffer.from(key), () => {
          const shown = echo(key);
          if (shown !== "") out(shown);
          next();
        });
      };
      next();
    });
  out("$ ");
  await type("sudo -k id\r", (key) => (key === "\r" ? "\r\n[sudo] password for ann: " : key));
  await type(`${PASSWORD}\r`, (key) => (key === "\r" ? "\r\nuid=0(root)\r\n$ " : ""));
  const exec = tape.begin("exec", "import-customers", {}, () => {});
  await new Promise<void>((resolve) => tape.data(exec, Buffer.from(STDIN), resolve));
  tape.output(exec, 1, Buffer.from("1 imported\n"));
  tape.end(exec, { tag: "exit 0" });
  const upload = tape.begin("sftp", "/srv/app.conf", { direction: "write" }, () => {});
  tape.end(upload, { bytes: 9, detail: { sha256: createHash("sha256").update("contents\n").digest("hex") } });
  tape.end(shell, { tag: "exit 0" });
  tape.close();
  await committed(recorder, RECORD.sessionEnded, JSON.stringify({ cause: "client", detail: "bye", ...tape.counts }));

  const forbidden = [...forms(PASSWORD), ...forms(STDIN)];
  const exported = new Map<string, string>();
  for (const format of ["json", "text", "raw", "asciicast"] as const) {
    let whole = "";
    for await (const piece of studio.recordings.export(session, format, never)) whole += piece;
    exported.set(format, whole);
    for (const text of forbidden) expect(whole.includes(text), `${format} has ${text}`).toBe(false);
    // Nor letter by letter, as keys are recorded.
    const letters = [...whole.matchAll(/"i", ?"(.)"/g)].map(([, letter]) => letter).join("");
    expect(letters).not.toContain(PASSWORD.slice(0, 4));
  }
  for (const file of await filesBelow(folder.path)) {
    const bytes = await readFile(file);
    for (const text of forbidden) expect(bytes.includes(text), `${file} has ${text}`).toBe(false);
  }
  expect(exported.get("asciicast")).toContain('"i","s"]');
  expect(exported.get("text")).toMatch(/\[sudo\] password for ann:/);
  expect(exported.get("text")).toMatch(/exec: import-customers\n\s+exit 0/);
  expect(exported.get("text")).toContain("» 1 imported");
  expect(exported.get("text")).toMatch(/sftp: \/srv\/app\.conf\n\s+done\s+9 bytes/);
});

test("when the recording fails, nothing more of a session is let through", async () => {
  await using base = await testStore(inject("pg18"));
  await using folder = await testFolder();
  const studio = await openStudio(folder.path, base);
  const recorder = studio.journal.recorder(await base.session());
  const tape = createTape({ recorder, mask: { parameters: false, literals: false, key: Buffer.alloc(32) } });
  let passed = 0;
  const n = await new Promise<number>((resolve) => {
    tape.begin("shell", "", {}, resolve);
  });
  const terminal = tape.terminal(n, { cols: 80, rows: 24, term: "xterm" });
  await studio[Symbol.asyncDispose]();
  const attempt = (act: () => void): void => {
    try {
      act();
    } catch {
      // A journal that is over may say so by throwing: what counts is that nothing passes.
    }
  };
  attempt(() => terminal.input(Buffer.from("id\r"), () => passed++));
  attempt(() => void tape.begin("exec", "id", {}, () => passed++));
  attempt(() => tape.data(n, Buffer.from("x"), () => passed++));
  await new Promise((resolve) => setImmediate(resolve));
  expect(passed).toBe(0);
});
