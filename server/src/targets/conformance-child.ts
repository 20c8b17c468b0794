import { createHmac } from "node:crypto";
import { text } from "node:stream/consumers";
import { Secret } from "../core/secret.ts";
import type { DriverTools, LeaseDriver, LeasePlan, LeaseSecrets } from "./target.ts";

/**
 * One driver call in a process of its own, so that the conformance suite can kill it with SIGKILL at any step.
 * Reads a {@link ChildTask} from standard input and prints `done` when the call has resolved.
 */
export interface ChildTask {
  /** URL of the module that exports the function `(tools: DriverTools) => LeaseDriver`, and its name there. */
  module: string;
  name: string;
  verb: "mint" | "fence" | "revoke" | "confirm";
  plan: LeasePlan;
  secretsKey: string;
  install: string;
  /** What each secret reference resolves to. */
  references: Readonly<Record<string, string>>;
}

/** The derived secrets of a lease in tests: the same in every process that has the key. */
export function secretsFrom(key: string): LeaseSecrets {
  return { derive: (purpose) => new Secret(createHmac("sha256", key).update(purpose).digest("base64url")) };
}

/** What the control plane would give a driver; every process of the suite has the same secrets of the kind. */
export function testTools(install: string, references: () => Readonly<Record<string, string>>): DriverTools {
  return {
    install,
    resolve: (reference) => new Secret(references()[reference] ?? ""),
    derive: secretsFrom("the kind's own secrets in this suite").derive,
  };
}

async function main(): Promise<void> {
  const task = JSON.parse(await text(process.stdin)) as ChildTask;
  const module = (await import(task.module)) as Record<string, (tools: DriverTools) => LeaseDriver>;
  const driver = module[task.name]?.(testTools(task.install, () => task.references));
  if (driver === undefined) throw new Error(`${task.module} does not export ${task.name}`);
  const secrets = secretsFrom(task.secretsKey);
  const { signal } = new AbortController();
  if (task.verb === "mint") await driver.mint(task.plan, secrets, signal);
  if (task.verb === "fence") await driver.fence(task.plan, signal);
  if (task.verb === "revoke") await driver.revoke(task.plan, signal);
  if (task.verb === "confirm") await driver.confirm(task.plan, secrets, signal);
  process.stdout.write("done\n");
}

if (import.meta.main) await main();
