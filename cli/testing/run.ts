import { spawn } from "node:child_process";
import { join } from "node:path";

const GLASS = join(import.meta.dirname, "../bin/glass.mjs");

export interface Run {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** `glass …` as that person, without a terminal. Each person has a home of their own below `homes`. */
export function runGlass(homes: string, person: string, args: readonly string[], input = ""): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [GLASS, ...args], {
      env: { ...process.env, COLUMNS: "", GLASSKEY_HOME: join(homes, person) },
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, stdout, stderr }));
    child.stdin.on("error", () => {});
    child.stdin.end(input);
  });
}
