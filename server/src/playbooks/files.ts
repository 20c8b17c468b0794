import canonicalize from "canonicalize";
import type { Dirent } from "node:fs";
import { readFile, readdir, stat } from "node:fs/promises";
import { isAbsolute, join } from "node:path";
import { sha256 } from "../core/bytes.ts";
import { describe } from "../core/errors.ts";
import { readDocument } from "./document.ts";
import { compare, nearest, type PolicyProblem } from "./problem.ts";
import { authorityFile } from "./targets.ts";

/** Files of a policy by their path from the policy folder, with `/`. An absolute path names a file outside of it. */
export type PolicyFiles = ReadonlyMap<string, string>;

const MAX_FILES = 4_000; // far above any real installation, far below what would hurt
const MAX_TOTAL_BYTES = 32 * 1024 * 1024;
const MAX_FILE_BYTES = 256 * 1024;
const MAX_PEOPLE_BYTES = 4 * 1024 * 1024; // 5,000 people with their secrets are about 1.5 MB

const MAX_DEPTH = 8; // nothing is read there; a file that lies too deep is only told of

const YAML = /\.ya?ml$/;
const TOP_FILES = ["policy.yaml", "people.yaml", "oncall.yaml"];
const FOLDERS = ["targets", "playbooks"];
const HELP = "docs/playbooks.md shows what a policy folder holds.";

/**
 * Reads the files that a policy folder's bundle is made of: its YAML files, and those that its targets name as a CA's
 * certificate. What cannot be read is a problem; the rest is still there. Never rejects for what is in the folder.
 */
export async function readPolicyFiles(
  folder: string,
): Promise<{ readonly files: PolicyFiles; readonly problems: readonly PolicyProblem[] }> {
  const problems: PolicyProblem[] = [];
  const files = new Map<string, string>();
  let total = 0;
  const read = async (path: string): Promise<void> => {
    const text = await readText(isAbsolute(path) ? path : join(folder, path), maxBytes(path));
    if (!text.ok) {
      problems.push(problemOf(path, text.why));
      return;
    }
    total += Buffer.byteLength(text.text);
    if (total <= MAX_TOTAL_BYTES) files.set(path, text.text);
  };
  const listed = await list(folder, problems);
  if (listed.length > MAX_FILES) return { files, problems: [problemOf(".", tooMany(listed.length))] };
  for (const path of listed) await read(path);
  for (const path of namedFiles(files)) {
    const text = files.has(path)
      ? undefined
      : await readText(isAbsolute(path) ? path : join(folder, path), MAX_FILE_BYTES);
    if (text?.ok !== true) continue; // told where the target names it
    total += Buffer.byteLength(text.text);
    if (total <= MAX_TOTAL_BYTES) files.set(path, text.text);
  }
  if (total > MAX_TOTAL_BYTES) problems.push(problemOf(".", TOO_LARGE));
  return { files, problems };
}

/**
 * What names a policy: SHA-256 (hex) over paths and contents, in the order of the paths. The same on every machine, for
 * every source, offline and in the server, and for every later version of Glasskey.
 */
export function bundleHash(files: PolicyFiles): string {
  const digests = [...files].map(([path, text]) => [path, sha256(text).toString("hex")] as const);
  return sha256(canonicalize(Object.fromEntries(digests)) ?? "").toString("hex");
}

/** Files beside the YAML files that targets name: a bundle needs them too. */
export function namedFiles(files: PolicyFiles): readonly string[] {
  const named = [...files].flatMap(([path, text]) => {
    if (!path.startsWith("targets/") || !path.endsWith(".yaml") || text.length > MAX_FILE_BYTES) return [];
    return authorityFile(readDocument(path, text)) ?? [];
  });
  return [...new Set(named)];
}

export interface SortedFiles {
  /** The three files of the folder itself that mean something, where they are. */
  readonly top: ReadonlyMap<string, string>;
  readonly targets: readonly string[];
  readonly playbooks: readonly string[];
  readonly problems: readonly PolicyProblem[];
}

