import { readFileSync } from "node:fs";
import { describe, GlassError } from "../../core/errors.ts";
import type { DriverTools } from "../target.ts";
import { issuePass, targetAuthority, validity } from "./authority.ts";
import type { Control, SshPlan } from "./config.ts";
import type { Lanes } from "./lanes.ts";
import { reach } from "./login.ts";
import { sourceAddresses } from "./route.ts";
import { run } from "./run.ts";
import { printable } from "./wire.ts";

/** What runs on the host for each request; the same text is what an administrator installs there. */
export const CONTROL_SCRIPT: string = readFileSync(new URL("./control.sh", import.meta.url), "utf8");

export type ControlTarget = Pick<SshPlan, "host" | "port" | "hostKeys" | "from"> & { readonly control: Control };

/** What the host answered: words and their values, in order, and its clock when it began. */
export interface Answer {
  readonly now: Date;
  readonly lines: readonly { readonly word: string; readonly value: string }[];
}

const MAX_ANSWER_BYTES = 1 << 20;
const MAX_LINES = 20_000;
const VERSION = "1";
const WORD = /^[A-Za-z0-9_/.:,@%+=-]+$/;

/**
 * Has the script do one thing on the host, over a login with a certificate of its own that is valid for a minute.
 * @param request the verb and its arguments, each one plain word: nothing in them means anything to a shell
 * @throws GlassError `target_unreachable`, `target_untrusted`; `target_unfit` for what the script itself refused
 */
export async function askControl(
  target: ControlTarget,
  tools: DriverTools,
  lanes: Lanes,
  request: readonly [verb: string, ...words: string[]],
  signal: AbortSignal,
): Promise<Answer> {
  const command = controlCommand(request);
  return lanes(`${target.host}:${target.port}`, signal, async () => {
    const pass = {
      ...{ keyId: `gk_${tools.install}_control`, principal: target.control.principal },
      ...{ from: await sourceAddresses(target), extensions: [], ...validity(new Date()) },
    };
    const { connection } = await reach(
      { ...target, user: target.control.user },
      issuePass(pass, targetAuthority(tools)),
      `Glasskey's control login as ${target.control.user}`,
      signal,
    );
    try {
      const ended = await run(connection, command, {
        stdin: Buffer.from(CONTROL_SCRIPT),
        limitBytes: MAX_ANSWER_BYTES,
        signal,
      });
      return parseAnswer(request[0], ended.stdout.toString("latin1"), ended.stderr.toString("latin1"));
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof GlassError) throw error;
      throw new GlassError(
        "target_unreachable",
        `the control login on ${target.host}:${target.port} broke: ${describe(error)}`,
        {
          cause: error,
        },
      );
    } finally {
      connection.destroy();
    }
  });
}

/**
 * The command line for sshd. Where a forced command stands in its way it arrives there as SSH_ORIGINAL_COMMAND, and what is
 * sent as input is not read.
 */
export function controlCommand(request: readonly string[]): string {
  const words = ["glasskey-control", VERSION, ...request];
  if (!words.every((word) => WORD.test(word)))
    throw new GlassError("internal", "a control request of words that are none");
  return `sh -s -- '${words.join(" ")}'`;
}

/**
 * Takes the answer apart. What stands before the script's first line was written by the login's own start files.
 * @throws GlassError `target_unfit` when the script refused, ended early, or is none
 */
export function parseAnswer(verb: string, stdout: string, stderr: string): Answer {
  const all = stdout.split("\n", MAX_LINES);
  const start = all.indexOf(`glasskey-control ${VERSION}`);
  const other = all.find((line) => /^glasskey-control \d{1,4}$/.test(line));
  if (start < 0) {
    const why =
      other === undefined
        ? `the host did not run Glasskey's control script: ${printable(stderr.trim() || stdout.trim(), 200) || "no answer"}`
        : "the control script that is installed on the host is of another version";
    throw new GlassError("target_unfit", why, {
      next: "`glass target setup NAME` has the script to install, and what its login needs.",
    });
  }
  const lines: { word: string; value: string }[] = [];
  let now: Date | undefined;
  for (const line of all.slice(start + 1)) {
    const [, word = "", value = ""] = /^([a-z]{1,20})(?: ([ -~]{0,500}))?$/.exec(line) ?? [];
    if (word === "done" && value === verb) {
      if (now === undefined) break;
      return { now, lines };
    }
    if (word === "error")
      throw new GlassError("target_unfit", `the control script on the host: ${printable(value, 200)}`, {
        next: "`glass target setup NAME` has what belongs on the host.",
      });
    if (word === "now" && now === undefined && /^\d{9,12}$/.test(value)) now = new Date(Number(value) * 1000);
    else if (word !== "") lines.push({ word, value });
  }
  throw new GlassError(
    "target_unreachable",
    `the control script on the host ended early: ${printable(stderr.trim(), 200) || "no reason given"}`,
    { next: "Look at sshd's log there; `glass target check` asks again." },
  );
}

/** The values of one word. */
export function valuesOf(answer: Answer, word: string): readonly string[] {
  return answer.lines.filter((line) => line.word === word).map((line) => line.value);
}
