import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { GitSource } from "../config.ts";

/** A real git repository with real keys in a folder of its own: what a policy is fetched from. */
export interface Origin {
  readonly folder: string;
  /** The repository; work is done right in it. */
  readonly url: string;
  /** `allowed_signers` with ann's and bob's keys; nobody else's. */
  readonly signers: string;
  readonly source: GitSource;
  git(...args: string[]): Promise<string>;
  /** Writes the files (undefined deletes) and commits them. @returns the commit. */
  commit(files: Record<string, string | Buffer | undefined>, by: Signature, date?: string): Promise<string>;
  /** Private key file of that person, made at first use. */
  key(person: string): Promise<string>;
  publicKey(person: string): Promise<string>;
  dispose(): Promise<void>;
}

/** A person whose SSH key signs, or nobody. */
export type Signature = { readonly ssh: string } | { readonly gpg: string } | undefined;

const execute = promisify(execFile);

export async function startOrigin(): Promise<Origin> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-origin-"));
  const url = join(folder, "origin");
  const signers = join(folder, "allowed_signers");
  const gnupg = join(folder, "gnupg");
  await mkdir(gnupg, { mode: 0o700 });
  const env = {
    ...{ PATH: process.env["PATH"] ?? "", HOME: folder, GNUPGHOME: gnupg, LC_ALL: "C" },
    ...{ GIT_CONFIG_NOSYSTEM: "1", GIT_CONFIG_GLOBAL: "/dev/null" },
    ...{ GIT_AUTHOR_NAME: "Ann Author", GIT_AUTHOR_EMAIL: "ann@shop.example" },
    ...{ GIT_COMMITTER_NAME: "Ann Author", GIT_COMMITTER_EMAIL: "ann@shop.example" },
  };
  const call = async (more: Record<string, string>, ...args: string[]): Promise<string> =>
    (await execute("git", ["-C", url, ...args], { env: { ...env, ...more } })).stdout.trim();
  const keys = new Map<string, Promise<string>>();
  const key = (person: string): Promise<string> => {
    const file = join(folder, `key-${person}`);
    const known = keys.get(person);
    const made =
      known ??
      execute("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", person, "-f", file], { env }).then(() => file);
    keys.set(person, made);
    return made;
  };
  const publicKey = async (person: string): Promise<string> => {
    const { stdout } = await execute("ssh-keygen", ["-y", "-f", await key(person)], { env });
    return stdout.trim().split(" ").slice(0, 2).join(" ");
  };
  await mkdir(url);
  await call({}, "init", "--quiet", "--initial-branch=main");
  await writeFile(signers, `ann@shop.example ${await publicKey("ann")}\nbob@shop.example ${await publicKey("bob")}\n`);
  return {
    ...{ folder, url, signers, key, publicKey, git: (...args) => call({}, ...args) },
    source: {
      ...{ kind: "git", url, branch: "main", path: "policy", pollMs: 60_000, signers: { ssh: signers } },
      ...{ hookSecret: undefined, accept: undefined, token: undefined, ca: undefined, ssh: undefined },
    },
    async commit(files, by, date) {
      for (const [name, content] of Object.entries(files)) {
        const file = join(url, name);
        await mkdir(dirname(file), { recursive: true });
        if (content === undefined) await rm(file, { force: true });
        else await writeFile(file, content);
      }
      await call({}, "add", "--all");
      const sign =
        by === undefined
          ? ["-c", "commit.gpgSign=false"]
          : "ssh" in by
            ? ["-c", "gpg.format=ssh", "-c", `user.signingKey=${await key(by.ssh)}`, "-c", "commit.gpgSign=true"]
            : ["-c", "gpg.format=openpgp", "-c", `user.signingKey=${by.gpg}`, "-c", "commit.gpgSign=true"];
      const dates = date === undefined ? {} : { GIT_AUTHOR_DATE: date, GIT_COMMITTER_DATE: date };
      await call({ ...dates }, ...sign, "commit", "--quiet", "--allow-empty", "--message", "A change of policy");
      return call({}, "rev-parse", "HEAD");
    },
    async dispose() {
      await execute("gpgconf", ["--kill", "all"], { env }).catch(() => {});
      await rm(folder, { recursive: true, force: true });
    },
  };
}
