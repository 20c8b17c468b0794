import { existsSync, readdirSync, statSync } from "node:fs";
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, GlassError } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import { namedFiles } from "../playbooks/files.ts";
import { nearest } from "../playbooks/problem.ts";
import { MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, type BundleFiles } from "./bundle.ts";
import type { GitSource } from "./config.ts";
import { authorization, environment, SAFE, schemeOf, transport, withoutToken } from "./git.ts";
import { run, type Ran } from "./program.ts";
import { believe, judgeSignatures, SIGNATURE_FORMAT, signersFault, validToday } from "./signatures.ts";

/** A commit that may come into force, as far as its history and signatures go. */
export type Verdict =
  | { readonly ok: true; readonly author: string; readonly signer: string; readonly accepted: boolean }
  | { readonly ok: false; readonly cause: "history" | "signature"; readonly why: string };

export type ReadFiles =
  | { readonly ok: true; readonly files: BundleFiles }
  | { readonly ok: false; readonly why: string };

/** A bare copy of one branch, in the data folder. It is a cache: losing it loses nothing. Not for concurrent use. */
export interface Repository {
  /**
   * Fetches the branch. @returns the commit at its head.
   * @throws GlassError when the repository cannot be reached, answers too slowly or is too large.
   */
  fetch(signal: AbortSignal): Promise<string>;
  /**
   * Whether that commit may follow the last one in force (`from`; undefined: there was none, and the head alone is looked at).
   * Every commit in between must be signed by a listed key, and history may only grow, unless `accept` names the commit.
   */
  judge(from: string | undefined, head: string, accept: string | undefined): Promise<Verdict>;
  /**
   * The policy's files in that commit, out of the object store: nothing is checked out, so no filter, hook or attribute
   * of the repository has a say. They are the ones that `readPolicyFiles` would read from a folder.
   */
  files(head: string): Promise<ReadFiles>;
}

export interface RepositoryOptions {
  /** A private folder of its own. */
  readonly dir: string;
  readonly source: GitSource;
  readonly resolve: (reference: string) => Secret;
  /** How long a fetch may take. */
  readonly fetchMs?: number;
}

const FETCH_MS = 60_000; // a first fetch of a repository with years of history; the old policy serves meanwhile
const LOCAL_MS = 60_000; // one verification takes some 10 ms, and 2,000 commits are the most
const MAX_COMMITS = 2_000;
const MAX_REPOSITORY_BYTES = 256 * 1024 * 1024;
const MAX_FILE_BYTES = 4 * 1024 * 1024; // as much as the loader takes of people.yaml; of others it takes less
const MAX_TREE_BYTES = 16 * 1024 * 1024;
const HEAD = "refs/glasskey/head";

