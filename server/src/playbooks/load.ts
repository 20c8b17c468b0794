import canonicalize from "canonicalize";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { checkDenial, checkRotas, checkSayings, checkTests, checkWhole, type Names } from "./crosscheck.ts";
import { createPolicy } from "./decide.ts";
import { type Document, type Place, readDocument } from "./document.ts";
import { bundleHash, missing, type PolicyFiles, readPolicyFiles, sortFiles } from "./files.ts";
import { inherit, type WholePlaybook } from "./inherit.ts";
import { readRotas, type RotaEntry } from "./oncall.ts";
import { readPeople } from "./people.ts";
import { readPlaybook, type PlaybookFile } from "./playbook.ts";
import { type DenialEntry, type PolicyFile, readPolicyFile } from "./policy-file.ts";
import type { Denial, Person, Playbook, PlaybookTest, Policy, Rota, Selector, Side, Target } from "./policy.ts";
import { compare, type PolicyProblem, sortProblems } from "./problem.ts";
import { toJson } from "./shape.ts";
import { type KindChecks, readTarget, reportAll } from "./targets.ts";

export { readPolicyFiles } from "./files.ts";

export type LoadedPolicy =
  | { readonly ok: true; readonly policy: Policy }
  | { readonly ok: false; readonly problems: readonly PolicyProblem[] };

/**
 * Reads and checks a whole policy folder. All mistakes of all files are reported together, and with one mistake nothing is
 * loaded. The folder is not trusted to be well-formed, but whoever can write to it decides who may open what. Never
 * rejects for what is in the folder.
 */
export async function loadPolicy(options: {
  readonly folder: string;
  readonly kinds: ReadonlyMap<string, KindChecks>;
}): Promise<LoadedPolicy> {
  const { files, problems } = await readPolicyFiles(options.folder);
  const compiled = compilePolicy({ files, kinds: options.kinds });
  if (problems.length === 0) return compiled;
  const unread = new Set(problems.map(({ file }) => file));
  const others = compiled.ok || unread.has(".") ? [] : compiled.problems.filter(({ file }) => !unread.has(file));
  return { ok: false, problems: sortProblems([...problems, ...others]) };
}

/**
 * Checks a bundle in memory, however it came here: the same files give the same policy and hash on every machine. Pure
 * but for the time it takes. Never throws for what is in the files.
 */
export function compilePolicy(options: {
  readonly files: PolicyFiles;
  readonly kinds: ReadonlyMap<string, KindChecks>;
}): LoadedPolicy {
  const { files, kinds } = options;
  const sorted = sortFiles(files);
  const documents: Document[] = [];
  const open = (path: string): Document => {
    const document = readDocument(path, files.get(path) ?? "");
    documents.push(document);
    return document;
  };
  const problems = [...sorted.problems];
  for (const file of ["policy.yaml", "people.yaml"]) if (!files.has(file)) problems.push(missing(file));
  const top = (file: string): Document | undefined => (sorted.top.has(file) ? open(file) : undefined);

  const policyDocument = top("policy.yaml");
  const policyFile = policyDocument === undefined ? undefined : readPolicyFile(policyDocument);
  const peopleDocument = top("people.yaml");
  const oncall = top("oncall.yaml");
  const people = peopleDocument === undefined ? [] : readPeople(peopleDocument);
  const rotas = oncall === undefined ? [] : readRotas(oncall);
  const targets = sorted.targets.flatMap((path) => readTarget(open(path), kinds, files) ?? []);
  const playbookFiles = sorted.playbooks.flatMap((path) => readPlaybook(open(path)) ?? []);

  reportTwice(targets.map(({ document, namePlace, target }) => ({ document, place: namePlace, value: target.name })));
  reportTwice(playbookFiles.flatMap(({ document, name }) => (name === undefined ? [] : [{ document, ...name }])));
  const readable = [peopleDocument, oncall].every((document) => document === undefined || document.root !== undefined);
  const names: Names = {
    ...{ people, oncall, policyFile, targets: byName(targets.map((file) => [file.target.name, file])) },
    byId: new Map(people.flatMap((person) => [person.name, ...person.aliases].map((id) => [id, person]))),
    byGroup: groupsOf(people),
    rotas: byName(rotas.map((rota) => [rota.name, rota])),
    readable: readable && peopleDocument !== undefined && (oncall !== undefined || !files.has("oncall.yaml")),
    sound: [peopleDocument, oncall].every((document) => document === undefined || document.problems().length === 0),
  };
  const wholes = checkAll(playbookFiles, names, kinds);

  problems.push(...documents.flatMap((document) => document.problems()));
  if (problems.length > 0 || policyFile === undefined) return { ok: false, problems: sortProblems(problems) };
  try {
    return { ok: true, policy: createPolicy({ hash: bundleHash(files), ...contentOf(names, policyFile, wholes) }) };
  } catch (error) {
    if (!(error instanceof GlassError) || error.code !== "config_invalid") throw error;
    const help = error.next === undefined ? {} : { help: error.next };
    return { ok: false, problems: [{ file: "policy.yaml", line: 1, column: 1, message: error.message, ...help }] };
  }
}

/** Puts the playbooks together and reports what the files say wrongly about each other. */
function checkAll(
  files: readonly PlaybookFile[],
  names: Names,
  kinds: ReadonlyMap<string, KindChecks>,
): readonly WholePlaybook[] {
  const { policyFile } = names;
  checkRotas(names);
  if (policyFile !== undefined) {
    checkSayings(policyFile.document, policyFile.defaults, names);
    for (const denial of policyFile.denials) checkDenial(policyFile.document, denial, names);
  }
  for (const file of files) {
    checkSayings(file.document, file.sayings, names);
    checkTests(file, names);
  }
  const playbooks = files.filter(({ kind }) => kind === "playbook");
  return playbooks.map((file) => {
    const whole = inherit(file, files, { defaults: policyFile?.defaults ?? {}, zone: policyFile?.zone ?? "UTC" });
    checkWhole(whole, names);
    const scope = scopeOf(whole, names, kinds);
    const rules = whole.rules === undefined || scope === undefined ? undefined : { ...whole.rules, scope };
    return { ...whole, rules };
  });
}

