import { runCli } from "@glasskey/witness/cli";
import type { Invocation } from "../commands.ts";

/** `glass witness DIR …`: the witness of its own package, under another name. */
export const witness = ({ args, options }: Invocation): Promise<number> => run(args, options);
export const addLog = ({ args }: Invocation): Promise<number> => run(["add-log", ...args]);
export const dropKey = ({ args }: Invocation): Promise<number> => run(["drop-key", ...args]);
export const show = ({ args }: Invocation): Promise<number> => run(["show", ...args]);

function run(args: readonly string[], options: Invocation["options"] = {}): Promise<number> {
  const given = Object.entries(options).flatMap(([name, value]) => {
    if (name === "json" || value === undefined || value === false) return [];
    return value === true ? [`--${name}`] : [`--${name}=${value}`];
  });
  return runCli(
    [...args, ...given],
    (text) => process.stdout.write(text),
    (text) => process.stderr.write(text),
    { program: "glass witness" },
  );
}
