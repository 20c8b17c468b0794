import { formatDuration } from "../core/duration.ts";
import type { JsonValue } from "../core/json.ts";
import { concerns } from "./denials.ts";
import type { Finding, SmellCode } from "./lint.ts";
import { isWithinTimes } from "./plan-hours.ts";
import type { Denial, Person, Playbook, Policy, Selector } from "./policy.ts";
import { quorumNeed } from "./quorum.ts";
import { approversOf, type Crowd, crowdOf } from "./sides.ts";
import { checkHostScope } from "./smells-ssh.ts";
import type { Sources } from "./sources.ts";

/** Four hours: half a shift. Whoever needs longer has stopped repairing and begun working there. */
const LONG_MS = 4 * 3_600_000;
/** Tags by which people mark what must not leak. */
const SENSITIVE =
  /^(?:pci|pii|phi|hipaa|gdpr|sox|cardholder|cardholder-data|confidential|restricted|secret|sensitive)(?:[-_.].*)?$/;
/** Names of roles that can do everything, whole or as a word of a longer name. */
const ADMIN_NAME =
  /^(?:postgres|sa|dba|azure_pg_admin|cloudsqlsuperuser|system:masters)$|(?:^|[^a-z])(?:admin|administrator|root|superuser|sysadmin|dba)(?:[^a-z]|$)|superuser$/i;
/** Keys of a scope that name an identity, and those that list what may be done. */
const IDENTITY_KEY = /^(?:roles?|users?|groups?|cluster_?roles?|accounts?|principals?|assume_?role)$/i;
const POWER_KEY = /^(?:allow|verbs?|actions?|commands?|resources?|functions?|permissions?|privileges?)$/i;
const EVERYTHING = /^(?:all|any|\*|\*:\*|\*\.\*|privileges|grant)$/i;

interface Context {
  readonly policy: Policy;
  readonly sources: Sources;
  readonly crowd: Crowd;
  readonly rotas: ReadonlyMap<string, readonly Person[] | undefined>;
  readonly officers: readonly Person[];
}

export type Report = (code: SmellCode, path: readonly (string | number)[], message: string, help: string) => void;

/** What a careful reviewer would ask about, playbook by playbook and then of the policy as a whole. */
export function findSmells(policy: Policy, sources: Sources): readonly Finding[] {
  const context: Context = {
    ...{ policy, sources, crowd: crowdOf(policy.people, (name) => policy.person(name)) },
    rotas: new Map(
      policy.rotas.map((rota) => [rota.name, "people" in rota ? peopleOf(policy, rota.people) : undefined]),
    ),
    officers: policy.people.filter(({ enabled, roles }) => enabled && roles.includes("security_officer")),
  };
  const findings: Finding[] = [];
  for (const playbook of policy.playbooks) {
    const report: Report = (code, path, message, help) => {
      const spot = sources.playbook(playbook.name, path);
      findings.push({ code, spot, playbook: playbook.name, message: `${playbook.name}: ${message}`, help });
    };
    const requesters = requestersOf(context, playbook);
    checkConsent(context, playbook, requesters, report);
    checkSelectors(context, playbook, report);
    checkReach(context, playbook, requesters, report);
    checkReview(context, playbook, requesters, report);
    checkHabits(context, playbook, report);
    checkScope(playbook, report);
    if (policy.target(playbook.target)?.kind === "ssh") checkHostScope(playbook.scope, report);
  }
  return [...findings, ...wholePolicy(context)];
}

/** People who may ask, as far as it is known; whoever else a rota names elsewhere is `open`. */
interface Requesters {
  readonly people: readonly Person[];
  readonly open: boolean;
}