export function openRepository(options: RepositoryOptions): Repository {
  const { dir, source, resolve, fetchMs = FETCH_MS } = options;
  const repository = join(dir, "repository");
  const env = environment(dir, source);
  const allowed = schemeOf(source.url);
  let failures = 0;

  const git = (
    args: readonly string[],
    more: { maxBytes?: number; input?: string; env?: Readonly<Record<string, string>> } = {},
  ): Promise<Ran> =>
    run("git", [...SAFE, ...args], {
      ...{ env: { ...env, ...more.env, GIT_DIR: repository }, cwd: dir, timeoutMs: LOCAL_MS },
      ...{ maxBytes: more.maxBytes ?? 1024 * 1024, input: more.input },
    });
  const text = async (args: readonly string[], more: Parameters<typeof git>[1] = {}): Promise<string> => {
    const { code, stdout, stderr } = await git(args, more);
    if (code !== 0)
      throw new GlassError(
        "internal",
        `git ${args.find((word) => /^[a-z]/.test(word)) ?? ""} failed: ${stderr || `code ${code}`}`,
      );
    return stdout.toString("utf8");
  };

  const prepare = async (): Promise<void> => {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    // Damaged by a power cut, or grown: it is only a copy.
    if (failures > 0 && failures % 5 === 0) await rm(repository, { recursive: true, force: true });
    if (packBytes(repository) > MAX_REPOSITORY_BYTES / 2) await rm(repository, { recursive: true, force: true });
    if (!existsSync(join(repository, "HEAD"))) await text(["init", "--quiet", "--bare", "--template=", repository]);
    await removeLeftovers(repository);
  };

  return {
    async fetch(signal) {
      try {
        await prepare();
        const refspec = `+refs/heads/${source.branch}:${HEAD}`;
        const secret = source.token === undefined ? undefined : resolve(source.token);
        const token = secret === undefined ? {} : authorization(secret);
        const args = ["-c", `protocol.${allowed}.allow=always`, ...transport(source), "fetch", "--quiet", "--no-tags"];
        const { code, stderr } = await run(
          "git",
          [...SAFE, ...args, "--no-write-fetch-head", "--no-recurse-submodules", "--", source.url, refspec],
          {
            ...{ env: { ...env, ...token, GIT_DIR: repository }, cwd: dir, timeoutMs: fetchMs, maxBytes: 64 * 1024 },
            ...{ signal, watch: () => tooLarge(repository) },
          },
        );
        if (code !== 0) {
          // What the far side answers is told to people, and a proxy may answer with what it was sent.
          const said = secret === undefined ? stderr : withoutToken(stderr, secret);
          throw new GlassError("internal", `git fetch: ${said || `ended with code ${code}`}`);
        }
        const head = (await text(["rev-parse", "--verify", "--quiet", "--end-of-options", `${HEAD}^{commit}`])).trim();
        if (!/^[0-9a-f]{40}$/.test(head)) throw new GlassError("internal", "git does not name the branch's commit");
        failures = 0;
        return head;
      } catch (error) {
        failures += 1;
        throw error;
      }
    },

    async judge(from, head, accept) {
      let commits = [head];
      let accepted = false;
      if (from !== undefined && from !== head) {
        const descends = (await git(["merge-base", "--is-ancestor", from, head])).code === 0;
        if (descends) {
          const range = ["rev-list", `--max-count=${MAX_COMMITS + 1}`, "--end-of-options", head, `^${from}`];
          commits = (await text(range)).split("\n").filter((line) => line !== "");
        } else if (accept === head) accepted = true;
        else {
          const why = `it does not continue ${from.slice(0, 12)}, which came into force before: history was rewritten`;
          return { ok: false, cause: "history", why };
        }
      }
      if (!commits.includes(head))
        return { ok: false, cause: "history", why: "git does not list it in its own history" };
      if (commits.length > MAX_COMMITS) {
        const why = `more than ${MAX_COMMITS} commits lie between it and what is in force`;
        return { ok: false, cause: "history", why };
      }
      const believed = await believe(source.signers, dir, env).catch((error: unknown) =>
        signersFault(source.signers, error),
      );
      if (typeof believed === "string") return { ok: false, cause: "signature", why: believed };
      const log = ["log", "--no-walk=unsorted", "--stdin", `--format=${SIGNATURE_FORMAT}`, "--no-color", "--no-notes"];
      // Whatever goes wrong in here may come from what the commits carry: it is a no, not an outage.
      const checked = await git([...believed.settings, ...log], {
        ...{ input: `${commits.join("\n")}\n`, env: believed.env },
      }).catch((error: unknown) => ({ code: null, stdout: Buffer.alloc(0), stderr: describe(error) }));
      if (checked.code !== 0) {
        return { ok: false, cause: "signature", why: `git cannot check its signature: ${checked.stderr}` };
      }
      const trust = judgeSignatures(checked.stdout.toString("latin1"), commits);
      if (!trust.ok) return { ok: false, cause: "signature", why: of(head, trust.commit, trust.why) };
      if (source.signers.ssh !== undefined) {
        const oneOf = new Map(trust.signed.map(({ key, commit }) => [key, commit]));
        for (const commit of oneOf.values()) {
          const object = await text(["cat-file", "commit", commit], { maxBytes: MAX_FILE_BYTES });
          const today = await validToday(object, { allowed: source.signers.ssh, home: dir, env });
          const why = of(head, commit, "it is signed by a key that is not valid any more");
          if (!today) return { ok: false, cause: "signature", why };
        }
      }
      const author = await text(["log", "-1", "--no-color", "--encoding=UTF-8", "--format=%an <%ae>", head]);
      const signer = trust.signed.find(({ commit }) => commit === head)?.key ?? "";
      return { ok: true, author: plainText(author), signer, accepted };
    },

    async files(head) {
      const listed = await git(["ls-tree", "-r", "-l", "-z", "--end-of-options", `${head}:${source.path}`], {
        maxBytes: MAX_TREE_BYTES,
      });
      if (listed.code !== 0) return { ok: false, why: `it has no folder ${source.path === "" ? "." : source.path}` };
      const tree = readTree(listed.stdout);
      if (typeof tree === "string") return { ok: false, why: tree };
      const files = new Map<string, string>();
      let bytes = 0;
      for (const names of [(): readonly string[] => [...tree.keys()].filter(isPolicyFile), () => namedFiles(files)]) {
        const chosen = names().flatMap((path) => {
          const entry = tree.get(path);
          return entry === undefined || files.has(path) ? [] : [{ path, ...entry }];
        });
        for (const { path, size } of chosen) {
          if (!PLAIN_PATH.test(path)) return { ok: false, why: `${shown(path)} is not a plain file name` };
          if (size > MAX_FILE_BYTES) return { ok: false, why: `${path} is larger than ${MAX_FILE_BYTES / 1024} KiB` };
          bytes += size;
        }
        if (files.size + chosen.length > MAX_BUNDLE_FILES || bytes > MAX_BUNDLE_BYTES) {
          return {
            ok: false,
            why: `it has more than ${MAX_BUNDLE_FILES} files or ${MAX_BUNDLE_BYTES / 1024 / 1024} MiB`,
          };
        }
        const contents = await readObjects(chosen, bytes);
        for (const [i, { path }] of chosen.entries()) {
          const text = decode(contents[i] ?? Buffer.alloc(0));
          if (text === undefined) return { ok: false, why: `${path} is not UTF-8 text` };
          files.set(path, text);
        }
      }
      return { ok: true, files };
    },
  };

  async function readObjects(wanted: readonly Entry[], bytes: number): Promise<readonly Buffer[]> {
    if (wanted.length === 0) return [];
    const { code, stdout, stderr } = await git(["cat-file", "--batch"], {
      ...{ input: wanted.map(({ object }) => `${object}\n`).join(""), maxBytes: bytes + wanted.length * 100 + 1024 },
    });
    if (code !== 0) throw new GlassError("internal", `git cat-file failed: ${stderr}`);
    let at = 0;
    return wanted.map(({ object, size }) => {
      const header = `${object} blob ${size}\n`;
      const start = at + header.length;
      at = start + size + 1;
      if (stdout.toString("latin1", start - header.length, start) !== header || at > stdout.length) {
        throw new GlassError("internal", `git does not give the content of ${object}`);
      }
      return stdout.subarray(start, start + size);
    });
  }
}

