import { spawn } from "node:child_process";
import { join } from "node:path";
import { append } from "../../audit/append.ts";
import { newId } from "../../core/ids.ts";
import { RECORD } from "../../targets/target.ts";
import { type ChunkStore, folderChunkStore } from "../chunk-store.ts";
import { createRecordings, type Recordings } from "../replay.ts";
import { openSealer, type Sealer, type SealerOptions } from "../sealer.ts";
import { committed, KEY, type TestJournal, testJournal } from "./journal.ts";
import type { TestStore } from "./store.ts";

/** The real way of a record: journal, sealer, chunks, and what the API reads them with. */
export interface Studio extends AsyncDisposable {
  readonly journal: TestJournal;
  readonly sealer: Sealer;
  readonly chunks: ChunkStore;
  readonly recordings: Recordings;
  /** A session of this process, and the writer of its recording. */
  session(): Promise<Take>;
}

/** Writes one session's recording as a gateway does. Each resolves once the record is committed. */
export interface Take {
  readonly session: string;
  begin(): Promise<void>;
  /** Of terminal `n`, 1 where it is left out; so below. */
  resize(cols: number, rows: number, n?: number): Promise<void>;
  output(bytes: Uint8Array | string, n?: number): Promise<void>;
  input(bytes: Uint8Array | string, n?: number): Promise<void>;
  /** What a command without a terminal wrote. */
  wrote(n: number, stream: 1 | 2, bytes: Uint8Array | string): Promise<void>;
  statement(n: number, text: string, result?: Record<string, unknown>): Promise<void>;
  started(n: number, text: string): Promise<void>;
  completed(n: number, result?: Record<string, unknown>): Promise<void>;
  notice(text: string): Promise<void>;
  end(): Promise<void>;
}

/** `node` of the sessions that testStore makes. */
const NODE = "nd_1";

export async function openStudio(
  folder: string,
  { store, keyring, session: makeSession }: TestStore,
  options: Partial<SealerOptions> = {},
): Promise<Studio> {
  const dir = options.dir ?? join(folder, "journal");
  const journal = await testJournal(dir, { fileBytes: 8 << 20 });
  const chunks = folderChunkStore(join(folder, "chunks"));
  const sealer = await openSealer({
    ...{ dir, key: KEY, name: `nd_${newId("session").slice(3)}`, store, keyring, chunks, append },
    ...{ opened: { id: journal.id, sequence: journal.openedSequence }, onError: () => {} },
    ...options,
  });
  const recordings = createRecordings({
    ...{ store, keyring, chunks, node: NODE, live: sealer },
    sealNow: (session) => sealer.sealNow(session),
  });
  return {
    ...{ journal, sealer, chunks, recordings },
    async session() {
      const session = await makeSession();
      const recorder = journal.recorder(session);
      const write = (kind: Parameters<typeof recorder.write>[0], payload: Uint8Array | string): Promise<void> =>
        committed(recorder, kind, payload);
      const started = (n: number, text: string): Promise<void> =>
        write(RECORD.statementStarted, JSON.stringify({ n, via: "simple", text }));
      const completed = (n: number, result: Record<string, unknown> = { tag: "SELECT 1", us: 10 }): Promise<void> =>
        write(RECORD.statementCompleted, JSON.stringify({ n, ...result }));
      return {
        session,
        begin: () => write(RECORD.sessionStarted, JSON.stringify({ person: "ann", target: "t", playbook: "p" })),
        resize: (cols, rows, n = 1) => write(RECORD.terminalResize, JSON.stringify({ n, cols, rows })),
        output: (bytes, n = 1) => write(RECORD.terminalOutput, numbered(bytes, n)),
        input: (bytes, n = 1) => write(RECORD.terminalInput, numbered(bytes, n)),
        wrote: (n, stream, bytes) =>
          write(RECORD.output, numbered(Buffer.concat([Buffer.of(stream), Buffer.from(bytes)]), n)),
        ...{ started, completed },
        async statement(n, text, result) {
          await started(n, text);
          await completed(n, result);
        },
        notice: (text) => write(RECORD.notice, JSON.stringify({ what: "warning", text })),
        end: () => write(RECORD.sessionEnded, JSON.stringify({ cause: "client", detail: "bye" })),
      };
    },
    async [Symbol.asyncDispose]() {
      await sealer.close();
      await journal.close();
    },
  };
}

/** The payload of a record that belongs to statement `n`. */
export function numbered(bytes: Uint8Array | string, n = 1): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt32BE(n, 0);
  return Buffer.concat([head, Buffer.from(bytes)]);
}

/** What a program writes to a real pseudo-terminal of that size: pieces as they came. Needs `python3`, for its pty module. */
export async function programOutput(
  command: readonly string[],
  { cols, rows, input = "", env = {} }: { cols: number; rows: number; input?: string; env?: Record<string, string> },
): Promise<Buffer[]> {
  const child = spawn("python3", ["-c", PTY, String(cols), String(rows), input, ...command], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: process.env["PATH"], TERM: "xterm-256color", LANG: "C.UTF-8", HOME: "/nonexistent", ...env },
  });
  const pieces: Buffer[] = [];
  let errors = "";
  child.stdout.on("data", (piece: Buffer) => pieces.push(piece));
  child.stderr.on("data", (piece: Buffer) => (errors += piece.toString()));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  if (code !== 0) throw new Error(`${command.join(" ")}: ${code} ${errors}`);
  return pieces;
}

/** Sends the input once the program has drawn something, a byte after each of its answers, then its output until its end. */
const PTY = `
import fcntl, os, pty, select, struct, sys, termios
cols, rows, keys, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode(), sys.argv[4:]
pid, fd = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
while True:
    ready = select.select([fd], [], [], 0.3)[0]
    if not ready:
        if keys:
            os.write(fd, keys[:1])
            keys = keys[1:]
        continue
    try:
        data = os.read(fd, 65536)
    except OSError:
        break
    if not data:
        break
    os.write(1, data)
os.waitpid(pid, 0)
`;