function checkConsent(context: Context, playbook: Playbook, requesters: Requesters, report: Report): void {
  const { approve, when, who } = playbook;
  if (approve.from.length === 0) {
    const unknown = who.some(({ by }) => by === "oncall") || when.incident !== undefined;
    const cases = unknown ? "a fact is unknown, or a review is overdue" : "a review is overdue";
    const help = "Name people in approve.from: they are asked only then.";
    report("GK009", ["approve"], `opens by itself, and nobody can approve when ${cases}; it then stays shut`, help);
    return;
  }
  const approvers = approversOf(approve.from, context.crowd);
  // The requester who loses most: one who is an approver too.
  const counted = requesters.people.length === 0 ? [undefined] : requesters.people;
  const left = (requester: Person | undefined): number =>
    approvers.people.length - (requester !== undefined && approvers.has(requester) ? 1 : 0);
  const worst = counted.toSorted((a, b) => left(a) - left(b))[0];
  const asking = worst !== undefined && approvers.has(worst) ? `when ${worst.name} asks, ` : "";
  const able = approvers.people.filter((person) => person !== worst);
  const needed = Math.max(1, approve.need);
  const short = counted.find((person) => person !== undefined && approvers.reach(person) < approve.from.length);
  const lone = approve.from.flatMap((side, i) => {
    const people = membersOf(context, side, "approver").filter((person) => person !== worst);
    return people.length === 1 ? [{ side: i + 1, person: people[0]?.name ?? "" }] : [];
  });
  if (able.length < needed) {
    const message = `${asking}${needed} must approve, and only ${namesOf(able)} could`;
    report("GK001", ["approve", "from"], message, "Name more people in approve.from, or give them the role approver.");
  } else if (short !== undefined) {
    const message = `when ${short.name} asks, the sides of approve.from cannot each find a person of their own`;
    report("GK001", ["approve", "from"], message, "One person speaks for one side: name more people.");
  } else if (lone.length > 0) {
    for (const { side, person } of lone) {
      const where = approve.from.length > 1 ? ` for side ${side}` : "";
      const message = `${asking}only ${person} can approve${where}`;
      report("GK011", ["approve", "from"], message, "One person asleep keeps it shut: name another.");
    }
  } else if (able.length < quorumNeed(playbook)) {
    const message = `${asking}a quorum of ${quorumNeed(playbook)} cannot be met: only ${namesOf(able)} could approve`;
    const help = "An overdue review would keep it shut until it is signed: name more people in approve.from.";
    report("GK001", ["approve", "from"], message, help);
  }
  const same = approvers.people.length > 1 && !requesters.open && !who.some(({ by }) => by === "oncall");
  if (same && sameSet(new Set(requesters.people), new Set(approvers.people))) {
    const message = `the people who may ask and the people who may approve are the same: ${namesOf(approvers.people)}`;
    report("GK002", ["approve", "from"], message, "Let somebody consent who does not need the access.");
  }
}

/** Alternatives that let nobody in, or nobody whom another one does not. */
function checkSelectors(context: Context, playbook: Playbook, report: Report): void {
  const lists = [
    { selectors: playbook.who, role: "requester" as const, path: ["who"], what: "who" },
    ...playbook.approve.from.map((selectors, i) => ({
      ...{ selectors, role: "approver" as const, what: "approve.from" },
      path: ["approve", "from", ...(playbook.approve.from.length > 1 ? [i] : [])],
    })),
    { selectors: playbook.review.by, role: "approver" as const, path: ["review", "by"], what: "review.by" },
  ];
  for (const { selectors, role, path, what } of lists) {
    for (const [i, selector] of selectors.entries()) {
      const at = [...path, selector.by, selectors.slice(0, i).filter(({ by }) => by === selector.by).length];
      const name = `${what}.${selector.by}:${selector.name}`;
      const people = alternative(context, selector, role);
      const wider =
        selector.by === "user" &&
        selectors.find(({ by, name: group }) => by === "group" && people?.[0]?.groups.includes(group));
      if (people?.length === 0) {
        const message = `${name} is nobody: no one it means is enabled and has the role ${role}`;
        report("GK004", at, message, "Remove it, or give somebody the role in people.yaml.");
      } else if (typeof wider === "object") {
        const message = `${name} changes nothing: ${selector.name} is in group ${wider.name}, which is listed too`;
        report("GK004", at, message, "Remove one of the two.");
      }
    }
  }
}

