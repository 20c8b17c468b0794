/**
 * Paths on the host, and the globs of a playbook that they are held against.
 *
 * A glob is an absolute path. `*` stands for any characters within one name, `?` for one, and `**` as a whole name for any
 * number of folders, none included. A name that begins with a dot is matched only where the glob writes the dot, as in a
 * shell: `/home/app/**` is neither .ssh nor .bashrc.
 *
 * Paths are compared as text, after `.`, `..` and `//` were resolved here. Where a symbolic link leads is the host's
 * knowledge: the SFTP proxy asks for it (sftp.ts).
 */

const MAX_PATH_CHARACTERS = 4_096;
const MAX_NAMES = 256;

export type CleanPath = { ok: true; path: string } | { ok: false; reason: string };

/** Resolves `.`, `..` and `//` by the text alone. @param base absolute, for relative paths; without it they are refused. */
export function cleanPath(text: string, base?: string): CleanPath {
  if (text.length > MAX_PATH_CHARACTERS) return { ok: false, reason: "the path is too long" };
  if (text.includes("\0") || !text.isWellFormed()) return { ok: false, reason: "the path is not text" };
  const absolute = text.startsWith("/");
  if (!absolute && base === undefined) return { ok: false, reason: "the path does not begin with /" };
  const names: string[] = [];
  for (const name of `${absolute ? "" : base}/${text}`.split("/")) {
    if (name === "" || name === ".") continue;
    if (name === "..") names.pop();
    else names.push(name);
  }
  if (names.length > MAX_NAMES) return { ok: false, reason: "the path has too many folders" };
  return { ok: true, path: `/${names.join("/")}` };
}

/** The folder of a clean path, and its last name. `/` has no name. */
export function splitPath(path: string): { folder: string; name: string } {
  const at = path.lastIndexOf("/");
  return { folder: at <= 0 ? "/" : path.slice(0, at), name: path.slice(at + 1) };
}

export function joinPath(folder: string, name: string): string {
  return folder === "/" ? `/${name}` : `${folder}/${name}`;
}

/** What is wrong with a glob; undefined for a good one. */
export function globProblem(text: string): string | undefined {
  if (!text.startsWith("/")) return "must be an absolute path, such as /var/log/**";
  if (/\p{Cc}/u.test(text) || !text.isWellFormed()) return "must be one line of text";
  if (/[[\]{}\\]/.test(text)) return "has only the wildcards *, ** and ?; write one more line instead of [ ] and { }";
  const names = text.slice(1).split("/");
  if (names.length > MAX_NAMES) return "has too many folders";
  if (text !== "/" && names.includes("")) return "has an empty name: write no // and no / at the end";
  if (names.some((name) => name === "." || name === "..")) return "must not hold . or ..";
  if (names.some((name) => name !== "**" && name.includes("**")))
    return "** can only be a whole name, as in /var/**/log";
  if (names.filter((name) => name === "**").length > 4) return "has more than four **";
  return undefined;
}

export interface Globs {
  readonly empty: boolean;
  /** Whether a clean path is one of those that the globs mean. */
  matches(path: string): boolean;
  /** Whether it is the folder that a `/**` is about, or lies on the way to what a glob means. */
  leadsTo(path: string): boolean;
  /**
   * What may still follow the path for it to be matched, as the rests of globs; the empty one where the path itself is. If
   * all of one path's are among another's, nothing below the first is matched that is not below the second.
   */
  below(path: string): ReadonlySet<string>;
}

/** @param texts good ones by {@link globProblem}. */
export function compileGlobs(texts: readonly string[]): Globs {
  const globs = texts.map(namesOf);
  return {
    empty: globs.length === 0,
    matches(path) {
      const names = namesOf(path);
      return globs.some((glob) => matchesNames(glob, names));
    },
    leadsTo(path) {
      const names = namesOf(path);
      return globs.some((glob) => leadsInto(glob, names));
    },
    below(path) {
      const names = namesOf(path);
      return new Set(globs.flatMap((glob) => restsOf(glob, names)));
    },
  };
}

function namesOf(path: string): readonly string[] {
  return path === "/" ? [] : path.slice(1).split("/");
}

/** How many names of the path can be used up by the glob so far: names × names steps, no backtracking. */
function matchesNames(glob: readonly string[], names: readonly string[]): boolean {
  let reached = new Set([0]);
  for (const [i, part] of glob.entries()) {
    const next = new Set<number>();
    for (const at of reached) {
      if (part !== "**") {
        if (at < names.length && matchesName(part, names[at] ?? "")) next.add(at + 1);
        continue;
      }
      // As the last part it stands for what is below the folder, not for the folder itself.
      if (i < glob.length - 1) next.add(at);
      for (let end = at; end < names.length && !(names[end] ?? "").startsWith("."); end++) next.add(end + 1);
    }
    if (next.size === 0) return false;
    reached = next;
  }
  return reached.has(names.length);
}

/** The parts of the glob that are left once these names are used up, in every way that there is. */
function restsOf(glob: readonly string[], names: readonly string[]): readonly string[] {
  let at = new Set([0]);
  const skipEmpty = (): void => {
    // A set that grows while it is gone through.
    for (const i of at) if (glob[i] === "**" && i < glob.length - 1) at.add(i + 1);
  };
  skipEmpty();
  for (const name of names) {
    const next = new Set<number>();
    for (const i of at) {
      const part = glob[i];
      if (part === "**") {
        if (!name.startsWith(".")) next.add(i).add(i + 1);
      } else if (part !== undefined && matchesName(part, name)) next.add(i + 1);
    }
    at = next;
    skipEmpty();
  }
  return [...at].map((i) => glob.slice(i).join("/"));
}

/** A path that is the beginning of what the glob means: only names without wildcards show the way. */
function leadsInto(glob: readonly string[], names: readonly string[]): boolean {
  const wild = glob.findIndex((part) => /[*?]/.test(part));
  const fixed = wild < 0 ? glob.slice(0, -1) : glob.slice(0, wild);
  return names.length <= fixed.length && names.every((name, i) => name === fixed[i]);
}

/** One name against one part with `*` and `?`. The last `*` alone is tried again, so it is at most length × length steps. */
export function matchesName(part: string, name: string): boolean {
  if (name.startsWith(".") && !part.startsWith(".")) return false;
  let [p, n, star, from] = [0, 0, -1, 0];
  while (n < name.length) {
    if (part[p] === "*") {
      [star, from] = [p, n];
      p++;
    } else if (p < part.length && (part[p] === "?" || part[p] === name[n])) {
      p++;
      n++;
    } else if (star >= 0) {
      p = star + 1;
      n = ++from;
    } else return false;
  }
  while (part[p] === "*") p++;
  return p === part.length;
}
