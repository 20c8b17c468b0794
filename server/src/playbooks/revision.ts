import { spawn } from "node:child_process";
import { GlassError } from "../core/errors.ts";
import { namedFiles, type PolicyFiles } from "./files.ts";
import { nearest } from "./problem.ts";

const FOLDERS = ["targets", "playbooks"];
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024; // twice the policy; a longer listing is a whole monorepo
const MAX_FILES = 4_000;
const MAX_TOTAL_BYTES = 32 * 1024 * 1024;
const TIMEOUT_MS = 30_000; // local objects only; a slow disk is still done in a second

interface Blob {
  readonly mode: string;
  readonly id: string;
  readonly bytes: number;
}

/**
 * The policy files of a folder as a git revision has them, such as `HEAD~1:policy` or `origin/main:`. Read from the object
 * store of the repository around `cwd`: nothing is checked out, no filter or hook runs, nothing is fetched.
 * @param revision given by the caller of a command; what is in the repository is not trusted.
 * @throws GlassError `usage` if git does not know it, `config_invalid` for a symbolic link or too much of anything.
 */
export async function readRevision(revision: string, cwd: string): Promise<PolicyFiles> {
  const [, commit = "", folder = ""] = /^([^:]*):(.*)$/s.exec(revision) ?? [];
  if (commit === "" || commit.startsWith("-") || /[\p{Cc}]/u.test(revision)) throw unknown(revision);
  const tree = await git(["rev-parse", "--verify", "--quiet", `${commit}:${folder === "." ? "./" : folder}`], cwd);
  const id = tree.output.toString("latin1").trim();
  if (tree.code !== 0 || !/^[0-9a-f]{40,64}$/.test(id)) throw unknown(revision);
  const listing = await git(["ls-tree", "-r", "-z", "-l", "--full-tree", id], cwd);
  if (listing.code === null) throw invalid(revision, "has too many files; name the policy folder itself");
  if (listing.code !== 0) {
    throw new GlassError("usage", `${revision} is not a folder`, { next: "Name the folder: HEAD:policy" });
  }
  const blobs = parseListing(listing.output);
  const wanted = [...blobs.keys()].filter(isPolicyPath);
  const files = new Map<string, string>();
  const limits = { left: MAX_TOTAL_BYTES };
  await readBlobs(revision, wanted, { blobs, files, cwd, limits });
  const named = namedFiles(files).filter((path) => blobs.has(path) && !files.has(path));
  await readBlobs(revision, named, { blobs, files, cwd, limits });
  return files;
}

/** What a policy folder may hold, and folders whose names are slips for it, so that the loader can say so. */
function isPolicyPath(path: string): boolean {
  const [first = "", second] = path.split("/");
  if (!/\.ya?ml$/.test(path) || path.split("/").some((part) => part.startsWith("."))) return false;
  return second === undefined || nearest(first, FOLDERS) !== undefined;
}

function parseListing(output: Buffer): ReadonlyMap<string, Blob> {
  const blobs = new Map<string, Blob>();
  for (const line of output.toString("utf8").split("\0")) {
    const match = /^(\d{6}) (\w+) ([0-9a-f]{40,64}) +(\d+|-)\t(.+)$/s.exec(line);
    const [, mode = "", , id = "", size = "", path = ""] = match ?? [];
    if (match !== null) blobs.set(path, { mode, id, bytes: size === "-" ? 0 : Number(size) });
  }
  return blobs;
}

async function readBlobs(
  revision: string,
  paths: readonly string[],
  into: {
    readonly blobs: ReadonlyMap<string, Blob>;
    readonly files: Map<string, string>;
    readonly cwd: string;
    readonly limits: { left: number };
  },
): Promise<void> {
  const { blobs, files, cwd, limits } = into;
  if (paths.length === 0) return;
  if (paths.length > MAX_FILES) throw invalid(revision, `has ${paths.length} files; a policy has ${MAX_FILES} at most`);
  for (const path of paths) {
    const blob = blobs.get(path);
    if (!/^100(?:644|755|664)$/.test(blob?.mode ?? ""))
      throw invalid(revision, `has ${path}, which is not a plain file`);
    limits.left -= blob?.bytes ?? 0;
  }
  if (limits.left < 0) throw invalid(revision, `is larger than ${MAX_TOTAL_BYTES / 1024 / 1024} MiB`);
  const input = paths.map((path) => `${blobs.get(path)?.id ?? ""}\n`).join("");
  const { code, output } = await git(["cat-file", "--batch"], cwd, input);
  let at = 0;
  for (const path of paths) {
    const end = output.indexOf(10, at);
    const size = Number(/^[0-9a-f]{40,64} blob (\d+)$/.exec(output.toString("latin1", at, Math.max(at, end)))?.[1]);
    if (code !== 0 || end === -1 || !Number.isSafeInteger(size) || end + 1 + size > output.length) {
      throw invalid(revision, `has ${path}, which git cannot read; a partial clone lacks it`);
    }
    try {
      files.set(path, new TextDecoder("utf-8", { fatal: true }).decode(output.subarray(end + 1, end + 1 + size)));
    } catch (cause) {
      throw invalid(revision, `has ${path}, which is not UTF-8 text`, cause);
    }
    at = end + 1 + size + 1;
  }
}

/** Runs git without a shell, without asking anybody, bounded in time and output. */
async function git(args: readonly string[], cwd: string, input = ""): Promise<{ code: number | null; output: Buffer }> {
  const env = {
    ...process.env,
    GIT_TERMINAL_PROMPT: "0",
    GIT_OPTIONAL_LOCKS: "0",
    GIT_NO_LAZY_FETCH: "1",
    LC_ALL: "C",
  };
  const child = spawn("git", args, { cwd, env, stdio: ["pipe", "pipe", "ignore"], timeout: TIMEOUT_MS });
  const chunks: Buffer[] = [];
  let bytes = 0;
  return await new Promise((resolve, reject) => {
    child.once("error", (cause) => {
      reject(new GlassError("usage", "git cannot be run", { next: "Install git, or name two folders.", cause }));
    });
    child.stdout.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > MAX_OUTPUT_BYTES) child.kill("SIGKILL");
    });
    child.stdin.on("error", () => {}); // git left before it had read everything; its exit code tells
    child.stdin.end(input);
    child.once("close", (code) => resolve({ code, output: Buffer.concat(chunks) }));
  });
}

function unknown(revision: string): GlassError {
  const next = "Write REV:FOLDER, such as HEAD~1:policy, in the repository. In CI, fetch the history first.";
  return new GlassError("usage", `${revision} is neither a folder nor something that git knows here`, { next });
}

function invalid(revision: string, what: string, cause?: unknown): GlassError {
  return new GlassError("config_invalid", `${revision} ${what}`, cause === undefined ? {} : { cause });
}
