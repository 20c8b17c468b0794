import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What a program did. Output as it came; no test here prints more than memory holds. */
export interface Done {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: Buffer;
  readonly stderr: string;
  /** `stdout` as text. */
  readonly text: string;
}

export interface Running {
  readonly child: ChildProcess;
  readonly done: Promise<Done>;
  stdout(): string;
  stderr(): string;
  write(text: string | Buffer): void;
  end(): void;
  /** @throws Error with all that was said, when the text does not come within a generous time. */
  until(what: RegExp): Promise<void>;
  kill(signal?: NodeJS.Signals): void;
}

export interface ProgramOptions {
  readonly input?: string | Buffer;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** It is killed after that time; default {@link PATIENCE_MS}. */
  readonly patienceMs?: number;
}

/** A person's machine: a home whose `~/.ssh` breaks whoever reads it, and every program that was started there. */
export interface Workplace extends AsyncDisposable {
  readonly home: string;
  /** A folder for the test's own files. */
  readonly folder: string;
  start(program: string, args: readonly string[], options?: ProgramOptions): Running;
  /** To its end. */
  run(program: string, args: readonly string[], options?: ProgramOptions): Promise<Done>;
  /** In a pseudo-terminal of 80 columns and 24 rows. */
  terminal(program: string, args: readonly string[], options?: ProgramOptions): Running;
}

const PATIENCE_MS = 30_000;
const PTY = `
import fcntl, os, pty, select, struct, sys, termios, signal
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
def size(rows, cols):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
size(24, 80)
signal.signal(signal.SIGUSR1, lambda *_: size(40, 132))
inputs = [0, fd]
while True:
    try:
        ready = select.select(inputs, [], [])[0]
    except InterruptedError:
        continue
    if fd in ready:
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        os.write(1, data)
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            inputs = [fd]
            continue
        os.write(fd, data)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(status if status >= 0 else 128 - status)
`;

/** Which of these programs are not on this machine. */
export function missing(...names: readonly string[]): string[] {
  return names.filter((name) => spawnSync("/bin/sh", ["-c", 'command -v "$1"', "sh", name]).status !== 0);
}

export async function openWorkplace(): Promise<Workplace> {
  const root = await mkdtemp(join(tmpdir(), "glasskey-work-"));
  const [home, folder] = [join(root, "home"), join(root, "files")];
  await mkdir(join(home, ".ssh"), { recursive: true });
  await mkdir(folder);
  await writeFile(join(home, ".ssh/config"), "ThisIsNoOption yes\n");
  const children = new Set<ChildProcess>();

  const start = (program: string, args: readonly string[], options: ProgramOptions = {}): Running => {
    const env = {
      PATH: process.env["PATH"] ?? "",
      HOME: home,
      LANG: "C.UTF-8",
      TERM: "xterm-256color",
      ...options.env,
    };
    const child = spawn(program, args, { env, cwd: options.cwd ?? folder });
    children.add(child);
    const out: Buffer[] = [];
    let [seen, stderr] = ["", ""];
    let changed = Promise.withResolvers<void>();
    const tell = (): void => {
      changed.resolve();
      changed = Promise.withResolvers();
    };
    child.stdout.on("data", (bytes: Buffer) => {
      out.push(bytes);
      if (seen.length < 1 << 20) seen += bytes.toString();
      tell();
    });
    child.stderr.on("data", (bytes: Buffer) => {
      stderr += bytes.toString();
      tell();
    });
    child.stdin.on("error", () => {}); // it is over
    let over = false;
    const late = setTimeout(() => void child.kill("SIGKILL"), options.patienceMs ?? PATIENCE_MS);
    const done = (async (): Promise<Done> => {
      const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
      clearTimeout(late);
      children.delete(child);
      over = true;
      tell();
      const stdout = Buffer.concat(out);
      return { code, signal, stdout, stderr, text: stdout.length < 1 << 20 ? stdout.toString() : "" };
    })();
    done.catch(() => undefined); // not found: told to whoever waits
    if (options.input !== undefined) child.stdin.end(options.input);
    return {
      ...{ child, done, stdout: () => seen, stderr: () => stderr },
      write: (text) => void child.stdin.write(text),
      end: () => void child.stdin.end(),
      async until(what) {
        while (!what.test(seen) && !what.test(stderr)) {
          if (over) throw new Error(`${program} ended without ${what.source}: ${JSON.stringify({ seen, stderr })}`);
          await changed.promise;
        }
      },
      kill: (signal = "SIGTERM") => void child.kill(signal),
    };
  };
  return {
    ...{ home, folder, start },
    run(program, args, options = {}) {
      return start(program, args, { input: "", ...options }).done;
    },
    terminal: (program, args, options) => start("python3", ["-c", PTY, program, ...args], options),
    async [Symbol.asyncDispose]() {
      const left = [...children].filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null);
      await Promise.all(
        left.map(async (child) => {
          const gone = once(child, "close");
          child.kill("SIGKILL");
          await gone;
        }),
      );
      await rm(root, { recursive: true, force: true });
    },
  };
}