interface Entry {
  readonly object: string;
  readonly size: number;
}

/** Reads `git ls-tree -r -l -z`. @returns files by path, or why no policy may look like that. */
function readTree(listed: Buffer): ReadonlyMap<string, Entry> | string {
  const tree = new Map<string, Entry>();
  for (const line of listed.toString("latin1").split("\0")) {
    if (line === "") continue;
    const entry = /^(\d{6}) (\w+) ([0-9a-f]{40}) +(\d+|-)\t([^]+)$/.exec(line);
    if (entry === null) return "git lists it in a way that cannot be read";
    const [, mode = "", , object = "", size = "", path = ""] = entry;
    if (mode === "120000") return `${shown(path)} is a symbolic link, which a policy may not have`;
    if (mode === "160000") return `${shown(path)} is a submodule, which a policy may not have`;
    tree.set(path, { object, size: Number(size) });
  }
  return tree;
}

/** What a policy is made of, and misspelt neighbours, which the loader then complains of. Hidden files are none. */
function isPolicyFile(path: string): boolean {
  if (!/\.ya?ml$/.test(path) || path.split("/").some((part) => part.startsWith("."))) return false;
  const [first = "", second] = path.split("/");
  return second === undefined || nearest(first, ["targets", "playbooks"]) !== undefined;
}

const PLAIN_PATH = /^[A-Za-z0-9][A-Za-z0-9 @+=._-]*(?:\/[A-Za-z0-9][A-Za-z0-9 @+=._-]*)*$/;

function packBytes(repository: string): number {
  try {
    const folder = join(repository, "objects/pack");
    return readdirSync(folder).reduce((sum, name) => sum + sizeOf(join(folder, name)), 0);
  } catch {
    return 0; // not there yet
  }
}

function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0; // git renames its files while it works
}

function tooLarge(repository: string): string | undefined {
  return packBytes(repository) > MAX_REPOSITORY_BYTES
    ? `the repository has more than ${MAX_REPOSITORY_BYTES / 1024 / 1024} MiB`
    : undefined;
}

/** What a git that was ended leaves would stop the next one. This process is the only one that works here. */
async function removeLeftovers(repository: string): Promise<void> {
  const locks = ["HEAD.lock", "config.lock", "packed-refs.lock", "shallow.lock", `${HEAD}.lock`];
  const pack = join(repository, "objects/pack");
  const names = await readdir(pack).catch(() => []);
  const halves = names.filter((name) => name.startsWith("tmp_")).map((name) => join(pack, name));
  for (const file of [...locks.map((name) => join(repository, name)), ...halves]) await rm(file, { force: true });
}

function of(head: string, commit: string, why: string): string {
  return commit === head ? why : `of the commits that came with it, ${commit.slice(0, 12)}: ${why}`;
}

function decode(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    if (error instanceof TypeError) return undefined;
    throw new GlassError("internal", describe(error), { cause: error });
  }
}

/** A name or text from a repository, fit for a line of output and for a column. */
function plainText(text: string): string {
  return text
    .replaceAll(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]+/gu, " ")
    .trim()
    .slice(0, 200)
    .toWellFormed();
}

function shown(path: string): string {
  return JSON.stringify(path.slice(0, 80).replaceAll(/[^\x20-\x7e]/g, "?"));
}
