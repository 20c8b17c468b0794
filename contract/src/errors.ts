/**
 * Every error Glasskey can answer, once: HTTP status, the command line's exit code, and what it means.
 * docs/errors.md lists the same codes; a test keeps the two in step.
 */
export const ERRORS = {
  usage: { status: 400, exit: 2, means: "The request or the command is not well-formed." },
  config_invalid: { status: 500, exit: 2, means: "glasskey.yaml or a policy file does not say what it must." },
  unauthenticated: { status: 401, exit: 1, means: "No valid token, or a wrong name or secret." },
  too_many_attempts: { status: 429, exit: 1, means: "Too many failed attempts; wait before the next." },
  forbidden: { status: 403, exit: 3, means: "The caller's roles do not include this verb." },
  policy_denied: { status: 403, exit: 3, means: "The playbook does not allow this request." },
  not_found: { status: 404, exit: 1, means: "No such object, or none the caller may see." },
  conflict: { status: 409, exit: 1, means: "The object has moved on; the transition is no longer legal." },
  waiting_for_human: { status: 409, exit: 4, means: "The grant waits for an approval." },
  grant_over: { status: 410, exit: 1, means: "The grant has ended; break the glass again." },
  not_proved: { status: 503, exit: 5, means: "Revocation is not proved yet; Glasskey keeps trying." },
  target_unreachable: { status: 502, exit: 1, means: "The target did not answer, or refused Glasskey's own login." },
  target_untrusted: {
    status: 502,
    exit: 1,
    means: "The target is not the one that its file describes: another host key or certificate. Nothing is sent to it.",
  },
  target_unfit: { status: 502, exit: 1, means: "The target lacks what a lease needs; see `glass target check`." },
  recording_unavailable: { status: 503, exit: 1, means: "The recording cannot be written, so nothing is opened." },
  store_unavailable: { status: 503, exit: 1, means: "The store does not answer." },
  out_of_scope: { status: 403, exit: 3, means: "The statement is outside the grant's scope." },
  erased: { status: 410, exit: 1, means: "The recording was erased; the log still proves that it was there." },
  integrity: { status: 500, exit: 1, means: "The log, a checkpoint or a recording does not verify." },
  server_unreachable: { status: 503, exit: 1, means: "The command line could not reach the Glasskey server." },
  internal: { status: 500, exit: 1, means: "A defect in Glasskey; the server's output has the details." },
} as const satisfies Record<string, { status: number; exit: 1 | 2 | 3 | 4 | 5; means: string }>;

export type ErrorCode = keyof typeof ERRORS;

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === "string" && Object.hasOwn(ERRORS, value);
}