function scopeOf(
  { sayings: { scope, target } }: WholePlaybook,
  names: Names,
  kinds: ReadonlyMap<string, KindChecks>,
): JsonObject | undefined {
  const kind = target?.value === undefined ? undefined : names.targets.get(target.value)?.target.kind;
  if (kind === undefined || scope?.value === undefined) return undefined;
  const checked = kinds.get(kind)?.parseScope(toJson(scope.value));
  if (checked?.ok === true) return checked.value;
  if (checked !== undefined) reportAll(scope.document, scope.value, "scope", checked.problems);
  return undefined;
}

type Content = Omit<Parameters<typeof createPolicy>[0], "hash">;

/** Everything by its one name: aliases of people are replaced, lists are sorted. Called once all checks have passed. */
function contentOf(names: Names, policyFile: PolicyFile, wholes: readonly WholePlaybook[]): Content {
  const nameOf = (id: string): string => names.byId.get(id)?.name ?? id;
  const targets = sorted(
    [...names.targets.values()].map(({ target }): Target => ({ ...target, hash: hashOf(target) })),
  );
  const playbooks: Playbook[] = [];
  const tests = new Map<string, readonly PlaybookTest[]>();
  for (const { file, rules } of wholes) {
    if (rules === undefined) continue;
    const playbook = withNames(rules, nameOf);
    const target = names.targets.get(playbook.target)?.target;
    const hash = hashOf({ playbook, kind: target?.kind ?? "", config: target?.config ?? {} });
    playbooks.push({ ...playbook, hash });
    tests.set(playbook.name, testsOf(file, playbook, nameOf));
  }
  return {
    ...{ people: sorted(names.people), targets, playbooks: sorted(playbooks) },
    rotas: sorted([...names.rotas.values()].map((rota) => rotaOf(rota, nameOf))),
    denials: sorted(policyFile.denials.map((denial) => denialOf(denial, policyFile.zone, nameOf))),
    ...{ reasons: policyFile.reasons, tests },
  };
}

/** SHA-256 (hex) of the RFC 8785 form. */
function hashOf(value: unknown): string {
  return sha256(canonicalize(value) ?? "").toString("hex");
}

type NameOf = (id: string) => string;

function withNames<T extends Pick<Playbook, "who" | "approve" | "review">>(rules: T, nameOf: NameOf): T {
  const side = (selectors: Side): Side => selectors.map((selector) => selectorOf(selector, nameOf));
  return {
    ...rules,
    who: side(rules.who),
    approve: { ...rules.approve, from: rules.approve.from.map(side) },
    review: { ...rules.review, by: side(rules.review.by) },
  };
}

function selectorOf({ by, name }: Selector, nameOf: NameOf): Selector {
  return { by, name: by === "user" ? nameOf(name) : name };
}

function rotaOf(rota: RotaEntry, nameOf: NameOf): Rota {
  if (!("people" in rota)) return rota;
  return { name: rota.name, people: [...new Set(rota.people.map(({ value }) => nameOf(value)))] };
}

function denialOf({ name, why, who, targets, tags, hours, zone }: DenialEntry, common: string, nameOf: NameOf): Denial {
  return {
    ...{ name: name.value, why, zone: zone ?? common },
    who: who.map(({ value }) => selectorOf(value, nameOf)),
    targets: targets.map(({ value }) => value),
    tags: tags.map(({ value }) => value),
    ...(hours === undefined ? {} : { hours }),
  };
}

function testsOf(
  { document, tests }: PlaybookFile,
  playbook: Omit<Playbook, "hash">,
  nameOf: NameOf,
): readonly PlaybookTest[] {
  return tests.map((test) => ({
    ...{ expect: test.expect, who: nameOf(test.who.value), usage: test.usage },
    oncall: test.oncall.map(({ value }) => value),
    unknown: test.unknown.map(({ value }) => value),
    ...(test.incident === undefined ? {} : { incident: test.incident }),
    reason: test.reason?.value ?? playbook.when.reasons[0] ?? "",
    forMs: test.forMs ?? playbook.time.maxMs,
    approvedBy: test.approvedBy.map(({ value }) => nameOf(value)),
    ...(test.atMs === undefined ? {} : { atMs: test.atMs }),
    place: { file: document.file, line: document.lineOf(test.place) },
  }));
}

function groupsOf(people: readonly Person[]): ReadonlyMap<string, readonly Person[]> {
  const groups = new Map<string, Person[]>();
  for (const person of people) {
    for (const group of person.groups) {
      const members = groups.get(group);
      if (members === undefined) groups.set(group, [person]);
      else members.push(person);
    }
  }
  return groups;
}

/** The first of each name; a second one is reported elsewhere. */
function byName<T>(entries: readonly (readonly [string, T])[]): ReadonlyMap<string, T> {
  return new Map(entries.toReversed());
}

function sorted<T extends { readonly name: string }>(items: readonly T[]): readonly T[] {
  return items.toSorted((a, b) => compare(a.name, b.name));
}

function reportTwice(named: readonly { document: Document; place: Place; value: string }[]): void {
  const first = new Map<string, string>();
  for (const { document, place, value } of named) {
    const other = first.get(value);
    if (other === undefined) first.set(value, document.file);
    else document.report(place, `"${value}" is already the name in ${other}`);
  }
}
