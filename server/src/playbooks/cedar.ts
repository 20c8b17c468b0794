import * as wasm from "@cedar-policy/cedar-wasm/nodejs";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

/**
 * The only file that speaks to Cedar (https://docs.cedarpolicy.com). Policies are texts by id; a decision names ids.
 *
 * The WASM keeps parsed policy sets by name and for ever, in 4 GiB at most. So a name is lent to a content as long as
 * somebody holds it: a policy that is replaced keeps deciding by its own text, the same content is parsed once, and what
 * nobody holds any more makes room.
 */

/** What is known at every use of a playbook. docs/playbook-cedar.md says what each one means. */
const USE_CONTEXT = [
  ...["oncall: Set<String>", "oncallUnknown: Set<String>", "approvals: Long", "sidesMet: Long"],
  ...["unsigned: Long", "open: Long", "overdue: Long", "sinceLastMs: Long"],
].join(", ");
const ASKED = "reason: String, severity: String, incidentUnknown: Bool";
const REQUEST_CONTEXT = `${USE_CONTEXT}, ${ASKED}, durationMs: Long`;
const UNANSWERED_CONTEXT = `${REQUEST_CONTEXT}, waitedMs: Long, paged: Bool, denied: Bool`;
const EXTENSION_CONTEXT = `${USE_CONTEXT}, ${ASKED}, byMs: Long, totalMs: Long, extensions: Long`;

/**
 * Every action, what it is asked about, and the set of policies that is asked: each policy of a set costs time, and an
 * action needs only those that speak of it. `match_who` and `match_from` are no verbs of people: they only tell, after a
 * no, which alternatives a person meets.
 */
const ACTIONS: readonly { names: readonly string[]; set: string; about: string; context: string }[] = [
  { names: ["list", "match_who"], set: "ask", about: "Playbook", context: USE_CONTEXT },
  { names: ["request"], set: "ask", about: "Playbook", context: REQUEST_CONTEXT },
  { names: ["open"], set: "open", about: "Playbook", context: REQUEST_CONTEXT },
  { names: ["open_unanswered"], set: "unanswered", about: "Playbook", context: UNANSWERED_CONTEXT },
  { names: ["request_extension", "extend"], set: "extend", about: "Grant", context: EXTENSION_CONTEXT },
  { names: ["match_from"], set: "consent", about: "Playbook", context: "" },
  { names: ["approve", "deny"], set: "consent", about: "Grant", context: "ageMs: Long, already: Bool" },
  { names: Object.keys(GRANT_VERBS), set: "grant", about: "Grant", context: "" },
  { names: Object.keys(INSTALLATION_VERBS), set: "installation", about: "Installation", context: "" },
];

const SET_OF: ReadonlyMap<string, string> = new Map(
  ACTIONS.flatMap(({ names, set }) => names.map((name) => [name, set])),
);

const SCHEMA = `
entity Group;
entity Person in [Group] { enabled: Bool, roles: Set<String> };
entity Target, Tag;
entity Playbook in [Target, Tag];
entity Grant in [Playbook, Target, Tag] { requester: Person };
entity Clock { day: Long, minute: Long };
entity Installation;
${ACTIONS.map(
  ({ names, about, context }) =>
    `action ${names.join(", ")} appliesTo { principal: [Person], resource: [${about}], context: { ${context} } };`,
).join("\n")}
`;

/** Policies by id. */
export type Policies = Readonly<Record<string, string>>;

export interface Slice {
  readonly principal: wasm.EntityJson;
  readonly action: string;
  readonly resource: wasm.EntityJson;
  readonly context: wasm.Context;
  /** Clocks that policies name. */
  readonly others?: readonly wasm.EntityJson[];
}

export interface Answer {
  readonly allow: boolean;
  /** Ids of the policies that decided: all permits that held, or all forbids that did. */
  readonly decidedBy: readonly string[];
  /** Set when the evaluation itself went wrong; then `allow` is false, whatever the policies say. */
  readonly fault?: string;
}

/** What the check of types does not look at: an entity's id, where its type is named. */
const IDS = /\b(Person|Group|Playbook|Target|Tag)::"[^"]*"/g;

/**
 * Checks policies against the schema, in strict mode, warnings included. One call for many is far cheaper than many calls,
 * and policies that differ only in entities' ids have the same types and are checked once.
 * @throws GlassError `internal`: the text was generated, so it is not a user's mistake.
 */
export function check(policies: readonly Policies[]): void {
  const texts = policies.flatMap((set) => Object.values(set)).map((text) => text.replaceAll(IDS, '$1::"any"'));
  const staticPolicies = Object.fromEntries([...new Set(texts)].map((text, i) => [String(i), text]));
  const checked = wasm.validate({ schema: SCHEMA, policies: { staticPolicies } });
  const faults =
    checked.type === "failure"
      ? checked.errors
      : [...checked.validationErrors, ...checked.validationWarnings].map(({ error }) => error);
  if (faults.length > 0) throw faulty(faults);
}

