import { glob, readFile } from "node:fs/promises";
import { builtinModules } from "node:module";
import { join, posix } from "node:path";
import { importsOf } from "./imports.ts";

/**
 * The import table of docs/architecture.md: part → the parts it may import, besides itself. A part is a folder, or a file
 * that has a rule of its own. `*` means every part. A file that belongs to no part here is a mistake.
 */
const TABLE: Readonly<Record<string, readonly string[]>> = {
  contract: ["codes"],
  codes: [],
  verify: [],
  // A small program for another trust domain: it must be readable without the rest.
  witness: ["verify"],
  cli: ["contract", "codes", "verify", "witness"],
  core: ["codes"],
  store: ["core"],
  playbooks: ["core"],
  audit: ["core", "store", "objects", "verify"],
  identity: ["core", "store", "audit"],
  // The kinds of records, and the recorder that a target is given, are part of THE interface.
  recording: ["core", "store", "audit", "objects", "target.ts"],
  "target.ts": ["core"],
  "targets/*": ["core", "target.ts"],
  "registry.ts": ["core", "target.ts", "targets/*"],
  // Where files lie that are written once: a folder, or S3.
  objects: ["core"],
  access: ["core", "store", "audit", "identity", "playbooks", "target.ts"],
  gateway: ["core", "access", "recording", "audit", "target.ts"],
  // Each implements an interface of access, or serves what access asks for.
  evidence: ["core", "store", "audit", "playbooks", "access"],
  notify: ["core", "store", "audit", "identity", "playbooks", "access"],
  bundles: ["core", "store", "audit", "playbooks", "access"],
  // Where the log goes on to: a SIEM, and a place that nobody can write to twice.
  sinks: ["core", "codes", "store", "audit"],
  archive: ["core", "store", "audit", "objects", "recording", "verify"],
  metrics: ["core", "store"],
  api: [
    ...["contract", "core", "store", "audit", "identity", "playbooks", "access", "recording", "gateway", "target.ts"],
    ...["evidence", "notify", "bundles", "sinks", "archive", "metrics"],
  ],
  "config.ts": [
    ...["core", "store", "playbooks", "evidence", "notify", "bundles", "target.ts"],
    ...["audit", "recording", "objects", "sinks", "archive"],
  ],
  // The composition roots: one per thread of the server, and the verbs that need no server.
  "main.ts": ["*"],
  "data-plane.ts": ["*"],
  "archive-commands.ts": ["core", "codes", "config.ts", "archive", "objects", "verify"],
  "playbook-commands.ts": ["core", "codes", "playbooks", "registry.ts", "target.ts"],
  testing: ["*"],
  bench: ["*"],
  fuzz: ["*"],
  soak: ["*"],
  tools: ["*"],
};

/** The closed sets of error codes and event types: words that every part which knows core may use. */
const CODES = new Set(["contract/src/errors.ts", "contract/src/events.ts"]);

/** What main.ts is made of, beside itself. */
const OF_MAIN = new Set([
  ...["open-store.ts", "parts.ts", "lost-journal.ts", "commands.ts", "init.ts", "installation.ts", "identities.ts"],
]);

/** Who may import the parts that only a few should know. Tests may too. */
const IMPORTED_ONLY_BY: Readonly<Record<string, readonly string[]>> = {
  "main.ts": ["tools", "bench", "soak"],
  "data-plane.ts": ["main.ts"],
  "registry.ts": ["main.ts", "data-plane.ts", "playbook-commands.ts", "tools", "bench", "soak"],
  testing: ["bench", "fuzz", "soak"],
};

/** Built-in modules that do input or output. */
const IO =
  /^(?:node:)?(?:fs|net|tls|http|https|http2|dgram|dns|child_process|cluster|worker_threads|readline|repl)(?:\/|$)/;
/** What is pure in those nevertheless. */
const PURE = new Set(["isIP", "isIPv4", "isIPv6"]);
const BUILT_IN = new Set(builtinModules);

