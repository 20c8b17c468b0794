import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { RECORD, type RecordKind } from "../target.ts";
import { createTape, type Tape } from "./tape.ts";

interface Written {
  readonly kind: RecordKind;
  readonly payload: Buffer;
}

/** A recorder that commits when it is told to. */
function startTape({ parameters = false, literals = false, keptOutputBytes = 1 << 20 } = {}): {
  tape: Tape;
  written: Written[];
  commit(): void;
  json(kind: RecordKind): Record<string, unknown>[];
} {
  const written: Written[] = [];
  let waiting: (() => void)[] = [];
  const tape = createTape(
    {
      recorder: {
        write(kind, payload, committed) {
          written.push({ kind, payload: Buffer.from(payload) });
          if (committed !== undefined) waiting.push(committed);
        },
        pendingBytes: 17,
      },
      mask: { parameters, literals, key: Buffer.alloc(32, 7) },
    },
    { keptOutputBytes },
  );
  return {
    ...{ tape, written },
    commit() {
      const now = waiting;
      waiting = [];
      for (const committed of now) committed();
    },
    json: (kind) =>
      written
        .filter((one) => one.kind === kind)
        .map(({ payload }) => JSON.parse(payload.toString()) as Record<string, unknown>),
  };
}

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");
const nothing = (): void => {};

test("nothing is let through before its record is committed, and what follows comes in order", () => {
  const { tape, commit } = startTape();
  const passed: string[] = [];
  const n = tape.begin("exec", "cat", {}, (of) => passed.push(`exec ${of}`));
  tape.data(n, Buffer.from("one"), () => passed.push("one"));
  const terminal = tape.terminal(n, { cols: 80, rows: 24, term: "xterm" });
  terminal.input(Buffer.from("ls\r"), () => passed.push("ls"));
  terminal.resize(90, 20, () => passed.push("size"));
  tape.action({ what: "signal", n, name: "INT" }, () => passed.push("signal"));
  expect(passed).toEqual([]);
  commit();
  expect(passed).toEqual(["exec 1", "one", "ls", "size", "signal"]);
});

test("statements are numbered over all channels, refusals among them, and counted", () => {
  const { tape, json } = startTape();
  expect(tape.begin("shell", "", {}, nothing)).toBe(1);
  tape.refuse("forward", "db:5432", "the playbook does not allow it", { host: "db" });
  expect(tape.begin("sftp", "/srv/a", { op: "write" }, nothing)).toBe(3);
  expect(tape.counts).toEqual({ statements: 3, refused: 1 });
  expect(json(RECORD.statementRefused)).toEqual([
    { n: 2, via: "forward", text: "db:5432", reason: "the playbook does not allow it", detail: { host: "db" } },
  ]);
  expect(tape.pendingBytes).toBe(17);
});

test("a command is recorded exactly, also where it is no UTF-8 or too long for one record", () => {
  const { tape, json, written } = startTape();
  tape.begin("exec", Buffer.from([0x6c, 0x73, 0xff]), {}, nothing);
  expect(json(RECORD.statementStarted)[0]).toEqual({ n: 1, via: "exec", text: "ls\uFFFD", base64: "bHP/" });
  const long = "\u0001".repeat(250_000);
  tape.begin("exec", long, {}, nothing);
  const parts = written.filter(({ kind }) => kind === RECORD.data).map(({ payload }) => payload);
  expect(parts.every((part) => part.readUInt32BE(0) === 2 && part.length < 1 << 20)).toBe(true);
  const whole = JSON.parse(Buffer.concat(parts.map((part) => part.subarray(4))).toString()) as { text: string };
  expect(whole.text === long).toBe(true);
});

