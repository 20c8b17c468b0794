import { spawn } from "node:child_process";
import { describe, GlassError } from "../core/errors.ts";

const STDERR_BYTES = 4_096; // enough for the sentence that says why; a hostile server may send any amount

export interface Ran {
  /** Null: ended by a signal. */
  readonly code: number | null;
  readonly stdout: Buffer;
  /** The end of what it said, in one line. Not a secret, but from the far side: text to show, never to obey. */
  readonly stderr: string;
}

export interface RunOptions {
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly timeoutMs: number;
  /** Most that it may print. */
  readonly maxBytes: number;
  readonly input?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Asked four times a second: a text ends the program, and is why. */
  readonly watch?: (() => string | undefined) | undefined;
}

/**
 * Runs a program without a shell, in a process group of its own, so that its helpers (git's transports, ssh) end with it.
 * @throws GlassError `config_invalid` when there is no such program; `internal` when it took too long, printed too much
 *   or was stopped.
 */
export async function run(program: string, args: readonly string[], options: RunOptions): Promise<Ran> {
  const { env, cwd, timeoutMs, maxBytes, input, signal, watch } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(stopped(program, "Glasskey is stopping"));
    const child = spawn(program, args, { cwd, env, detached: true, stdio: ["pipe", "pipe", "pipe"] });
    let why: string | undefined;
    const end = (text: string): void => {
      why ??= text;
      if (child.pid !== undefined) killGroup(child.pid);
    };
    const timer = setTimeout(() => end(`no end after ${Math.round(timeoutMs / 1000)} s`), timeoutMs);
    const watcher = watch === undefined ? undefined : setInterval(() => check(watch, end), 250);
    const onAbort = (): void => end("Glasskey is stopping");
    signal?.addEventListener("abort", onAbort, { once: true });
    const parts: Buffer[] = [];
    let size = 0;
    let stderr = "";
    child.stdout.on("data", (chunk: Buffer) => {
      size += chunk.length;
      if (size > maxBytes) end(`it gave more than ${maxBytes} bytes`);
      else parts.push(chunk);
    });
    child.stderr.on("data", (chunk: Buffer) => (stderr = (stderr + chunk.toString("latin1")).slice(-STDERR_BYTES)));
    const finish = (): void => {
      clearTimeout(timer);
      clearInterval(watcher);
      signal?.removeEventListener("abort", onAbort);
    };
    child.once("error", (cause) => {
      finish();
      reject(
        new GlassError("config_invalid", `cannot run ${program}: ${describe(cause)}`, {
          next: `Install ${program} where glass serve runs, in its PATH.`,
          cause,
        }),
      );
    });
    child.once("close", (code) => {
      finish();
      if (child.pid !== undefined) killGroup(child.pid); // a helper that outlived it holds no pipe, but a connection
      if (why !== undefined) return reject(stopped(program, why));
      resolve({ code, stdout: Buffer.concat(parts), stderr: oneLine(stderr) });
    });
    child.stdin.on("error", () => {}); // it ended without reading all
    child.stdin.end(input ?? "");
  });
}

function check(watch: () => string | undefined, end: (text: string) => void): void {
  const text = watch();
  if (text !== undefined) end(text);
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // gone
  }
}

function stopped(program: string, why: string): GlassError {
  return new GlassError("internal", `${program} was ended: ${why}`);
}

function oneLine(text: string): string {
  return text
    .replaceAll(/[^\x20-\x7e]+/g, " ")
    .trim()
    .slice(-300);
}