/** What a file may take from outside the project; the first rule whose pattern matches the path decides. */
const OUTSIDE: readonly {
  files: RegExp;
  allows: (specifier: string, names: readonly string[]) => boolean;
  because: string;
}[] = [
  { files: /^contract\//, allows: (s) => s === "zod", because: "contract is browser-safe: zod and nothing else" },
  { files: /^verify\//, allows: isBuiltIn, because: "verify has no dependencies" },
  { files: /^witness\//, allows: isBuiltIn, because: "witness depends on verify and nothing else" },
  { files: /^server\/src\/core\//, allows: isPure, because: "core does no I/O" },
  { files: /\/wire\.ts$/, allows: isPure, because: "wire code does no I/O" },
];

/**
 * Checks every TypeScript file below `root`.
 * @returns how many were read, and one line per violation. Finding no file, or none in a part, is a violation.
 */
export async function checkBoundaries(root: string): Promise<{ files: number; problems: readonly string[] }> {
  const sources = new Map<string, string>();
  const pattern = "{contract,verify,witness,cli,console,server,bench,fuzz,soak,tools}/**/*.{ts,mts,tsx}";
  for await (const path of glob(pattern, { cwd: root, exclude: (name) => name === "node_modules" })) {
    sources.set(path.split("\\").join("/"), await readFile(join(root, path), "utf8"));
  }
  const seen = new Set([...sources.keys()].map(partOf));
  const empty = ["contract", "core", "store"].filter((part) => !seen.has(part)); // parts that are always there
  const problems = empty.map((part) => `no files found in ${part}: the check has lost sight of the code`);
  return { files: sources.size, problems: [...problems, ...violations(sources)] };
}

/** The same on sources given as path → text. */
export function violations(sources: ReadonlyMap<string, string>): readonly string[] {
  const problems: string[] = [];
  for (const [path, text] of sources) {
    const part = partOf(path);
    if (part === undefined) {
      problems.push(`${path}: this folder is not in the import table (tools/boundaries.ts, docs/architecture.md)`);
      continue;
    }
    for (const { specifier, names, line } of importsOf(text)) {
      const why = specifier === undefined ? computed(path, part) : judge(path, part, specifier, names);
      if (why !== undefined) problems.push(`${path}:${line}: ${why}`);
    }
  }
  return [...problems, ...storeOnTheDataPlane(sources)];
}

/** The part that a file belongs to; for a kind of target, `targets/` and its name. */
export function partOf(path: string): string | undefined {
  const [top, second, third, fourth] = path.split("/");
  if (CODES.has(path)) return "codes";
  if (top !== "server") return top !== undefined && Object.hasOwn(TABLE, top) ? top : undefined;
  // Test code that several tests share: of the whole server, or of one folder.
  if (second === "testing" || /\/(?:testing|fixtures)(?:\/|\.ts$)/.test(path)) return "testing";
  if (second !== "src" || third === undefined) return undefined;
  const own = third.replace(/\.test\.ts$/, ".ts"); // a file beside its test is of one part with it
  if (fourth === undefined && OF_MAIN.has(own)) return "main.ts";
  if (third === "targets") {
    if (fourth === "target.ts" || fourth === "registry.ts") return fourth;
    if (fourth?.startsWith("conformance") === true) return "testing";
    return path.split("/").length > 4 ? `targets/${fourth}` : undefined;
  }
  return Object.hasOwn(TABLE, own) && (own.endsWith(".ts") || fourth !== undefined) ? own : undefined;
}

const isTest = (path: string): boolean => path.endsWith(".test.ts") || partOf(path) === "testing";

function computed(path: string, part: string): string | undefined {
  return isTest(path) || TABLE[part]?.includes("*") === true
    ? undefined
    : "imports something computed at run time, which no table can allow";
}

function judge(path: string, part: string, specifier: string, names: readonly string[]): string | undefined {
  const target = resolve(path, specifier);
  if (target === undefined) {
    const rule = OUTSIDE.find(({ files }) => files.test(path));
    if (rule === undefined || isTest(path) || rule.allows(specifier, names)) return undefined;
    return `imports ${specifier}; ${rule.because}`;
  }
  if (target.startsWith("..")) return `imports ${specifier}, outside the project`;
  if (/\.json$/.test(target)) return undefined;
  if (target.endsWith(".test.ts")) return `imports ${specifier}: nothing imports a test`;
  const other = partOf(target);
  if (other === undefined) return `imports ${specifier}, which is in no part of the import table`;
  if (other === part || isTest(path)) return undefined;
  const only = IMPORTED_ONLY_BY[other];
  if (only !== undefined && !only.includes(part))
    return `imports ${specifier}: ${other} is only for ${only.join(", ")} and tests`;
  const allowed = TABLE[part.startsWith("targets/") ? "targets/*" : part] ?? [];
  if (other === "codes" && allowed.includes("core")) return undefined;
  const generic = other.startsWith("targets/") ? "targets/*" : other;
  return allowed.includes("*") || allowed.includes(generic)
    ? undefined
    : `${part} may not import ${other} (${specifier})`;
}

/** The project's file that a specifier means, or undefined for a package or a built-in module. */
function resolve(from: string, specifier: string): string | undefined {
  if (specifier.startsWith(".")) return posix.normalize(posix.join(posix.dirname(from), specifier));
  const workspace = /^@glasskey\/(\w+)(?:\/(.+))?$/.exec(specifier);
  return workspace === null ? undefined : `${workspace[1]}/src/${workspace[2] ?? "index"}.ts`;
}

function isPure(specifier: string, names: readonly string[]): boolean {
  return !IO.test(specifier) || (names.length > 0 && names.every((name) => PURE.has(name)));
}

function isBuiltIn(specifier: string): boolean {
  return specifier.startsWith("node:") || BUILT_IN.has(specifier);
}

/** Code of the data plane never touches the store: no chain of imports that exist at run time may lead there. */
function storeOnTheDataPlane(sources: ReadonlyMap<string, string>): readonly string[] {
  const start = "server/src/data-plane.ts";
  const cameFrom = new Map<string, string>([[start, ""]]);
  for (const path of cameFrom.keys()) {
    for (const { specifier, typeOnly } of importsOf(sources.get(path) ?? "")) {
      const target = specifier === undefined || typeOnly ? undefined : resolve(path, specifier);
      if (target === undefined || cameFrom.has(target)) continue;
      cameFrom.set(target, path);
      if (partOf(target) !== "store") continue;
      const chain = [target];
      for (let link = path; link !== ""; link = cameFrom.get(link) ?? "") chain.unshift(link);
      return [`${start}: the data plane reaches the store: ${chain.join(" → ")}`];
    }
  }
  return [];
}
