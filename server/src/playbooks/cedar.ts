import * as wasm from "@cedar-policy/cedar-wasm/nodejs";
import { sha256 } from "../core/bytes.ts";
import { GlassError } from "../core/errors.ts";
import { GRANT_VERBS, INSTALLATION_VERBS } from "./verbs.ts";

/**
 * The only file that speaks to Cedar (https://docs.cedarpolicy.com). Policies are texts by id; a decision names ids.
 *
 * The WASM keeps parsed policy sets by name and for ever. Names here are digests of the content: a policy that is replaced
 * keeps deciding by its own text as long as somebody holds it, and the same content is parsed once.
 */

const USE_CONTEXT = "oncall: Set<String>, oncallUnknown: Set<String>, approvers: Long, approvals: Long";
const REQUEST_CONTEXT = `${USE_CONTEXT}, reason: String, durationMs: Long`;
const EXTENSION_CONTEXT = `${USE_CONTEXT}, reason: String, byMs: Long, totalMs: Long, extensions: Long`;

/**
 * Action groups: `verb` is everything that a person can do; `ask` and `act` are the two moments of using a playbook.
 * `match_who` and `match_from` are no verbs: they only tell, after a no, which alternatives a person meets.
 */
const SCHEMA = `
entity Group;
entity Person in [Group] { enabled: Bool, roles: Set<String> };
entity Playbook;
entity Grant in [Playbook] { requester: Person };
entity Installation;
action verb;
action ask in [verb];
action act in [verb];
action list in [ask] appliesTo { principal: [Person], resource: [Playbook], context: { ${USE_CONTEXT} } };
action request in [ask] appliesTo { principal: [Person], resource: [Playbook], context: { ${REQUEST_CONTEXT} } };
action open in [act] appliesTo { principal: [Person], resource: [Playbook], context: { ${REQUEST_CONTEXT} } };
action request_extension in [ask] appliesTo { principal: [Person], resource: [Grant], context: { ${EXTENSION_CONTEXT} } };
action extend in [act] appliesTo { principal: [Person], resource: [Grant], context: { ${EXTENSION_CONTEXT} } };
action match_who appliesTo { principal: [Person], resource: [Playbook], context: { ${USE_CONTEXT} } };
action match_from appliesTo { principal: [Person], resource: [Playbook], context: {} };
action approve, deny in [verb] appliesTo { principal: [Person], resource: [Grant], context: { ageMs: Long, already: Bool } };
action ${Object.keys(GRANT_VERBS).join(", ")} in [verb] appliesTo { principal: [Person], resource: [Grant], context: {} };
action ${Object.keys(INSTALLATION_VERBS).join(", ")} in [verb] appliesTo { principal: [Person], resource: [Installation], context: {} };
`;

const SCHEMA_NAME = `glasskey-${sha256(SCHEMA).toString("hex").slice(0, 32)}`;

/** Policies by id. */
export type Policies = Readonly<Record<string, string>>;

export interface Slice {
  readonly principal: wasm.EntityJson;
  readonly action: string;
  readonly resource: wasm.EntityJson;
  readonly context: wasm.Context;
}

export interface Answer {
  readonly allow: boolean;
  /** Ids of the policies that decided: all permits that held, or all forbids that did. */
  readonly decidedBy: readonly string[];
  /** Set when the evaluation itself went wrong; then `allow` is false, whatever the policies say. */
  readonly fault?: string;
}

/**
 * Checks policies against the schema, in strict mode, warnings included. One call for many is far cheaper than many calls.
 * @throws GlassError `internal`: the text was generated, so it is not a user's mistake.
 */
export function check(policies: Policies): void {
  const checked = wasm.validate({ schema: SCHEMA, policies: { staticPolicies: policies } });
  const faults =
    checked.type === "failure"
      ? checked.errors
      : [...checked.validationErrors, ...checked.validationWarnings].map(({ error }) => error);
  if (faults.length > 0) throw faulty(faults);
  const schema = wasm.preparseSchema(SCHEMA_NAME, SCHEMA);
  if (schema.type === "failure") throw faulty(schema.errors);
}

/** Parses policies that were checked, keeps them, and gives the function that asks them. @throws GlassError `internal`. */
export function prepare(policies: Policies): (slice: Slice) => Answer {
  const name = sha256(SCHEMA_NAME, JSON.stringify(policies)).toString("hex").slice(0, 32);
  const parsed = wasm.preparsePolicySet(name, { staticPolicies: policies });
  if (parsed.type === "failure") throw faulty(parsed.errors);
  return (slice) => evaluate(name, slice);
}

function evaluate(name: string, { principal, action, resource, context }: Slice): Answer {
  const answer = wasm.statefulIsAuthorized({
    ...{ principal: principal.uid, action: { type: "Action", id: action }, resource: resource.uid, context },
    ...{ preparsedPolicySetId: name, preparsedSchemaName: SCHEMA_NAME, validateRequest: true },
    entities: [principal, resource],
  });
  if (answer.type === "failure") return { allow: false, decidedBy: [], fault: messages(answer.errors) };
  const { decision, diagnostics } = answer.response;
  if (diagnostics.errors.length > 0) {
    // Cedar skips a policy that fails; a forbid that is skipped would be a door left open.
    return { allow: false, decidedBy: [], fault: messages(diagnostics.errors.map(({ error }) => error)) };
  }
  return { allow: decision === "allow", decidedBy: diagnostics.reason };
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