test("a command's output is kept up to the bound, and its totals and digests are of all of it", () => {
  const { tape, json, written } = startTape({ keptOutputBytes: 10 });
  const n = tape.begin("exec", "seq", {}, nothing);
  for (const piece of ["12345", "6789abc", "def"]) tape.output(n, 1, Buffer.from(piece));
  tape.output(n, 2, Buffer.from("warn"));
  tape.data(n, Buffer.from("in"), nothing);
  tape.end(n, { tag: "exit 0", detail: { more: 1 } });
  tape.end(n, { tag: "exit 1" }); // the second one is nothing
  const output = written.filter(({ kind }) => kind === RECORD.output).map(({ payload }) => payload.toString("latin1"));
  expect(output).toEqual(["\0\0\0\x01\x0112345", "\0\0\0\x01\x016789a", "\0\0\0\x01\x02warn"]);
  expect(json(RECORD.statementCompleted)).toEqual([
    {
      ...{ n: 1, tag: "exit 0", us: expect.any(Number) },
      detail: {
        stdin: { bytes: 2, sha256: sha256("in") },
        stdout: { bytes: 15, sha256: sha256("123456789abcdef"), keptBytes: 10 },
        stderr: { bytes: 4, sha256: sha256("warn") },
        more: 1,
      },
    },
  ]);
});

test("streams whose bytes are not kept have totals with a digest for each direction", () => {
  const { tape, json, written } = startTape();
  const n = tape.begin("rsync", "rsync --server", {}, nothing);
  tape.total(n, 0, Buffer.alloc(3_000_000, 1));
  tape.total(n, 1, Buffer.from("ok"));
  tape.end(n, { tag: "exit 0" });
  expect(written).toHaveLength(2);
  expect(json(RECORD.statementCompleted)[0]?.["detail"]).toEqual({
    stdin: { bytes: 3_000_000, sha256: sha256(Buffer.alloc(3_000_000, 1)) },
    stdout: { bytes: 2, sha256: sha256("ok") },
  });
});

test("bytes longer than a record are split, and let through once, after the last part", () => {
  const { tape, commit, written } = startTape();
  const n = tape.begin("exec", "cat", {}, nothing);
  let passed = 0;
  const bytes = Buffer.alloc(2_500_000, 5);
  tape.data(n, bytes, () => passed++);
  commit();
  expect(passed).toBe(1);
  const parts = written.filter(({ kind }) => kind === RECORD.data).map(({ payload }) => payload.subarray(4));
  expect(parts).toHaveLength(3);
  expect(Buffer.concat(parts).equals(bytes)).toBe(true);
});

test("a terminal's size comes first, and all its records carry its number", () => {
  const { tape, written } = startTape();
  tape.begin("exec", "x", {}, nothing);
  const n = tape.begin("shell", "", {}, nothing);
  const terminal = tape.terminal(n, { cols: 100, rows: 30, term: "xterm-256color" });
  terminal.output(Buffer.from("$ "));
  terminal.input(Buffer.from("i"), nothing);
  terminal.output(Buffer.from("i"));
  terminal.input(Buffer.from("\r"), nothing);
  const of = written.slice(2);
  expect(of.map(({ kind }) => kind)).toEqual([
    ...[RECORD.terminalResize, RECORD.terminalOutput, RECORD.terminalHidden, RECORD.terminalOutput],
    ...[RECORD.terminalInput, RECORD.terminalReveal],
  ]);
  expect(JSON.parse(of[0]?.payload.toString() ?? "")).toEqual({ n: 2, cols: 100, rows: 30, term: "xterm-256color" });
  for (const { payload } of of.slice(1)) expect(payload.readUInt32BE(0)).toBe(2);
});

test("a size of zero, as a client without a window says, is what programs take it for, and text is followed in it", () => {
  const { tape, json, written } = startTape();
  const n = tape.begin("exec", "top", {}, nothing);
  const terminal = tape.terminal(n, { cols: 0, rows: 0, term: "dumb" });
  terminal.resize(0, 50, nothing);
  expect(json(RECORD.terminalResize)).toEqual([
    { n: 1, cols: 80, rows: 24, term: "dumb" },
    { n: 1, cols: 80, rows: 50 },
  ]);
  terminal.input(Buffer.from("ls"), nothing);
  terminal.output(Buffer.from("ls"));
  terminal.input(Buffer.from("\r"), nothing);
  expect(written.at(-1)).toMatchObject({ kind: RECORD.terminalReveal, payload: { length: 40 } });
});

