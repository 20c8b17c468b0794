import { z } from "zod";
import { parseDuration } from "../core/duration.ts";
import { describe } from "../core/errors.ts";

/** Where the policy comes from: a folder, or a branch of a git repository whose commits are signed. */
export type PolicySource = { readonly kind: "folder"; readonly folder: string } | GitSource;

export interface GitSource {
  readonly kind: "git";
  /** `https://…`, `ssh://…`, `git@host:…`, `file:///…`, or an absolute path. */
  readonly url: string;
  readonly branch: string;
  /** The policy folder within the repository; empty: its top. */
  readonly path: string;
  readonly pollMs: number;
  /** Whose commits count; nobody else's do. */
  readonly signers: Signers;
  /** Reference to the secret of the webhook; undefined: the webhook does nothing. */
  readonly hookSecret: string | undefined;
  /** A commit that may come into force once although what is in force is no ancestor of it. */
  readonly accept: string | undefined;
  /** Reference to a token for an https repository. */
  readonly token: string | undefined;
  /** File with the PEM of the CA of an https repository; undefined: the machine's own. */
  readonly ca: string | undefined;
  /** For an ssh repository: a file with the private key, and one with the host's keys. */
  readonly ssh: { readonly key: string; readonly knownHosts: string } | undefined;
}

/** `ssh`: an `allowed_signers` file as ssh-keygen(1) describes it; `gpg`: a file of armoured public keys. */
export type Signers =
  | { readonly ssh: string; readonly revoked?: string | undefined }
  | { readonly gpg: string; readonly ssh?: never };

const MIN_POLL_MS = 5_000;
const MAX_POLL_MS = 86_400_000;

const reference = z
  .string()
  .regex(
    /^\$\{(file|env):[^{}]+\}$/,
    "a literal secret is refused; write a reference such as ${file:secrets/policy-hook}",
  );
// A path goes into git's configuration and into ssh's command line: no quotes, no control characters.
const path = z.string().regex(/^[^"'\\\p{Cc}]{1,1000}$/u, "must be a path without quotes and backslashes");
const duration = z.string().transform((text, context): number => {
  try {
    const ms = parseDuration(text);
    if (ms >= MIN_POLL_MS && ms <= MAX_POLL_MS) return ms;
    context.addIssue({ code: "custom", message: "must be from 5s to 1d" });
  } catch (error) {
    context.addIssue({ code: "custom", message: describe(error) });
  }
  return z.NEVER;
});
const branch = z
  .string()
  .regex(/^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$/, "is not a branch name such as main")
  .refine((name) => !/\.\.|\/\/|\/\.|\.lock(\/|$)|[./]$/.test(name), "is not a branch name such as main");
const inside = z
  .string()
  .regex(/^[A-Za-z0-9._-]+(\/[A-Za-z0-9._-]+)*$/, "must be a path in the repository, such as policy")
  .refine((text) => !text.split("/").some((part) => part === "." || part === ".."), "must not leave the repository");

const gitShape = z.strictObject({
  url: z.string().max(1000).refine(isGitUrl, {
    message:
      "must be https://HOST/…, ssh://[USER@]HOST/…, USER@HOST:PATH, file:///PATH or an absolute path, without spaces and quotes",
  }),
  branch: branch.default("main"),
  path: inside.or(z.literal(".")).optional(),
  poll: duration.prefault("1m"),
  signers: z.union([z.strictObject({ ssh: path, revoked: path.optional() }), z.strictObject({ gpg: path })], {
    error: "must be { ssh: FILE }, { ssh: FILE, revoked: FILE } or { gpg: FILE }: without signers nobody is believed",
  }),
  hook_secret: reference.optional(),
  accept: z
    .string()
    .regex(/^[0-9a-f]{40}$/, "must be the whole id of a commit, 40 hexadecimal digits")
    .optional(),
  token: reference.optional(),
  ca: path.optional(),
  ssh: z.strictObject({ key: path, known_hosts: path }).optional(),
});
const git = gitShape
  .refine(({ url, token, ca }) => (token === undefined && ca === undefined) || url.startsWith("https://"), {
    message: "`token` and `ca` are for an https:// repository",
  })
  .refine(({ url, ssh }) => (ssh !== undefined) === isSshUrl(url), {
    message: "an ssh repository needs `ssh: { key: FILE, known_hosts: FILE }`, and no other has it",
  });

const inGit = z.strictObject({ git });

/** Keys of `policy.git`, for suggestions. */
export const POLICY_GIT_KEYS: readonly string[] = Object.keys(gitShape.shape);

type PolicySetting = string | z.infer<typeof inGit>;

/** `policy:` in glasskey.yaml: a folder, or `{ git: … }`. Paths stay as they are written; {@link locateSource} resolves them. */
export const policySchema = z.unknown().transform((input, context): PolicySetting => {
  if (typeof input === "string" && input !== "") return input;
  if (typeof input !== "object" || input === null || !("git" in input)) {
    context.addIssue({ code: "custom", message: "must be a folder, or { git: { url: …, signers: … } }" });
    return z.NEVER;
  }
  const parsed = inGit.safeParse(input);
  if (parsed.success) return parsed.data;
  for (const issue of parsed.error.issues) context.issues.push({ ...issue, input: undefined });
  return z.NEVER;
});

/** The source with every path and reference made absolute by the caller's rules. */
export function locateSource(
  value: PolicySetting,
  to: { path: (text: string) => string; reference: (text: string) => string },
): PolicySource {
  if (typeof value === "string") return { kind: "folder", folder: to.path(value) };
  const { url, branch, path, poll, signers, hook_secret, accept, token, ca, ssh } = value.git;
  const optional = (text: string | undefined, by: (text: string) => string): string | undefined =>
    text === undefined ? undefined : by(text);
  return {
    ...{ kind: "git", url, branch, path: path === undefined || path === "." ? "" : path, pollMs: poll, accept },
    signers:
      "gpg" in signers
        ? { gpg: to.path(signers.gpg) }
        : { ssh: to.path(signers.ssh), revoked: optional(signers.revoked, to.path) },
    hookSecret: optional(hook_secret, to.reference),
    token: optional(token, to.reference),
    ca: optional(ca, to.path),
    ssh: ssh === undefined ? undefined : { key: to.path(ssh.key), knownHosts: to.path(ssh.known_hosts) },
  };
}

const HOST = /^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$|^\[[0-9a-fA-F:]{2,45}\]$/;

export function isSshUrl(url: string): boolean {
  return url.startsWith("ssh://") || /^[^/:]+@[^/:]+:/.test(url);
}

/** Git gives some URLs to helper programs and takes some for options: only these few plain forms pass, and no password. */
function isGitUrl(url: string): boolean {
  if (/[\p{Cc}\p{Z}"'\\<>|`$;{}]/u.test(url)) return false;
  if (url.startsWith("/")) return !url.startsWith("//");
  const scp = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}@([^/:]+):(?![-/:])[^:]+$/.exec(url);
  if (scp !== null) return HOST.test(scp[1] ?? "");
  if (!/^(https|ssh|file):\/\//.test(url) || !URL.canParse(url)) return false;
  const { protocol, hostname, username, password, pathname, hash } = new URL(url);
  if (password !== "" || hash !== "" || pathname.length < 2) return false;
  if (protocol === "file:") return hostname === "" && username === "";
  return (
    HOST.test(hostname) && (username === "" || (protocol === "ssh:" && /^[A-Za-z0-9_][\w.-]{0,63}$/.test(username)))
  );
}
