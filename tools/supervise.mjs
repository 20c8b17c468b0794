// Runs a child in the foreground so that it is as if the user had started it: same terminal, same signals, same exit.
import { spawn } from "node:child_process";
import { constants } from "node:os";

/** The signals that ask a program to stop. */
export const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"];
/** One Ctrl-C arrives here twice, from the terminal and again from npm; a person's second one takes longer. */
const SAME_SIGNAL_WITHIN_MS = 1_000;

/**
 * Resolves with the child's exit code once it is gone, 128 + n when signal n ended it. Until then every signal that asks
 * to stop reaches the child exactly once. Rejects when the program cannot be started.
 * @param {string} program
 * @param {readonly string[]} args
 * @param {import("node:child_process").SpawnOptions} options
 * @param {(child: import("node:child_process").ChildProcess) => void} [started]
 * @returns {Promise<number>}
 */
export function supervise(program, args, options, started) {
  return new Promise((resolve, reject) => {
    // A signal sent to the whole process group has reached the child already; one sent to this process alone has not.
    // The difference cannot be asked for, so a second child in the same group tells: does it still answer?
    let canary = newCanary();
    const child = spawn(program, args, options);
    const handlers = new Map(SIGNALS.map((signal) => [signal, onceIn(SAME_SIGNAL_WITHIN_MS, () => relay(signal))]));
    for (const [signal, handler] of handlers) process.on(signal, handler);

    function relay(signal) {
      const asked = canary;
      const alive = () => {
        asked.off("exit", gone);
        child.kill(signal);
      };
      const gone = () => {
        asked.stdout.off("data", alive);
        canary = newCanary();
      };
      if (asked.exitCode !== null || asked.signalCode !== null) {
        gone();
      } else if (asked.pid === undefined) {
        child.kill(signal); // it could not be started: better twice than never
      } else {
        asked.stdout.once("data", alive);
        asked.once("exit", gone);
        asked.stdin.write("?");
      }
    }

    function finish() {
      for (const [signal, handler] of handlers) process.off(signal, handler);
      canary.removeAllListeners("exit");
      canary.stdin.destroy();
      canary.stdout.destroy();
    }
    child.once("error", (error) => {
      finish();
      reject(error);
    });
    child.once("close", (code, signal) => {
      finish();
      resolve(code ?? 128 + (constants.signals[signal] ?? 0));
    });
    started?.(child);
  });
}

/** Echoes until the end of its input, so it never outlives this process. */
function newCanary() {
  const canary = spawn("cat", [], { stdio: ["pipe", "pipe", "ignore"] });
  canary.on("error", () => {});
  canary.stdin.on("error", () => {});
  canary.stdout.on("error", () => {});
  return canary;
}

function onceIn(windowMs, action) {
  let last = -Infinity;
  return () => {
    const now = performance.now();
    if (now - last < windowMs) return;
    last = now;
    action();
  };
}