test("at a statement's end what was typed and not echoed is decided; at the session's end nothing more is written", () => {
  const ended = startTape();
  const n = ended.tape.begin("shell", "", {}, nothing);
  ended.tape.terminal(n, { cols: 80, rows: 24, term: "xterm" }).input(Buffer.from("hunter2"), nothing);
  ended.tape.end(n, { tag: "exit 0" });
  expect(ended.written.map(({ kind }) => kind).slice(-2)).toEqual([RECORD.terminalReveal, RECORD.statementCompleted]);
  expect(ended.written.at(-2)?.payload).toHaveLength(8); // no key

  const closed = startTape();
  const m = closed.tape.begin("shell", "", {}, nothing);
  closed.tape.terminal(m, { cols: 80, rows: 24, term: "xterm" }).input(Buffer.from("hunter2"), nothing);
  const before = closed.written.length;
  closed.tape.close();
  closed.tape.close();
  expect(closed.written).toHaveLength(before);
});

test("mask: parameters: standard input is a mark without a plain digest, the command and its output stay", () => {
  const { tape, written, json, commit } = startTape({ parameters: true });
  const n = tape.begin("exec", "mysql -pfoo", {}, nothing);
  let passed = 0;
  tape.data(n, Buffer.from("hunter2"), () => passed++);
  tape.end(n, { tag: "exit 0" });
  commit();
  expect(passed).toBe(1);
  const all = Buffer.concat(written.map(({ payload }) => payload)).toString("latin1");
  expect(all).not.toContain("hunter2");
  expect(all).not.toContain(sha256("hunter2"));
  expect(all).toContain("mysql -pfoo");
  expect(json(RECORD.statementCompleted)[0]?.["detail"]).toEqual({ stdin: { bytes: 7 } });
});

test("mask: all: of a command the program stays, each argument is a keyed hash, and what a shell would interpret is one", () => {
  const shown = (command: string | Uint8Array, detail = {}): { text: string; masked?: boolean; all: string } => {
    const { tape, json, written } = startTape({ literals: true });
    tape.begin("exec", command, detail, nothing);
    const [started] = json(RECORD.statementStarted) as unknown as { text: string; masked: boolean }[];
    return { text: "", ...started, all: Buffer.concat(written.map(({ payload }) => payload)).toString("utf8") };
  };
  const mark = "‹hmac:[0-9a-f]{24}›";
  expect(shown("systemctl restart app").text).toMatch(new RegExp(`^systemctl ${mark} ${mark}$`));
  expect(shown("uptime").text).toBe("uptime");
  const secret = shown("mysql -u 'root' -p\"hunter2\"", { run: "mysql -phunter2" });
  expect(secret.text).toMatch(new RegExp(`^mysql ${mark} ${mark} ${mark}$`));
  expect(secret.masked).toBe(true);
  // Equal arguments look equal, however they are quoted.
  expect(shown("a 'x'").text.slice(2)).toBe(shown("b x").text.slice(2));
  for (const command of [
    "PGPASSWORD=hunter2 psql",
    "echo hunter2 | sudo -S id",
    "sh -c 'echo hunter2; id'",
    "'hunter2' x",
    "echo $(cat hunter2)",
    "echo hunter2\nid",
    'echo "hunter2',
    "echo hunter2 # hunter2",
    Buffer.from([...Buffer.from("echo hunter2 "), 0xff]),
  ])
    expect(shown(command).all, String(command)).not.toContain("hunter2");
  expect(secret.all).not.toContain("hunter2");
});

test("what is not a command keeps its text under any mask: paths and forwards are how a reviewer knows what was done", () => {
  const { tape, json } = startTape({ literals: true, parameters: true });
  tape.begin("sftp", "/srv/app.conf", { op: "write" }, nothing);
  expect(json(RECORD.statementStarted)).toEqual([
    { n: 1, via: "sftp", text: "/srv/app.conf", detail: { op: "write" } },
  ]);
});