/** Tells what each file is by its path. Names that mean nothing are problems, so that a misspelt one is not silently no rule. */
export function sortFiles(files: PolicyFiles): SortedFiles {
  const problems: PolicyProblem[] = [];
  const top = new Map<string, string>();
  const inFolder: Record<string, string[]> = { targets: [], playbooks: [] };
  let total = 0;
  if (files.size > MAX_FILES) {
    return { top, targets: [], playbooks: [], problems: [problemOf(".", tooMany(files.size))] };
  }
  const odd = new Set<string>();
  for (const [path, text] of [...files].toSorted(([a], [b]) => compare(a, b))) {
    const bytes = Buffer.byteLength(text);
    total += bytes;
    const [first = "", second, ...more] = path.split("/");
    if (!YAML.test(path) || first === "" || path.split("/").some((part) => part.startsWith("."))) continue;
    const isTop = second === undefined;
    if (!isTop && !FOLDERS.includes(first)) {
      const near = nearest(first, FOLDERS);
      if (near !== undefined && !odd.has(first))
        problems.push(problemOf(first, MEANS_NOTHING, `Did you mean "${near}"?`));
      odd.add(first);
    } else if (path.endsWith(".yml")) problems.push(problemOf(path, "policy files end in .yaml", "Rename the file."));
    else if (isTop && !TOP_FILES.includes(path)) {
      const near = nearest(path, TOP_FILES);
      const help = near === undefined ? "Move it away, or into targets/ or playbooks/." : `Did you mean "${near}"?`;
      problems.push(problemOf(path, MEANS_NOTHING, help));
    } else if (more.length > 0) {
      problems.push(problemOf(path, `files in folders below ${first}/ are not read`, `Move it to ${first}/.`));
    } else if (bytes > maxBytes(path)) problems.push(problemOf(path, tooLong(maxBytes(path))));
    else if (isTop) top.set(path, text);
    else inFolder[first]?.push(path);
  }
  if (total > MAX_TOTAL_BYTES) problems.push(problemOf(".", TOO_LARGE));
  return { top, targets: inFolder["targets"] ?? [], playbooks: inFolder["playbooks"] ?? [], problems };
}

/** A problem of a file as a whole. */
function problemOf(file: string, message: string, help?: string): PolicyProblem {
  return { file, line: 1, column: 1, message, ...(help === undefined ? {} : { help }) };
}

export function missing(file: string): PolicyProblem {
  return problemOf(file, `${file} is missing`, HELP);
}

const MEANS_NOTHING = "this name means nothing in a policy folder";
const TOO_LARGE = `the policy's files are larger than ${MAX_TOTAL_BYTES / 1024 / 1024} MiB together`;

function tooMany(count: number): string {
  return `${count} files; a policy has ${MAX_FILES} at most`;
}

function tooLong(bytes: number): string {
  return `larger than ${bytes / 1024} KiB`;
}

function maxBytes(path: string): number {
  return path === "people.yaml" ? MAX_PEOPLE_BYTES : MAX_FILE_BYTES;
}

/**
 * Paths of YAML files, hidden ones left out (a mounted ConfigMap has some). Links to files are files, and links to folders
 * are not followed: one can lead back to where it is.
 */
async function list(folder: string, problems: PolicyProblem[]): Promise<readonly string[]> {
  const paths: string[] = [];
  const look = async (sub: string, depth: number): Promise<readonly Dirent[]> => {
    try {
      const entries = await readdir(join(folder, sub), { withFileTypes: true });
      return entries.filter(({ name }) => !name.startsWith("."));
    } catch (error) {
      const gone = sub === "" && error instanceof Error && "code" in error && error.code === "ENOENT";
      const why = gone ? `there is no folder ${folder}` : `the folder cannot be read: ${describe(error)}`;
      if (depth < 2) problems.push(problemOf(sub === "" ? "." : sub, why, HELP));
      return [];
    }
  };
  const walk = async (sub: string, depth: number): Promise<void> => {
    for (const entry of await look(sub, depth)) {
      const path = `${sub}/${entry.name}`;
      if (entry.isDirectory()) {
        if (depth < MAX_DEPTH && paths.length <= MAX_FILES) await walk(path, depth + 1);
      } else if (YAML.test(path)) paths.push(path);
    }
  };
  const top = await look("", 0);
  for (const { name } of top) if (YAML.test(name)) paths.push(name);
  for (const { name } of top) {
    if (YAML.test(name) || nearest(name, FOLDERS) === undefined) continue;
    const isFolder = (await stat(join(folder, name)).catch(() => undefined))?.isDirectory() === true;
    if (isFolder || FOLDERS.includes(name)) await walk(name, 1);
  }
  for (const sub of top.length === 0 ? [] : FOLDERS) {
    if (!top.some(({ name }) => name === sub)) problems.push(problemOf(sub, `the folder ${sub}/ is missing`, HELP));
  }
  return paths.toSorted(compare);
}

async function readText(
  path: string,
  max: number,
): Promise<{ readonly ok: true; readonly text: string } | { readonly ok: false; readonly why: string }> {
  try {
    const found = await stat(path);
    if (!found.isFile()) throw new Error("not a plain file"); // opening a pipe or a device could wait for ever
    if (found.size > max) return { ok: false, why: tooLong(max) };
    const bytes = await readFile(path);
    if (bytes.length > max) return { ok: false, why: tooLong(max) };
    return { ok: true, text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
  } catch (error) {
    if (error instanceof TypeError) return { ok: false, why: "not UTF-8 text" };
    const absent = error instanceof Error && "code" in error && error.code === "ENOENT";
    return { ok: false, why: absent ? "there is no such file" : `cannot be read: ${describe(error)}` };
  }
}