/** What the forbid rules of policy.yaml leave of a playbook, and timers that never run out. */
function checkReach(context: Context, playbook: Playbook, requesters: Requesters, report: Report): void {
  const { when, time } = playbook;
  const denials = denialsOf(context.policy, playbook).filter((denial) => isWithinTimes(when, denial));
  const shut = denials.find((denial) => {
    if (denial.who.length === 0) return true;
    const denied = deniedBy(context, denial);
    return !requesters.open && requesters.people.length > 0 && requesters.people.every(denied.has);
  });
  if (shut !== undefined) {
    const message = `can never be used: the rule ${shut.name} forbids it to everybody`;
    report("GK015", [], message, "Remove the playbook, or narrow the rule in policy.yaml.");
  } else {
    for (const [i, selector] of playbook.who.entries()) {
      const people = alternative(context, selector, "requester") ?? [];
      const denial = denials.find((known) => people.length > 0 && people.every(deniedBy(context, known).has));
      if (denial === undefined) continue;
      const at = ["who", selector.by, playbook.who.slice(0, i).filter(({ by }) => by === selector.by).length];
      const message = `who.${selector.by}:${selector.name} lets nobody in: the rule ${denial.name} forbids it to all of them`;
      report("GK004", at, message, "Remove it, or narrow the rule in policy.yaml.");
    }
  }
  if (time.idleMs !== undefined && time.idleMs >= time.capMs) {
    const message = `time.idle (${formatDuration(time.idleMs)}) never cuts: a grant ends after ${formatDuration(time.capMs)}`;
    report("GK004", ["time", "idle"], message, "Make it shorter than time.max.");
  }
  if (time.capMs > LONG_MS) {
    const extended = time.maxMs <= LONG_MS;
    const message = `stays open for up to ${formatDuration(time.capMs)}${extended ? " with its extensions" : ""}`;
    report("GK003", ["time", extended ? "extend" : "max"], message, "Keep it to 4h; more time is another request.");
  }
}

function checkReview(context: Context, playbook: Playbook, requesters: Requesters, report: Report): void {
  if (playbook.review.by.length === 0) {
    const message = "says nowhere who reviews its uses; only security officers can";
    report("GK007", [], message, "Add: review: { by: { group: payments-leads }, within: 2d }");
  }
  const signers = new Set([...membersOf(context, playbook.review.by, "approver"), ...context.officers]);
  const [only, another] = [...signers];
  if (another !== undefined || (only !== undefined && !requesters.people.includes(only))) return;
  const message =
    only === undefined
      ? "nobody can sign a review of it"
      : `when ${only.name} uses it, nobody else can sign the review: it becomes overdue`;
  const help = "Name another in review.by with the role approver, or add a security officer.";
  report("GK014", ["review"], message, help);
}

function checkHabits({ policy }: Context, playbook: Playbook, report: Report): void {
  const { approve, limit, notify, drill, name } = playbook;
  const tags = policy.target(playbook.target)?.tags.filter((tag) => SENSITIVE.test(tag)) ?? [];
  if (approve.unanswered !== undefined && tags.length > 0) {
    const message = `opens without an answer on ${playbook.target}, which is tagged ${tags.join(", ")}`;
    report("GK008", ["approve", "unanswered"], message, "Remove approve.unanswered, and name more approvers.");
  }
  if (drill === undefined) {
    report("GK006", [], "is never practised", "Add: drill: { every: 30d, on: A-TARGET-LIKE-IT }");
  }
  const tests = policy.tests.get(name) ?? [];
  const missing = (["allow", "deny"] as const).filter((expect) => !tests.some((known) => known.expect === expect));
  if (missing.length > 0) {
    const message = missing.length === 2 ? "has no tests" : `has no ${missing[0]} test`;
    const help = "A test says who it must let in, and who not; `glass playbook test --cover` finds what is missing.";
    report("GK010", tests.length === 0 ? [] : ["tests"], message, help);
  }
  if (approve.need === 0 && limit.uses === undefined) {
    const message = "opens by itself as often as anybody likes";
    report("GK017", ["approve", "need"], message, "Add: limit: { uses: 3, per: 7d }");
  }
  if (notify.length === 0) {
    report("GK018", [], "nobody is told of its uses", "Add: notify: [slack:incidents]");
  }
}

