import { unreachable } from "../core/errors.ts";
import type { Document } from "./document.ts";
import { complain, type WholePlaybook } from "./inherit.ts";
import type { RotaEntry } from "./oncall.ts";
import type { PlaybookFile, Sayings } from "./playbook.ts";
import type { DenialEntry, PolicyFile } from "./policy-file.ts";
import type { Person, Playbook, Selector } from "./policy.ts";
import { suggest } from "./problem.ts";
import type { PlacedSelectors } from "./selectors.ts";
import type { Placed } from "./shape.ts";
import { approversOf, type Crowd } from "./sides.ts";
import type { TargetFile } from "./targets.ts";

/** What the files say together. */
export interface Names {
  readonly people: readonly Person[];
  /** By name and alias. */
  readonly byId: ReadonlyMap<string, Person>;
  readonly byGroup: ReadonlyMap<string, readonly Person[]>;
  readonly rotas: ReadonlyMap<string, RotaEntry>;
  readonly targets: ReadonlyMap<string, TargetFile>;
  /** `oncall.yaml`, if there is one. */
  readonly oncall: Document | undefined;
  /** Undefined where policy.yaml is missing or no YAML; then nobody knows which reasons there are. */
  readonly policyFile: PolicyFile | undefined;
  /** Whether people, groups and rotas could be read at all. */
  readonly readable: boolean;
  /** Whether those files are free of mistakes; if not, what seems to be missing may be a slip there. */
  readonly sound: boolean;
}

/** Reports rotas that name people who are not in `people.yaml`. */
export function checkRotas(names: Names): void {
  if (!names.readable || names.oncall === undefined) return;
  for (const rota of names.rotas.values()) {
    if ("people" in rota) for (const person of rota.people) checkPerson(names.oncall, person, names);
  }
}

/** Reports what one file (a playbook, a template, the defaults) names and does not exist. */
export function checkSayings(document: Document, sayings: Sayings, names: Names): void {
  const { who, from, review, reason, target, drill } = sayings;
  const own = <T>(said: { document: Document; value: T | undefined } | undefined): T | undefined =>
    said?.document === document ? said.value : undefined;
  checkSelectors(document, [...(own(who) ?? []), ...(own(from) ?? []).flat(), ...(own(review)?.by ?? [])], names);
  for (const code of own(reason) ?? []) checkReason(document, code, names);
  const named = own(target);
  if (named !== undefined && target !== undefined) checkTarget(document, { value: named, place: target.place }, names);
  const rehearsal = own(drill);
  if (rehearsal !== undefined) checkTarget(document, rehearsal.on, names);
}

/** Reports what `tests:` of a playbook name and does not exist. */
export function checkTests({ document, tests }: PlaybookFile, names: Names): void {
  for (const { who, approvedBy, oncall, unknown, reason } of tests) {
    if (names.readable) {
      for (const person of [who, ...approvedBy]) checkPerson(document, person, names);
      const rotas = [...oncall, ...unknown.filter(({ value }) => value !== "incident")];
      for (const rota of rotas) checkRota(document, rota, names);
    }
    if (reason !== undefined) checkReason(document, reason, names);
  }
}

/** Reports what a rule of `forbid:` names and does not exist: a rule that silently denies nothing is worse than none. */
export function checkDenial(document: Document, denial: DenialEntry, names: Names): void {
  checkSelectors(document, denial.who, names);
  for (const target of denial.targets) checkTarget(document, target, names);
  const tags = new Set([...names.targets.values()].flatMap(({ target }) => target.tags));
  for (const { value, place } of denial.tags) {
    if (tags.has(value)) continue;
    const help = (): string => suggest(value, tags) ?? "Tags are in targets/*.yaml.";
    document.report(place, `no target has the tag "${value}"`, help);
  }
}

/** Reports what could never be asked for or approved, and a drill on something else. */
export function checkWhole({ file, sayings, rules }: WholePlaybook, names: Names): void {
  const { who, from, need, review, drill } = sayings;
  if (rules === undefined || who?.value === undefined) return;
  const kind = names.targets.get(rules.target)?.target.kind;
  const drilled = drill?.value === undefined ? undefined : names.targets.get(drill.value.on.value)?.target;
  if (drill?.value !== undefined && drilled !== undefined && kind !== undefined && drilled.kind !== kind) {
    const message = `drill.on is a target of kind ${drilled.kind}, but ${rules.target} is of kind ${kind}`;
    complain(file, { document: drill.document, place: drill.value.on.place }, message);
  }
  const named = [...who.value, ...(from?.value ?? []).flat(), ...(review?.value?.by ?? [])];
  // What follows from a slip is not news.
  if (!names.readable || !names.sound || named.some(({ value }) => !exists(value, names))) return;
  const requesters = people(rules.who, names).filter((person) => mayBe(person, "requester"));
  const signers = people(rules.review.by, names).some(
    (person) => person.enabled && SIGNERS.some((role) => person.roles.includes(role)),
  );
  const [firstSigner] = review?.value?.by ?? [];
  if (review !== undefined && firstSigner !== undefined && !signers) {
    const message = "nobody it names could sign a review: no one is enabled and has the role approver";
    complain(file, { document: review.document, place: firstSigner.place }, message, ROLES_HELP);
  }
  const [firstWho] = who.value;
  if (requesters.length === 0 && firstWho !== undefined) {
    const message = "nobody could use this playbook: no one it names is enabled and has the role requester";
    complain(file, { document: who.document, place: firstWho.place }, message, ROLES_HELP);
  }
  if (from?.value === undefined) {
    checkUnknownRotas(file, who.document, who.value, names);
    return;
  }
  const crowd = { inGroup: names.byGroup, find: (id: string) => names.byId.get(id) };
  const silent = rules.approve.from.findIndex((side) => approversOf([side], crowd).people.length === 0);
  const [firstFrom] = from.value[silent] ?? [];
  if (firstFrom !== undefined) {
    const which = from.value.length === 1 ? "nobody could ever approve" : "nobody could ever speak for this side";
    const message = `${which}: no one it names is enabled and has the role approver`;
    complain(file, { document: from.document, place: firstFrom.place }, message, ROLES_HELP);
    return;
  }
  const fault = requesters.length === 0 ? undefined : consentFault(requesters, rules.approve, crowd);
  if (fault !== undefined) complain(file, need ?? from, fault, "Lower need, or name more approvers.");
}

