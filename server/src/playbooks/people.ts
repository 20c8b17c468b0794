import { Secret } from "../core/secret.ts";
import type { Document, Node, Place } from "./document.ts";
import { readChannels } from "./playbook.ts";
import { ROLES, type Person, type Role } from "./policy.ts";
import { suggest } from "./problem.ts";
import { type Placed, readBoolean, readMap, readName, readNames, readText, startOf } from "./shape.ts";

const KEYS = {
  required: { name: "ann", roles: "[requester]" },
  optional: ["groups", "aliases", "secret", "enabled", "notify"],
  hideUnknown: true,
};

/** Reads `people.yaml`: a list of people. Names and aliases are unique over the whole file. */
export function readPeople(document: Document): readonly Person[] {
  const { root } = document;
  if (root === undefined) return [];
  if (root.type !== "list") {
    document.report(startOf(root), "people.yaml must be a list of people", "Begin each with: - name: ann");
    return [];
  }
  const people: Person[] = [];
  const taken = new Map<string, string>();
  const claim = (id: string, place: Place, owner: string): void => {
    const other = taken.get(id);
    if (other === undefined) taken.set(id, owner);
    else {
      document.report(
        place,
        `the id "${id}" is already ${other}'s`,
        "One id belongs to one human. Two ids of one human: aliases.",
      );
    }
  };
  const aliases: { id: string; place: Place; owner: string }[] = [];
  for (const item of root.items) {
    const read = readPerson(document, item);
    if (read === undefined) continue;
    claim(read.person.name, read.namePlace, read.person.name);
    for (const { value, place } of read.aliases) aliases.push({ id: value, place, owner: read.person.name });
    people.push(read.person);
  }
  for (const { id, place, owner } of aliases) claim(id, place, owner); // after all names, whatever their order
  return people;
}

function readPerson(
  document: Document,
  item: Node,
): { person: Person; namePlace: Place; aliases: readonly Placed<string>[] } | undefined {
  const map = readMap(document, item, "a person", KEYS);
  if (map === undefined) return undefined;
  const leaveOut = "Leave the key out.";
  const nameNode = map.get("name")?.value;
  const rolesNode = map.get("roles")?.value;
  const groupsNode = map.get("groups")?.value;
  const aliasesNode = map.get("aliases")?.value;
  const secretNode = map.get("secret")?.value;
  const enabledNode = map.get("enabled")?.value;
  const notifyNode = map.get("notify")?.value;
  const name = nameNode && readName(document, nameNode, "name");
  const roles = rolesNode && readRoles(document, rolesNode);
  const groups = groupsNode && readNames(document, groupsNode, "groups", { single: false, empty: leaveOut });
  const aliases =
    aliasesNode && readNames(document, aliasesNode, "aliases", { single: false, empty: leaveOut, ids: true });
  const secret = secretNode && readVerifier(document, secretNode);
  const enabled = enabledNode === undefined ? true : readBoolean(document, enabledNode, "enabled");
  const notify = notifyNode && readChannels(document, notifyNode);
  if (name === undefined || nameNode === undefined) return undefined;
  return {
    person: {
      name,
      enabled: enabled ?? false,
      roles: roles ?? [],
      groups: (groups ?? []).map(({ value }) => value),
      aliases: (aliases ?? []).map(({ value }) => value),
      ...(secret === undefined ? {} : { secret }),
      notify: notify ?? [],
    },
    namePlace: nameNode.place,
    aliases: aliases ?? [],
  };
}

function readRoles(document: Document, node: Node): readonly Role[] {
  const empty = `Name at least one of ${ROLES.join(", ")}; to shut a person out, write enabled: false.`;
  const roles: Role[] = [];
  for (const { value, place } of readNames(document, node, "roles", { single: false, empty }) ?? []) {
    const role = ROLES.find((known) => known === value);
    if (role === undefined) document.report(place, `there is no role "${value}"`, suggest(value, ROLES));
    else roles.push(role);
  }
  return roles;
}

/**
 * The form that `identity/secrets.ts` makes. Bounds keep one login from costing more than 256 MiB of memory, and a
 * verifier from being cheap to guess.
 */
function readVerifier(document: Document, node: Node): Secret | undefined {
  document.mask(node.place);
  const text = readText(document, node, "secret");
  if (text === undefined) return undefined;
  const match = /^scrypt\$(\d{4,7})\$(\d{1,2})\$(\d{1,2})\$[\w-]{22,88}\$[\w-]{43}$/.exec(text);
  const [n, r, p] = [Number(match?.[1]), Number(match?.[2]), Number(match?.[3])];
  const sane = Number.isInteger(Math.log2(n)) && n >= 2 ** 14 && r >= 8 && p >= 1 && 128 * n * r * p <= 2 ** 28;
  if (match !== null && sane) return new Secret(text);
  const message =
    match === null ? "secret is not a hash that Glasskey made" : "secret's scrypt cost is too low or too high";
  document.report(node.place, message, "Make one with `glass secret`, and put the line it prints here, in quotes.");
  return undefined;
}