function checkScope(playbook: Playbook, report: Report): void {
  const look = (value: JsonValue, path: readonly (string | number)[], key: string): void => {
    if (typeof value === "object" && value !== null) {
      // Entries of a list are judged by the list's key.
      for (const [step, item] of Object.entries(value)) {
        look(item, [...path, Array.isArray(value) ? Number(step) : step], Array.isArray(value) ? key : step);
      }
    } else if (typeof value === "string" && IDENTITY_KEY.test(key) && ADMIN_NAME.test(value)) {
      const what = key === "user" ? "user" : "role";
      const message = `${path.join(".")} is ${JSON.stringify(value)}, which sounds like a ${what} that can do everything`;
      report("GK005", path, message, `Make a ${what} with only what the repair needs.`);
    } else if (typeof value === "string" && POWER_KEY.test(key) && EVERYTHING.test(value)) {
      const message = `${path.join(".")} is ${JSON.stringify(value)}, which gives everything or lets it be given`;
      report("GK005", path, message, "List what the repair needs.");
    }
  };
  look(playbook.scope, ["scope"], "scope");
}

function wholePolicy(context: Context): readonly Finding[] {
  const { policy, sources } = context;
  const findings: Finding[] = [];
  const reasons = new Set(policy.playbooks.flatMap(({ when }) => when.reasons));
  for (const code of policy.reasons.keys()) {
    if (reasons.has(code)) continue;
    const message = `no playbook takes the reason ${code}`;
    findings.push({ code: "GK012", spot: sources.reason(code), message, help: "Remove it, or name it in a playbook." });
  }
  for (const { name, spot, used } of sources.templates) {
    const message = `no playbook extends the template ${name}`;
    if (!used) findings.push({ code: "GK013", spot, message, help: "Remove it, or extend it." });
  }
  for (const denial of policy.denials) {
    if (!deniedBy(context, denial).nobody) continue;
    const message = `the rule ${denial.name} forbids nothing: no enabled requester is in its who`;
    const help = "Remove the rule, or mend what it names.";
    findings.push({ code: "GK004", spot: sources.rule(denial.name, ["who"]), message, help });
  }
  return findings;
}

/** Whether a rule denies a person whatever the rotas elsewhere say; and whether it might deny others too. */
function deniedBy(context: Context, { who }: Denial): { has: (person: Person) => boolean; nobody: boolean } {
  if (who.length === 0) return { has: () => true, nobody: false };
  const parts = who.map((selector) => alternative(context, selector, "requester"));
  const people = new Set(parts.flatMap((known) => known ?? []));
  return { has: (person) => people.has(person), nobody: people.size === 0 && !parts.includes(undefined) };
}

function denialsOf({ denials, target }: Policy, playbook: Playbook): readonly Denial[] {
  const known = target(playbook.target);
  return denials.filter((denial) => known !== undefined && concerns(denial, known));
}

function requestersOf(context: Context, { who }: Playbook): Requesters {
  const parts = who.map((selector) => alternative(context, selector, "requester"));
  return { people: [...new Set(parts.flatMap((people) => people ?? []))], open: parts.includes(undefined) };
}

function membersOf(context: Context, selectors: readonly Selector[], role: Person["roles"][number]): readonly Person[] {
  return [...new Set(selectors.flatMap((selector) => alternative(context, selector, role) ?? []))];
}

/** Enabled people with this role whom an alternative means; undefined where only a source of evidence knows. */
function alternative(
  { policy, crowd, rotas }: Context,
  { by, name }: Selector,
  role: Person["roles"][number],
): readonly Person[] | undefined {
  const people = by === "group" ? crowd.inGroup.get(name) : by === "user" ? peopleOf(policy, [name]) : rotas.get(name);
  if (people === undefined) return by === "group" ? [] : undefined;
  return people.filter((person) => person.enabled && person.roles.includes(role));
}

function peopleOf(policy: Policy, names: readonly string[]): readonly Person[] {
  return names.flatMap((name) => policy.person(name) ?? []);
}

function sameSet<T>(a: ReadonlySet<T>, b: ReadonlySet<T>): boolean {
  return a.size === b.size && [...a].every((item) => b.has(item));
}

const SHOWN_NAMES = 4;

function namesOf(people: readonly Person[]): string {
  if (people.length === 0) return "nobody";
  const more = people.length - SHOWN_NAMES;
  const names = people.slice(0, SHOWN_NAMES).map(({ name }) => name);
  return more > 0 ? `${names.join(", ")} and ${more} more` : names.join(", ");
}
