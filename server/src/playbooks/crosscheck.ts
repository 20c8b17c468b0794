import { unreachable } from "../core/errors.ts";
import type { Document } from "./document.ts";
import type { Rota } from "./oncall.ts";
import type { PlaybookFile } from "./playbook.ts";
import type { Person, Selector } from "./policy.ts";
import { suggest } from "./problem.ts";
import type { Placed } from "./shape.ts";

/** What the files say together. */
export interface Names {
  readonly people: readonly Person[];
  /** Names and aliases of all people. */
  readonly ids: ReadonlySet<string>;
  readonly groups: ReadonlySet<string>;
  readonly rotas: readonly Rota[];
  /** `oncall.yaml`, if there is one. */
  readonly oncall: Document | undefined;
  /** Whether `people.yaml` and `oncall.yaml` are free of mistakes; if not, what seems to be missing may be a slip there. */
  readonly sound: boolean;
}

/** Reports rotas that name people who are not in `people.yaml`. */
export function checkRotas(names: Names): void {
  const known = names.ids;
  for (const rota of names.rotas) {
    if (rota.people === "unknown") continue;
    for (const { value, place } of rota.people) {
      if (!known.has(value)) names.oncall?.report(place, `there is no person "${value}"`, suggest(value, known));
    }
  }
}

/** Reports what a playbook names and does not exist, and what could never be asked for or approved. */
export function checkPlaybook(file: PlaybookFile, names: Names): void {
  const { document, playbook } = file;
  const known = [...file.who, ...file.from].map((placed) => checkSelector(document, placed, names));
  if (known.includes(false) || playbook === undefined || !names.sound) return; // what follows from a slip is not news
  const requesters = names.people.filter(
    (person) => mayBe(person, "requester") && playbook.who.some((selector) => matches(person, selector, names.rotas)),
  );
  const approvers = eligible(names.people, playbook.approve.from);
  const [firstWho] = file.who;
  if (requesters.length === 0 && firstWho !== undefined) {
    const message = "nobody could use this playbook: no one it names is enabled and has the role requester";
    document.report(firstWho.place, message, "Roles are in people.yaml; none implies another.");
  }
  const [firstFrom] = file.from;
  if (firstFrom === undefined) {
    checkUnknownRotas(document, file.who, names);
    return;
  }
  if (approvers.length === 0) {
    const message = "nobody could ever approve: no one it names is enabled and has the role approver";
    document.report(firstFrom.place, message, "Roles are in people.yaml; none implies another.");
    return;
  }
  const most = Math.max(0, ...requesters.map((requester) => approvers.filter((other) => other !== requester).length));
  if (requesters.length > 0 && most < Math.max(1, playbook.approve.need)) {
    const who = approvers.map(({ name }) => name).join(", ");
    const message = `${Math.max(1, playbook.approve.need)} must approve, but only ${most} could beside the requester, of: ${who}`;
    document.report(file.needPlace ?? firstFrom.place, message, "Lower need, or name more approvers.");
  }
}

/** Whether a person is among those that a selector can ever mean; an `unknown` rota may mean anybody. */
function matches(person: Person, selector: Selector, rotas: readonly Rota[]): boolean {
  switch (selector.by) {
    case "user":
      return person.name === selector.name || person.aliases.includes(selector.name);
    case "group":
      return person.groups.includes(selector.name);
    case "oncall": {
      const people = rotas.find(({ name }) => name === selector.name)?.people ?? "unknown";
      return (
        people === "unknown" || people.some(({ value }) => person.name === value || person.aliases.includes(value))
      );
    }
    default:
      return unreachable(selector.by);
  }
}

/** Each person at most once, however many groups lead to them. */
export function eligible(people: readonly Person[], from: readonly Selector[]): readonly Person[] {
  return people.filter((person) => mayBe(person, "approver") && from.some((selector) => matches(person, selector, [])));
}

function mayBe(person: Person, role: "requester" | "approver"): boolean {
  return person.enabled && person.roles.includes(role);
}

function checkSelector(document: Document, { value, place }: Placed<Selector>, names: Names): boolean {
  const { by, name } = value;
  if (by === "user") {
    if (names.ids.has(name)) return true;
    document.report(place, `there is no person "${name}"`, suggest(name, names.ids));
  } else if (by === "group") {
    if (names.groups.has(name)) return true;
    const help = suggest(name, names.groups) ?? "Groups are what people.yaml lists under a person's groups.";
    document.report(place, `nobody is in a group "${name}"`, help);
  } else {
    const rotas = names.rotas.map((rota) => rota.name);
    if (rotas.includes(name)) return true;
    const help = names.oncall === undefined ? "There is no oncall.yaml." : suggest(name, rotas);
    document.report(place, `there is no rota "${name}"`, help ?? "Rotas are in oncall.yaml.");
  }
  return false;
}

/** Without approvers, an unknown on-call fact cannot be replaced by a person's yes. */
function checkUnknownRotas(document: Document, who: readonly Placed<Selector>[], names: Names): void {
  const unknown = ({ by, name }: Selector): boolean =>
    by === "oncall" && names.rotas.some((rota) => rota.name === name && rota.people === "unknown");
  const [first] = who;
  if (first === undefined || !who.every(({ value }) => unknown(value))) return;
  const message = `nobody could use this playbook: who is on call for ${first.value.name} is unknown, and nobody may approve instead`;
  document.report(first.place, message, "Add approve.from, or name the people on call in oncall.yaml.");
}
