/**
 * Every kind of entry the log can hold, once, with the sentence that says what it tells. The list is closed: an entry
 * of another type is refused, and an auditor can read it as the index of what Glasskey claims to write down.
 *
 * An entry's fields (all of them pseudonymous ids, names from reviewed files, numbers, hashes; never free text):
 * `v` 1, `type`, `at` (RFC 3339, milliseconds, Z), `actor` (`pe_…`, or `glasskey` for itself), and where they apply
 * `grant`, `session`, `lease`, `target`, `playbook` and `data`.
 */
export const EVENTS = {
  "grant.requested":
    "A person asked for a playbook; `data` has the reason code, the duration, the hashes of playbook and bundle, and the evidence with source and age.",
  "grant.refused": "A person asked for a playbook that did not allow it; `data` has the clauses that failed.",
  "grant.approved":
    "The request has what it needs: enough approvals, a playbook that needs none, or (`data.unanswered`) a call that nobody answered.",
  "grant.denied": "An approver said no; the grant is over.",
  "grant.withdrawn": "The requester took the request back.",
  "grant.timed_out": "Nobody decided before the deadline.",
  "grant.opening": "Eligibility was checked again, and the connector began to mint.",
  "grant.active": "The credential was probed; the way in is open until the time in `data`.",
  "grant.extension_requested": "The requester asked for a later end; it needs approvals of its own.",
  "grant.extended": "A new decision moved the end of the grant.",
  "grant.closing": "The way in is closed for new sessions and removal began; `data` says why.",
  "grant.closed": "Absence was proved on the target; `data` has the evidence.",
  "grant.failed": "The grant ended without ever opening.",
  "grant.reviewed": "Somebody other than the requester signed the review.",
  "approval.given": "A person approved a grant.",
  "approval.denied": "A person refused a grant.",
  "review.opened": "A use began, and somebody has to look back on it; `data` has the time by which.",
  "review.overdue": "Nobody signed the review in time; the playbook needs a quorum until somebody does.",
  "review.signed": "Somebody other than the requester looked back on a grant; `data` has the verdict.",
  "notice.delivered":
    "A channel confirmed that it delivered a notice; `data` has the channel, the event and the receipt's hash.",
  "notice.given_up":
    "A notice could not be delivered before it lost its meaning; `data` has the channel and the event.",
  "lease.planned": "A credential's names and remote ids were written down, before anything was done on the target.",
  "lease.minting": "The connector is about to create the credential on the target.",
  "lease.minted": "The target has the credential.",
  "lease.fenced": "The target accepts no new login with the credential.",
  "lease.revoked": "Sessions were killed and the credential removed on the target.",
  "lease.confirmed": "The target itself was asked, and the credential is gone; `data` has the evidence.",
  "lease.failed": "A step towards removal failed; it will be tried again, for ever.",
  "lease.orphan_found": "The target has a credential in this installation's name that no lease accounts for.",
  "lease.orphan_removed": "That credential was removed, and its absence proved.",
  "session.opened": "A connection through the gateway began under a grant.",
  "session.refused": "A connection was refused; `data` says why.",
  "session.closed": "A connection ended; `data` has the cause and the counts.",
  "session.killed": "A person or a rule cut a connection.",
  "recording.sealed":
    "A chunk of a session's recording is final; `data` has `chunk` (its number from 0), `sha256` (hex) and `bytes` of the encrypted file.",
  "recording.read":
    "A person read a recording; `data` has how: replay, export, chunk, watch or search, and for a search how many sessions were looked through.",
  "recording.held": "A recording may not be erased from now on, whatever its age; `data` has the hold.",
  "recording.released": "A hold on a recording is lifted; `data` has the hold.",
  "recording.erased":
    "The key of a recording is destroyed: its chunks stay and still match the log, and nobody reads them again. `data` says by which rule.",
  "recording.journal_lost":
    "An operator declared a journal lost: what was in it and not sealed is gone. `data` has how many sessions it ended.",
  "login.succeeded": "A person logged in to Glasskey.",
  "login.failed": "A login was refused.",
  "policy.loaded":
    "A bundle of targets, playbooks and people is in force; `data` has its hash, source, commit, author, signer, and who gained and lost by it.",
  "policy.rejected": "A bundle was refused; what was in force stays so. `data` says why, and which commit it was.",
  "evidence.received": "A source pushed a fact, signed; `data` has source and fact.",
  "evidence.refused": "A push of a fact was refused; `data` says why.",
  "access.drift": "A target's access state after a grant differs from before; `data` has the fingerprints.",
  "alarm.raised": "Something needs a human.",
  "alarm.cleared": "What raised the alarm is over.",
  "server.started": "A Glasskey process began to work on this store.",
  "server.stopped": "A Glasskey process ended in good order.",
  "log.key_added": "A further key may sign checkpoints from now on; `data` has its verifier key.",
  "log.key_retired": "A key signs no more checkpoints from here on; `data` has its verifier key.",
} as const satisfies Record<string, string>;

export type EventType = keyof typeof EVENTS;

export function isEventType(value: unknown): value is EventType {
  return typeof value === "string" && Object.hasOwn(EVENTS, value);
}
