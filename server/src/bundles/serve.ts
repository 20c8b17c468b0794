import { sql } from "kysely";
import { append } from "../audit/append.ts";
import { sleep } from "../core/clock.ts";
import { describe, GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";
import { readPolicyFiles, type LoadedPolicy } from "../playbooks/load.ts";
import type { Plan } from "../playbooks/plan.ts";
import type { Policy } from "../playbooks/policy.ts";
import { formatProblems, sortProblems, type PolicyProblem } from "../playbooks/problem.ts";
import type { Store } from "../store/database.ts";
import type { BundleFiles } from "./bundle.ts";
import type { PolicySource } from "./config.ts";
import { startFollowing, type Following } from "./follow.ts";
import {
  activate,
  generations,
  newestNumber,
  othersAlive,
  readBundle,
  type Activation,
  type Asker,
  type Candidate,
  type Generation,
} from "./generations.ts";
import { createSerial } from "./serial.ts";

export interface BundlesOptions {
  readonly store: Store;
  /** This process's id in table `nodes`. */
  readonly node: string;
  readonly source: PolicySource;
  /** A private folder of its own, for the copy of a git repository. */
  readonly dir: string;
  readonly compile: (files: BundleFiles) => LoadedPolicy | Promise<LoadedPolicy>;
  /** Who gains and who loses. */
  readonly plan: (old: Policy, next: Policy) => Plan;
  /** After every change of what is in force, in every process; repeated until it succeeds. */
  readonly onPolicy: (policy: Policy) => Promise<void>;
  readonly resolveSecret: (reference: string) => Secret;
  readonly alarms: { raise(key: string, text: string): Promise<unknown>; clear(key: string): Promise<unknown> };
  readonly warn: (line: string) => void;
  /** How often the store is asked whether another process put something into force. */
  readonly storePollMs?: number;
  /** How long a fetch from git may take. */
  readonly fetchMs?: number;
}

export interface Bundles {
  /** What is in force here. Every process has it at most about a second after it was put into force. */
  policy(): Policy;
  inForce(): Omit<Generation, "plan">;
  /**
   * Reads this process's own source again (a folder, or git) and puts it into force.
   * @returns what is wrong with it, as text for a person; undefined when it is in force.
   */
  reload(by?: Asker): Promise<string | undefined>;
  /** A call of the webhook: asks git at once when the signature (`X-Hub-Signature-256`) is right. Says nothing of it. */
  hook(body: Uint8Array, signature: string | undefined): void;
  /**
   * Tells of what is in force, through `onPolicy` and of the alarms there are, and then keeps in step with git and with
   * the other processes. Called once, when all that hears of it is there.
   */
  begin(): Promise<void>;
  /** What was in force, newest first. */
  history(limit: number, before?: number): Promise<readonly Generation[]>;
  stop(): Promise<void>;
}

const STORE_POLL_MS = 1_000;
const UNFIT_AGAIN_MS = 30_000;
const TRIES = 5; // of an explicit reload against other processes that reload at the same moment

/**
 * Finds out what is in force, and puts this process's own source into force where nothing is, or where nobody else works on
 * this store.
 * @throws GlassError `config_invalid` when nothing is in force yet and the source cannot be loaded, or when what is in
 *   force cannot be read by this version; `integrity` when the store's copy was changed.
 */
export async function startBundles(options: BundlesOptions): Promise<Bundles> {
  const { store, node, source, warn } = options;
  const ownAlarm = `policy source ${node}`;
  const stopped = new AbortController();
  let current: { generation: Omit<Generation, "plan">; policy: Policy } | undefined;
  let ownHash: string | undefined;
  let driftPending = false;
  let unfit: { readonly hash: string; readonly error: unknown; readonly atMs: number } | undefined;
  const serial = createSerial();
  let begun = false;
  const early: (readonly [key: string, text: string])[] = [];
  const alarms: BundlesOptions["alarms"] = {
    raise: async (key, text) => (begun ? options.alarms.raise(key, text) : early.push([key, text])),
    clear: (key) => options.alarms.clear(key),
  };

  const compile = async (files: BundleFiles): Promise<LoadedPolicy> => options.compile(files);
  const now = (): { generation: Omit<Generation, "plan">; policy: Policy } => {
    if (current === undefined) throw new GlassError("internal", "no policy is in force yet");
    return current;
  };
  const settle = async (): Promise<void> => {
    if (!driftPending || current === undefined) return;
    await options.onPolicy(current.policy);
    driftPending = false;
  };

  /** The policy of a bundle in the store. One that cannot be had is not tried again at once: that takes the time of a load. */
  const fromStore = async (hash: string): Promise<Policy> => {
    if (unfit?.hash === hash && performance.now() - unfit.atMs < UNFIT_AGAIN_MS) throw unfit.error;
    try {
      const loaded = await compile(await readBundle(store, hash));
      if (loaded.ok) return loaded.policy;
      throw new GlassError("config_invalid", `the policy in force is not valid here: ${first(loaded.problems)}`, {
        next: "Do all processes run the same version of Glasskey, with the same kinds of targets?",
      });
    } catch (error) {
      unfit = { hash, error, atMs: performance.now() };
      throw error;
    }
  };

  /** Takes over the newest generation of the store, if it is not the one served. Only called in turn. */
  const adopt = async (known?: Policy): Promise<void> => {
    const newest = await newestNumber(store);
    const served = current?.generation;
    if (newest === undefined || (newest.generation === served?.generation && newest.hash === served.hash)) return;
    const [generation] = await generations(store, 1, newest.generation + 1);
    if (generation === undefined) return;
    let policy = [known, current?.policy].find((candidate) => candidate?.hash === generation.hash);
    policy ??= await fromStore(generation.hash);
    const { plan: _, ...rest } = generation;
    current = { generation: rest, policy };
    driftPending = true;
    if (ownHash === rest.hash) await alarms.clear(ownAlarm);
  };

  /** @returns undefined when the candidate is in force; "lost" when another process was faster. Only called in turn. */
  const put = async (candidate: Candidate, by: Asker | undefined): Promise<"lost" | undefined> => {
    const after = current?.generation.generation ?? 0;
    const done = await activate(store, after, {
      ...{ files: candidate.files, source: candidate.source, kind: candidate.kind, node },
      ...{ commit: candidate.commit, signer: candidate.signer, author: candidate.author ?? by?.name },
      ...{ actor: by?.pseudonym ?? "glasskey", plan: planned(current?.policy, candidate.policy) },
    });
    await adopt(candidate.policy);
    return done ? undefined : "lost";
  };
  const planned = (old: Policy | undefined, next: Policy): Activation["plan"] => {
    if (old === undefined) return undefined;
    try {
      return forTheLog(options.plan(old, next));
    } catch (error) {
      // Who gains and loses is told, not decided, here; a policy that only narrows must not wait for a defect in telling.
      warn(`no plan for the change of policy: ${describe(error)}`);
      return undefined;
    }
  };

  const reject = (data: JsonObject): Promise<void> =>
    store.transaction().execute((tx) =>
      append(tx, {
        ...{ type: "policy.rejected", at: new Date(), actor: "glasskey" },
        data: { ...data, node, ...(current === undefined ? {} : { inForce: current.generation.hash }) },
      }),
    );

  // ------------------------------------------------------------------------------------------ a folder

  const readFolder = async (folder: string): Promise<Candidate | { problems: readonly PolicyProblem[] }> => {
    const { files, problems } = await readPolicyFiles(folder);
    const loaded = await compile(files);
    const unread = new Set(problems.map(({ file }) => file));
    const others = loaded.ok || unread.has(".") ? [] : loaded.problems.filter(({ file }) => !unread.has(file));
    if (!loaded.ok || problems.length > 0) return { problems: sortProblems([...problems, ...others]) };
    return { files, policy: loaded.policy, source: `folder ${folder}`, kind: "folder" };
  };
  const refuseFolder = async (folder: string, problems: readonly PolicyProblem[]): Promise<string> => {
    await reject({ source: "folder", problems: problems.length });
    const text = `the policy folder ${folder} does not load, and what was in force stays so: ${first(problems)}`;
    await alarms.raise(ownAlarm, text);
    return formatProblems(problems);
  };
  const reloadFolder = async (folder: string, by: Asker | undefined): Promise<string | undefined> => {
    const read = await readFolder(folder);
    if ("problems" in read) return refuseFolder(folder, read.problems);
    ownHash = read.policy.hash;
    await adopt();
    for (let tries = 0; current?.generation.hash !== ownHash; tries += 1) {
      if (tries === TRIES) return "other processes load other policies at the same moment; try again";
      if ((await put(read, by)) === undefined) break; // it was put into force; what came after it may stay
    }
    await alarms.clear(ownAlarm);
    await settle();
    return undefined;
  };
  const startFromFolder = async (folder: string): Promise<void> => {
    const read = await readFolder(folder);
    const inForce = await newestNumber(store);
    if ("problems" in read) {
      if (inForce === undefined) throw new GlassError("config_invalid", formatProblems(read.problems).trimEnd());
      await adopt();
      await refuseFolder(folder, read.problems);
      return;
    }
    ownHash = read.policy.hash;
    const alone = !(await othersAlive(store, node));
    try {
      await adopt(read.policy);
    } catch (error) {
      // Nobody else is there to serve what this process cannot read; the folder is what its operator means.
      if (!alone) throw error;
      warn(`${describe(error)}; the policy folder is put into force instead`);
      const after = inForce?.generation ?? 0;
      const { files, source: from, kind } = read;
      await activate(store, after, { files, source: from, kind, node, actor: "glasskey" });
      await adopt(read.policy);
    }
    if (current === undefined || (alone && current.generation.hash !== ownHash)) await put(read, undefined);
    if (now().generation.hash === ownHash) await alarms.clear(ownAlarm);
    else {
      const { hash, node: by } = now().generation;
      const text = `the policy folder ${folder} of process ${node} is not what is in force (${hash.slice(0, 12)}, from process ${by}); to put it into force, run there: glass policy reload`;
      await alarms.raise(ownAlarm, text);
    }
  };

  // ------------------------------------------------------------------------------------------ git

  let following: Following | undefined;
  if (source.kind === "git") {
    following = startFollowing({
      ...{ store, source, dir: options.dir, warn, alarms, compile, reject, resolveSecret: options.resolveSecret },
      ...{ signal: stopped.signal, fetchMs: options.fetchMs },
      inForce: async () => {
        await serial(() => adopt());
        return current?.generation;
      },
      put: (candidate, after, by) =>
        serial(async () => {
          await adopt();
          if ((current?.generation.generation ?? 0) !== after) return "lost";
          const result = await put(candidate, by);
          await settle();
          return result;
        }),
    });
  }

  // The heartbeat's first beat, before anybody is asked: of two that start together, both see each other.
  await store
    .insertInto("nodes")
    .values({ id: node })
    .onConflict((c) => c.column("id").doUpdateSet({ seen_at: sql`clock_timestamp()` }))
    .execute();
  try {
    if (source.kind === "folder") await serial(() => startFromFolder(source.folder));
    else await serial(() => adopt());
    if (current === undefined) {
      const why = await following?.update();
      if (current === undefined) throw new GlassError("config_invalid", why ?? "no policy can be had from git");
    }
  } catch (error) {
    stopped.abort();
    throw error;
  }

  const keepUp = async (): Promise<void> => {
    let said = "";
    const storeAlarm = `policy store ${node}`;
    while (!stopped.signal.aborted) {
      await sleep(options.storePollMs ?? STORE_POLL_MS, stopped.signal).catch(() => {});
      if (stopped.signal.aborted) return;
      try {
        await serial(async () => {
          await adopt();
          await settle();
        });
        if (said !== "") await alarms.clear(storeAlarm);
        said = "";
      } catch (error) {
        const text = describe(error);
        if (text !== said) warn(`a change of policy waits: ${text}`);
        said = text;
        const wrong = error instanceof GlassError && (error.code === "integrity" || error.code === "config_invalid");
        if (wrong)
          await alarms.raise(storeAlarm, `${text}; process ${node} goes on with the policy before`).catch(() => {});
      }
    }
  };
  const loops: Promise<void>[] = [];
  return {
    policy: () => now().policy,
    inForce: () => now().generation,
    reload: (by) =>
      source.kind === "folder"
        ? serial(() => reloadFolder(source.folder, by))
        : (following?.update(by) ?? unreachable()),
    hook: (body, signature) => following?.hook(body, signature),
    history: (limit, before) => generations(store, limit, before),
    async begin() {
      begun = true;
      for (const [key, text] of early.splice(0)) await options.alarms.raise(key, text);
      await serial(settle);
      loops.push(keepUp(), ...(following === undefined ? [] : [following.run()]));
    },
    async stop() {
      stopped.abort();
      await Promise.all(loops);
    },
  };
}

const MAX_PLAN_CHARACTERS = 4 * 1024 * 1024; // a change of everything in a large policy; more is told by its counts alone

/** The log has numbers only; names stay in the row. */
function forTheLog(plan: Plan): NonNullable<Activation["plan"]> {
  const count = (effect: Plan["changes"][number]["effect"]): number =>
    plan.changes.filter((change) => change.effect === effect).length;
  const affected = (which: "gains" | "losses"): number =>
    plan.people.reduce((sum, group) => sum + (group[which].length > 0 ? group.people.length : 0), 0);
  const counts = {
    ...{ widened: plan.widened, widens: count("widens"), unproved: count("unproved"), narrows: count("narrows") },
    ...{ gain: affected("gains"), lose: affected("losses") },
  };
  const text = JSON.stringify(plan);
  return { json: text.length > MAX_PLAN_CHARACTERS ? counts : (JSON.parse(text) as JsonObject), counts };
}

function unreachable(): never {
  throw new GlassError("internal", "there is no source of the policy");
}

function first(problems: readonly PolicyProblem[]): string {
  const [one] = problems;
  if (one === undefined) return "it cannot be read";
  const more = problems.length === 1 ? "" : `, and ${problems.length - 1} more`;
  return `${one.file}:${one.line}: ${one.message}${more}`;
}
