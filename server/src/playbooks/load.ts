import canonicalize from "canonicalize";
import { readFile, readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { sha256 } from "../core/bytes.ts";
import { describe } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { checkPlaybook, checkRotas } from "./crosscheck.ts";
import { type Document, MAX_FILE_BYTES, type Place, readDocument } from "./document.ts";
import { readRotas, type Rota } from "./oncall.ts";
import { readPeople } from "./people.ts";
import { type PlaybookFile, readPlaybook } from "./playbook.ts";
import type { Person, Playbook, Policy, Target } from "./policy.ts";
import { compare, nearest, type PolicyProblem, sortProblems, suggest } from "./problem.ts";
import { toJson } from "./shape.ts";
import { createPolicy } from "./decide.ts";
import { type KindChecks, readTarget, reportAll, type TargetFile } from "./targets.ts";

export type LoadedPolicy =
  | { readonly ok: true; readonly policy: Policy }
  | { readonly ok: false; readonly problems: readonly PolicyProblem[] };

const MAX_FILES = 2_000; // per folder; far above any real installation, far below what would hurt

/**
 * Reads and checks a whole policy folder: `people.yaml`, optionally `oncall.yaml`, `targets/*.yaml`, `playbooks/*.yaml`.
 * All mistakes of all files are reported together, and with one mistake nothing is loaded. The folder is not trusted to
 * be well-formed, but whoever can write to it decides who may open what. Never rejects for what is in the folder.
 */
export async function loadPolicy(options: {
  folder: string;
  kinds: ReadonlyMap<string, KindChecks>;
}): Promise<LoadedPolicy> {
  const { folder, kinds } = options;
  const problems: PolicyProblem[] = [];
  const documents: Document[] = [];
  const open = async (file: string): Promise<Document | undefined> => {
    const read = await readText(join(folder, file));
    if (!read.ok) {
      problems.push({ file, line: 1, column: 1, message: read.why });
      return undefined;
    }
    const document = readDocument(file, read.text);
    documents.push(document);
    return document;
  };

  const top = await list(folder, "", problems);
  if (top === undefined) return { ok: false, problems };
  const peopleFile = top.includes("people.yaml") ? await open("people.yaml") : undefined;
  if (!top.includes("people.yaml")) problems.push(missing("people.yaml", "people.yaml is missing"));
  const oncall = top.includes("oncall.yaml") ? await open("oncall.yaml") : undefined;
  const people = peopleFile === undefined ? [] : readPeople(peopleFile);
  const rotas = oncall === undefined ? [] : readRotas(oncall);

  const targets: TargetFile[] = [];
  for (const file of await yamlFiles(folder, "targets", top, problems)) {
    const document = await open(file);
    if (document === undefined) continue;
    const target = await readTarget(document, join(folder, file), kinds, readText);
    if (target !== undefined) targets.push(target);
  }
  const playbooks: PlaybookFile[] = [];
  for (const file of await yamlFiles(folder, "playbooks", top, problems)) {
    const document = await open(file);
    const playbook = document === undefined ? undefined : readPlaybook(document);
    if (playbook !== undefined) playbooks.push(playbook);
  }

  reportTwice(targets.map(({ document, namePlace, target }) => ({ document, place: namePlace, value: target.name })));
  reportTwice(playbooks.flatMap(({ document, name }) => (name === undefined ? [] : [{ document, ...name }])));
  const sound = [peopleFile, oncall].every((document) => document === undefined || document.problems().length === 0);
  const ids = new Set(people.flatMap(({ name, aliases }) => [name, ...aliases]));
  const groups = new Set(people.flatMap((person) => person.groups).toSorted(compare));
  const names = { people, ids, groups, rotas, oncall, sound };
  const namesKnown = peopleFile?.root !== undefined && (oncall === undefined || oncall.root !== undefined);
  if (namesKnown) checkRotas(names);
  const complete = playbooks.flatMap((file) => {
    if (namesKnown) checkPlaybook(file, names);
    const scope = scopeOf(file, targets, kinds);
    return file.playbook === undefined || scope === undefined ? [] : [{ ...file.playbook, scope }];
  });

  problems.push(...documents.flatMap((document) => document.problems()));
  if (problems.length > 0) return { ok: false, problems: sortProblems(problems) };
  const hashed = targets.map(({ target }): Target => ({ ...target, hash: hashOf(target) }));
  const byName = (a: { name: string }, b: { name: string }): number => compare(a.name, b.name);
  const content = {
    people: people.toSorted(byName),
    rotas: rotas.toSorted(byName),
    targets: hashed.toSorted(byName),
    playbooks: complete.map((playbook) => withHash(playbook, hashed)).toSorted(byName),
  };
  return {
    ok: true,
    policy: createPolicy({
      hash: hashOf({ ...content, people: content.people.map(plainPerson), rotas: content.rotas.map(plainRota) }),
      ...content,
    }),
  };
}

/** SHA-256 (hex) of the RFC 8785 form. */
function hashOf(value: unknown): string {
  return sha256(canonicalize(value) ?? "").toString("hex");
}

/** A changed secret is a changed policy; only its digest is in the hash's input. */
function plainPerson(person: Person): object {
  return { ...person, secret: person.secret === undefined ? null : hashOf(person.secret.reveal()) };
}

/** Without the places in the file. */
function plainRota({ name, people }: Rota): object {
  return { name, people: people === "unknown" ? people : people.map(({ value }) => value) };
}

function scopeOf(
  { document, scope, target }: PlaybookFile,
  targets: readonly TargetFile[],
  kinds: ReadonlyMap<string, KindChecks>,
): JsonObject | undefined {
  if (target === undefined) return undefined;
  const kind = targets.find((known) => known.target.name === target.value)?.target.kind;
  if (kind === undefined) {
    const names = targets.map((known) => known.target.name);
    document.report(target.place, `there is no target "${target.value}"`, suggest(target.value, names));
    return undefined;
  }
  const checked = scope === undefined ? undefined : kinds.get(kind)?.parseScope(toJson(scope));
  if (checked?.ok === true) return checked.value;
  if (checked !== undefined && scope !== undefined) reportAll(document, scope, "scope", checked.problems);
  return undefined;
}

function withHash(playbook: Omit<Playbook, "hash">, targets: readonly Target[]): Playbook {
  const target = targets.find(({ name }) => name === playbook.target);
  return { ...playbook, hash: hashOf({ playbook, kind: target?.kind ?? "", config: target?.config ?? {} }) };
}

function reportTwice(named: readonly { document: Document; place: Place; value: string }[]): void {
  const first = new Map<string, string>();
  for (const { document, place, value } of named) {
    const other = first.get(value);
    if (other === undefined) first.set(value, document.file);
    else document.report(place, `"${value}" is already the name in ${other}`);
  }
}

function missing(file: string, message: string): PolicyProblem {
  return { file, line: 1, column: 1, message, help: "docs/playbooks.md shows what a policy folder holds." };
}

/** Names in a folder, hidden ones left out (a mounted ConfigMap has some). */
async function list(folder: string, sub: string, problems: PolicyProblem[]): Promise<readonly string[] | undefined> {
  let names: readonly string[];
  try {
    names = (await readdir(join(folder, sub))).filter((name) => !name.startsWith("."));
  } catch (error) {
    problems.push(missing(sub === "" ? "." : sub, `the folder cannot be read: ${describe(error)}`));
    return undefined;
  }
  const known = sub === "" ? ["people.yaml", "oncall.yaml", "targets", "playbooks"] : [];
  for (const name of names) {
    const file = sub === "" ? name : `${sub}/${name}`;
    const near = known.includes(name) ? undefined : nearest(name, known);
    if (name.endsWith(".yml")) {
      problems.push({ file, line: 1, column: 1, message: "policy files end in .yaml", help: "Rename the file." });
    } else if (sub === "" && (near !== undefined || (name.endsWith(".yaml") && !known.includes(name)))) {
      const help = near === undefined ? "Move it away, or into targets/ or playbooks/." : `Did you mean "${near}"?`;
      problems.push({ file, line: 1, column: 1, message: "this name means nothing in a policy folder", help });
    }
  }
  return names.toSorted(compare);
}

async function yamlFiles(
  folder: string,
  sub: string,
  top: readonly string[],
  problems: PolicyProblem[],
): Promise<readonly string[]> {
  if (!top.includes(sub)) {
    problems.push(missing(sub, `the folder ${sub}/ is missing`));
    return [];
  }
  const names = ((await list(folder, sub, problems)) ?? []).filter((name) => name.endsWith(".yaml"));
  if (names.length > MAX_FILES) {
    problems.push(missing(sub, `more than ${MAX_FILES} files`));
    return [];
  }
  return names.map((name) => `${sub}/${name}`);
}

async function readText(path: string): Promise<{ ok: true; text: string } | { ok: false; why: string }> {
  try {
    const { size } = await requireFile(path);
    if (size > MAX_FILE_BYTES) return { ok: false, why: `larger than ${MAX_FILE_BYTES / 1024} KiB` };
    const bytes = await readFile(path);
    if (bytes.length > MAX_FILE_BYTES) return { ok: false, why: `larger than ${MAX_FILE_BYTES / 1024} KiB` };
    return { ok: true, text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
  } catch (error) {
    if (error instanceof TypeError) return { ok: false, why: "not UTF-8 text" };
    const absent = error instanceof Error && "code" in error && error.code === "ENOENT";
    return { ok: false, why: absent ? "there is no such file" : `cannot be read: ${describe(error)}` };
  }
}

/** Opening a pipe or a device could wait for ever. */
async function requireFile(path: string): Promise<{ size: number }> {
  const found = await stat(path);
  if (!found.isFile()) throw new Error("not a plain file");
  return found;
}
