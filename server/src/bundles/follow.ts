import { createHmac } from "node:crypto";
import { equalSecret } from "../core/bytes.ts";
import { sleep } from "../core/clock.ts";
import { describe } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";
import type { LoadedPolicy } from "../playbooks/load.ts";
import { formatProblems } from "../playbooks/problem.ts";
import type { Store } from "../store/database.ts";
import type { BundleFiles } from "./bundle.ts";
import type { GitSource } from "./config.ts";
import { ACCEPTED, acceptedBefore, newestCommit, type Asker, type Candidate, type Generation } from "./generations.ts";
import { openRepository } from "./repository.ts";
import { createSerial } from "./serial.ts";

/** Follows a branch of a git repository. */
export interface Following {
  /** Asks git now. @returns why the branch's head is not in force, as text for a person; undefined when it is. */
  update(by?: Asker): Promise<string | undefined>;
  hook(body: Uint8Array, signature: string | undefined): void;
  /** Asks again and again until the signal. Never rejects. */
  run(): Promise<void>;
}

export interface FollowOptions {
  readonly store: Store;
  readonly source: GitSource;
  readonly dir: string;
  readonly compile: (files: BundleFiles) => Promise<LoadedPolicy>;
  readonly resolveSecret: (reference: string) => Secret;
  /** The generation in force, just looked up. */
  readonly inForce: () => Promise<Omit<Generation, "plan"> | undefined>;
  /** Puts a bundle into force right after the generation that it was judged against, else says "lost". */
  readonly put: (candidate: Candidate, after: number, by: Asker | undefined) => Promise<"lost" | undefined>;
  readonly reject: (data: JsonObject) => Promise<void>;
  readonly alarms: { raise(key: string, text: string): Promise<unknown>; clear(key: string): Promise<unknown> };
  readonly warn: (line: string) => void;
  readonly signal: AbortSignal;
  readonly fetchMs?: number | undefined;
}

const TRIES = 5;
const LONGEST_PAUSE_MS = 15 * 60_000;
const DOWN_ALARM_MS = 15 * 60_000; // short outages of git are nobody's emergency: what is in force stays so
const HOOK_GAP_MS = 5_000; // at most one fetch in that time, however often the webhook is called
const HOOKS_PER_GAP = 20; // signatures looked at in that time
const REJUDGE_MS = 10 * 60_000; // a refused commit is looked at again: the list of signers may have changed

const REFUSED = "policy refused";
const DOWN = "policy git";

