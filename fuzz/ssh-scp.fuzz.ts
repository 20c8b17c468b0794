import { authorize } from "../server/src/targets/ssh/authorize.ts";
import { createTestTape, scopeFor } from "../server/src/targets/ssh/fixtures/file-proxies.ts";
import { matchesCommand, parsePattern, quoteCommand, splitCommand } from "../server/src/targets/ssh/patterns.ts";
import { createScpProxy } from "../server/src/targets/ssh/scp.ts";
import type { Random } from "./random.ts";

const scope = scopeFor({ sftp: { read: ["/r/**"], write: ["/w/**"] }, commands: ["tail -n <number> /var/log/**"] });

export const seeds: readonly Uint8Array[] = [
  "C0644 3 x\nabc\0",
  "T1 0 1 0\nD0755 0 d\nC0600 0 a\n\0E\n",
  "\u0001scp: /r/x: no such file\n",
  "D0755 0 d\nD0755 0 e\nC0644 1 f\nx\0E\nE\n",
  "tail -n 10 '/var/log/a b' ",
  'tail "-n" 1\\0 /var/log/x',
].map((line) => Buffer.from(line));
export const words: readonly string[] = [
  "\0",
  "\n",
  "C0644 ",
  "D0755 0 ",
  "E\n",
  "../",
  "/",
  "\x01",
  "\x02",
  " 99999999999999 ",
  "'",
  '"',
  "\\",
  "$(",
  "`",
  ";",
];

/** Either side may send anything: no crash; names that are paths never pass; a command that is read is read as it is quoted. */
export async function one(input: Uint8Array, random: Random): Promise<void> {
  const bytes = Buffer.from(input);
  const size = random.pick([1, 3, 7, 64, 4096]);
  for (const command of ["scp -r -p -t -- /w/d", "scp -r -p -f -- /r/d"]) {
    const [whole, pieces] = [await play(command, bytes, bytes.length), await play(command, bytes, size)];
    if (whole !== pieces) throw new Error(`${command} cut into ${size}: ${pieces}; whole: ${whole}`);
    if (/^[CD].*[/]/m.test(whole)) throw new Error("a name that is a path was passed on");
  }
  const split = splitCommand(bytes.toString("utf8"));
  if (!split.ok) return;
  const again = splitCommand(quoteCommand(split.argv));
  if (!again.ok || JSON.stringify(again.argv) !== JSON.stringify(split.argv))
    throw new Error("quoting changed the arguments");
  const pattern = parsePattern(bytes.toString("utf8"));
  if (typeof pattern !== "string") matchesCommand(pattern, split.argv);
}

/** @returns the lines that the sink was given; it takes them all. Contents of files are left out. */
async function play(command: string, bytes: Buffer, size: number): Promise<string> {
  const { tape, mask } = createTestTape({ commit: (committed) => queueMicrotask(committed) });
  const verdict = authorize({ ask: "exec", command }, scope);
  if (!verdict.ok || verdict.flow.is !== "scp") throw new Error("the seed's own command is refused");
  const upload = verdict.flow.command.direction === "toTarget";
  const lines: string[] = [];
  let left = 0; // of a file's bytes
  let status = false; // a file's status is due
  const sink = (data: Uint8Array, sent?: () => void): void => {
    const passed = Buffer.from(data);
    sent?.();
    if (left > 0) {
      left -= passed.length;
      status = left === 0;
      return;
    }
    // A source's own message is answered only where a file's status is due.
    const message = passed[0] === 1 || passed[0] === 2;
    if (message && !status) return;
    if (!status) {
      const line = passed.toString("latin1");
      lines.push(line);
      const size = /^C\d+ (\d+) /.exec(line)?.[1];
      left = Number(size ?? 0);
      status = size !== undefined && left === 0;
    } else status = false;
    queueMicrotask(acknowledge);
  };
  const proxy = createScpProxy({
    ...{ n: 1, scope, tape, mask, command: verdict.flow.command, judged: verdict.flow.judged },
    decide: (question) => authorize(question, scope),
    ends: {
      toTarget: (data, sent) => (upload ? sink(data, sent) : sent?.()),
      toClient: (data, stream, sent) => (upload || stream !== 0 ? sent?.() : sink(data, sent)),
      ...{ targetEof: () => {}, clientDone: () => {}, targetDone: () => {} },
      refuse: (_via, _text, { reason }) => reason,
      fail: () => {},
      defect: (error) => {
        throw error;
      },
    },
  });
  const acknowledge = (): void => (upload ? proxy.fromTarget(Buffer.alloc(1), 0) : proxy.fromClient(Buffer.alloc(1)));
  acknowledge();
  for (let at = 0; at < bytes.length; at += size) {
    const part = bytes.subarray(at, at + size);
    if (upload) proxy.fromClient(part);
    else proxy.fromTarget(part, 0);
  }
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => void setImmediate(resolve));
  proxy.over();
  return lines.join("");
}