const ROLES_HELP = "Roles are in people.yaml; none implies another.";
/** A security officer signs any review, so naming one is no mistake. */
const SIGNERS = ["approver", "security_officer"] as const;
const MAX_NAMED = 12; // people in one message

/** Why there could never be enough consent, whoever asks; undefined where there could for some requester. */
function consentFault(
  requesters: readonly Person[],
  { need, from }: Playbook["approve"],
  crowd: Crowd,
): string | undefined {
  const approvers = approversOf(from, crowd);
  const wanted = Math.max(1, need);
  const others = (requester: Person): number => approvers.people.length - (approvers.has(requester) ? 1 : 0);
  if (requesters.some((person) => others(person) >= wanted && approvers.reach(person) === from.length))
    return undefined;
  const most = requesters.reduce((best, person) => Math.max(best, others(person)), 0);
  const named = approvers.people.slice(0, MAX_NAMED).map(({ name }) => name);
  const of = `${named.join(", ")}${approvers.people.length > named.length ? ", …" : ""}`;
  return most < wanted
    ? `${wanted} must approve, but only ${most} could beside the requester, of: ${of}`
    : `${from.length} sides must agree, but not each by a person of its own beside the requester, of: ${of}`;
}

/** Everybody whom these alternatives can ever mean, once each; who is on call is only known of a list of names. */
function people(selectors: readonly Selector[], names: Names): readonly Person[] {
  const found = new Set<Person>();
  for (const { by, name } of selectors) {
    if (by === "group") for (const person of names.byGroup.get(name) ?? []) found.add(person);
    else if (by === "user") addPerson(found, name, names);
    else if (by === "oncall") {
      const rota = names.rotas.get(name);
      if (rota !== undefined && "people" in rota) for (const { value } of rota.people) addPerson(found, value, names);
      else return names.people;
    } else unreachable(by);
  }
  return [...found];
}

function addPerson(found: Set<Person>, id: string, names: Names): void {
  const person = names.byId.get(id);
  if (person !== undefined) found.add(person);
}

function mayBe(person: Person, role: "requester" | "approver"): boolean {
  return person.enabled && person.roles.includes(role);
}

function exists({ by, name }: Selector, names: Names): boolean {
  if (by === "user") return names.byId.has(name);
  return by === "group" ? names.byGroup.has(name) : names.rotas.has(name);
}

function checkSelectors(document: Document, selectors: PlacedSelectors, names: Names): void {
  if (!names.readable) return;
  for (const { value, place } of selectors) {
    const named = { value: value.name, place };
    if (value.by === "user") checkPerson(document, named, names);
    else if (value.by === "oncall") checkRota(document, named, names);
    else if (!names.byGroup.has(value.name)) {
      const help = (): string =>
        suggest(value.name, names.byGroup.keys()) ?? "Groups are what people.yaml lists under a person's groups.";
      document.report(place, `nobody is in a group "${value.name}"`, help);
    }
  }
}

function checkPerson(document: Document, { value, place }: Placed<string>, names: Names): void {
  if (!names.byId.has(value))
    document.report(place, `there is no person "${value}"`, () => suggest(value, names.byId.keys()));
}

function checkRota(document: Document, { value, place }: Placed<string>, names: Names): void {
  if (names.rotas.has(value)) return;
  const help = (): string => suggest(value, names.rotas.keys()) ?? "Rotas are in oncall.yaml.";
  const absent = "There is no oncall.yaml.";
  document.report(place, `there is no rota "${value}"`, names.oncall === undefined ? absent : help);
}

function checkReason(document: Document, { value, place }: Placed<string>, names: Names): void {
  const reasons = names.policyFile?.reasons;
  if (reasons === undefined || reasons.has(value)) return;
  const help = (): string =>
    suggest(value, reasons.keys()) ?? "Reason codes are declared under reasons in policy.yaml.";
  document.report(place, `there is no reason "${value}"`, help);
}

function checkTarget(document: Document, { value, place }: Placed<string>, names: Names): void {
  if (names.targets.has(value)) return;
  document.report(place, `there is no target "${value}"`, () => suggest(value, names.targets.keys()));
}

/** Without approvers, an unknown on-call fact cannot be replaced by a person's yes. */
function checkUnknownRotas(file: PlaybookFile, document: Document, who: PlacedSelectors, names: Names): void {
  const unknown = ({ by, name }: Selector): boolean => {
    const rota = by === "oncall" ? names.rotas.get(name) : undefined;
    return rota !== undefined && "unknown" in rota;
  };
  const [first] = who;
  if (first === undefined || !who.every(({ value }) => unknown(value))) return;
  const message = `nobody could use this playbook: who is on call for ${first.value.name} is unknown, and nobody may approve instead`;
  const help = "Add approve.from, or name the people on call in oncall.yaml.";
  complain(file, { document, place: first.place }, message, help);
}