/** Sets that are parsed at once; the others when they are first needed, which takes a millisecond or two. */
const COMMON = ["ask", "open", "consent"];

/**
 * The function that asks policies whose types were checked.
 * @throws GlassError `internal`, also from the function: the text was generated, so it is not a user's mistake.
 */
export function prepare(policies: Policies): (slice: Slice) => Answer {
  const lent = new Map(COMMON.map((set) => [set, borrow(policies, set)]));
  const ask = (slice: Slice): Answer => {
    const set = SET_OF.get(slice.action);
    if (set === undefined) return { allow: false, decidedBy: [], fault: `there is no action ${slice.action}` };
    let loan = lent.get(set);
    if (loan === undefined) {
      loan = borrow(policies, set);
      lent.set(set, loan);
    }
    return evaluate(loan.name, slice);
  };
  forgotten.register(ask, lent);
  return ask;
}

/** A parsed set. */
interface Loan {
  readonly digest: string;
  /** In the WASM. */
  readonly name: string;
  holders: number;
}

const loans = new Map<string, Loan>();
const free: string[] = [];
let made = 0; // never lent twice at a time: a policy would decide by another's text
const forgotten = new FinalizationRegistry<ReadonlyMap<string, Loan>>((lent) => {
  for (const loan of lent.values()) giveBack(loan);
});

/** How many policy sets are parsed and held. */
export function parsedSets(): number {
  return loans.size;
}

function borrow(policies: Policies, set: string): Loan {
  const wanted = new Set([...SET_OF].flatMap(([action, itsSet]) => (itsSet === set ? [action] : [])));
  const concerned = Object.fromEntries(Object.entries(policies).filter(([, text]) => concerns(text, wanted)));
  const digest = sha256(JSON.stringify(concerned)).toString("hex");
  const known = loans.get(digest);
  if (known !== undefined) {
    known.holders++;
    return known;
  }
  const name = free.pop() ?? `set ${++made}`;
  const answer = wasm.preparsePolicySet(name, { staticPolicies: concerned });
  if (answer.type === "failure") {
    free.push(name);
    throw faulty(answer.errors);
  }
  const loan = { digest, name, holders: 1 };
  loans.set(digest, loan);
  return loan;
}

function giveBack(loan: Loan): void {
  loan.holders--;
  if (loan.holders > 0) return;
  loans.delete(loan.digest);
  wasm.preparsePolicySet(loan.name, { staticPolicies: {} });
  free.push(loan.name);
}

/** Whether a policy names any of these actions in its scope, or none at all. What cannot be told is kept. */
function concerns(text: string, wanted: ReadonlySet<string>): boolean {
  const scope = /^(?:permit|forbid) \([^)]*?, action(?: == | in )(Action::"\w+"|\[[^\]]*\]),/.exec(text)?.[1];
  if (scope === undefined) return true;
  return [...scope.matchAll(/Action::"(\w+)"/g)].some(([, action]) => action !== undefined && wanted.has(action));
}

function evaluate(name: string, { principal, action, resource, context, others = [] }: Slice): Answer {
  // Without the schema: reading each question against it would cost a quarter of the time. Questions are made by typed
  // code, and what is missing or of another type fails in the evaluation, and so is a no.
  const answer = wasm.statefulIsAuthorized({
    ...{ principal: principal.uid, action: { type: "Action", id: action }, resource: resource.uid, context },
    ...{ preparsedPolicySetId: name, validateRequest: false },
    entities: [principal, ...(hasContent(resource) ? [resource] : []), ...others],
  });
  if (answer.type === "failure") return { allow: false, decidedBy: [], fault: messages(answer.errors) };
  const { decision, diagnostics } = answer.response;
  if (diagnostics.errors.length > 0) {
    // Cedar skips a policy that fails; a forbid that is skipped would be a door left open.
    return { allow: false, decidedBy: [], fault: messages(diagnostics.errors.map(({ error }) => error)) };
  }
  return { allow: decision === "allow", decidedBy: diagnostics.reason };
}

/** An entity that is only a name need not be told. */
function hasContent({ attrs, parents }: wasm.EntityJson): boolean {
  return parents.length > 0 || Object.keys(attrs).length > 0;
}

function faulty(errors: readonly wasm.DetailedError[]): GlassError {
  return new GlassError("internal", `Cedar refuses a compiled playbook: ${messages(errors)}`);
}

function messages(errors: readonly wasm.DetailedError[]): string {
  return errors
    .map(({ message }) => message)
    .join("; ")
    .slice(0, 500);
}