export function startFollowing(options: FollowOptions): Following {
  const { store, source, warn, alarms, signal, fetchMs } = options;
  const repository = openRepository({
    ...{ dir: options.dir, source, resolve: options.resolveSecret },
    ...(fetchMs === undefined ? {} : { fetchMs }),
  });
  const serial = createSerial();
  const name = `git ${source.url}#${source.branch}${source.path === "" ? "" : `:${source.path}`}`;
  let refused: { head: string; text: string; atMs: number } | undefined;
  let wake = new AbortController();
  let hooks = { count: 0, sinceMs: -HOOK_GAP_MS };

  const refuse = async (head: string, cause: string, why: string, detail = ""): Promise<string> => {
    const text = `commit ${head.slice(0, 12)} of ${source.url} (${source.branch}) is refused: ${why}`;
    if (refused?.head !== head || refused.text !== text) {
      warn(text);
      await options.reject({ source: "git", commit: head, cause });
    }
    refused = { head, text, atMs: performance.now() };
    await alarms.raise(REFUSED, `${text}. What was in force stays so.`);
    return detail === "" ? text : `${text}\n\n${detail}`;
  };

  const judged = async (
    head: string,
    inForce: Omit<Generation, "plan"> | undefined,
  ): Promise<{ ok: true; candidate: Candidate } | { ok: false; text: string }> => {
    const { accept } = source;
    const usable = accept !== undefined && !(await acceptedBefore(store, accept)) ? accept : undefined;
    // A folder in between is no new beginning: else an old commit, signed in its time, could be served after it.
    const from = inForce?.commit ?? (await newestCommit(store));
    const verdict = await repository.judge(from, head, usable);
    if (!verdict.ok) return { ok: false, text: await refuse(head, verdict.cause, verdict.why) };
    const read = await repository.files(head);
    if (!read.ok) return { ok: false, text: await refuse(head, "files", read.why) };
    const loaded = await options.compile(read.files);
    if (!loaded.ok) {
      const [first] = loaded.problems;
      const why = `it does not load: ${first === undefined ? "" : `${first.file}:${first.line}: ${first.message}`}`;
      return { ok: false, text: await refuse(head, "invalid", why, formatProblems(loaded.problems)) };
    }
    const { author, signer, accepted } = verdict;
    const candidate: Candidate = {
      ...{ files: read.files, policy: loaded.policy, commit: head, author, signer },
      kind: "git",
      source: accepted ? `${name}${ACCEPTED}` : name,
    };
    return { ok: true, candidate };
  };

  const bring = async (by: Asker | undefined, patient: boolean): Promise<string | undefined> => {
    const head = await repository.fetch(signal);
    for (let tries = 0; tries < TRIES; tries += 1) {
      const inForce = await options.inForce();
      const from = inForce?.source.replace(ACCEPTED, "");
      if (inForce?.commit === head && from === name) {
        refused = undefined;
        await alarms.clear(REFUSED);
        return undefined;
      }
      if (patient && refused?.head === head && performance.now() - refused.atMs < REJUDGE_MS) return refused.text;
      const result = await judged(head, inForce);
      if (!result.ok) return result.text;
      if ((await options.put(result.candidate, inForce?.generation ?? 0, by)) === "lost") continue;
      refused = undefined;
      await alarms.clear(REFUSED);
      return undefined;
    }
    return "other processes load other policies at the same moment; try again";
  };

  const update = async (by: Asker | undefined, patient: boolean): Promise<string | undefined> => {
    const result = await bring(by, patient);
    await alarms.clear(DOWN);
    return result;
  };

  return {
    async update(by) {
      try {
        return await serial(() => update(by, false));
      } catch (error) {
        return `the policy cannot be had from ${source.url}: ${describe(error)}`;
      }
    },

    hook(body, signature) {
      const now = performance.now();
      if (now - hooks.sinceMs >= HOOK_GAP_MS) hooks = { count: 0, sinceMs: now };
      hooks.count += 1;
      if (source.hookSecret === undefined || signature === undefined || hooks.count > HOOKS_PER_GAP) return;
      try {
        const secret = options.resolveSecret(source.hookSecret).reveal();
        const wanted = `sha256=${createHmac("sha256", secret).update(body).digest("hex")}`;
        if (equalSecret(wanted, signature)) wake.abort();
      } catch (error) {
        warn(`the webhook's secret: ${describe(error)}`);
      }
    },

    async run() {
      let pauseMs = 0;
      let said = "";
      let downSinceMs: number | undefined;
      while (!signal.aborted) {
        // Jitter, so that the processes of an installation do not ask all at the same moment.
        const either = AbortSignal.any([signal, wake.signal]);
        await sleep(pauseMs * (0.8 + Math.random() * 0.4), either).catch(() => {});
        wake = new AbortController();
        if (signal.aborted) return;
        try {
          await serial(() => update(undefined, true));
          [said, downSinceMs, pauseMs] = ["", undefined, source.pollMs];
        } catch (error) {
          if (signal.aborted) return;
          const text = `the policy cannot be had from ${source.url}: ${describe(error)}`;
          if (text !== said) warn(`${text}. What is in force stays so.`);
          said = text;
          downSinceMs ??= performance.now();
          pauseMs = Math.min(Math.max(pauseMs, source.pollMs) * 2, Math.max(LONGEST_PAUSE_MS, source.pollMs));
          if (performance.now() - downSinceMs >= DOWN_ALARM_MS) {
            await alarms.raise(DOWN, `${text}. What is in force stays so.`).catch(() => {});
          }
        }
        await sleep(Math.min(HOOK_GAP_MS, source.pollMs), signal).catch(() => {});
      }
    },
  };
}
