import { z } from "zod";
import { ERRORS, type ErrorCode } from "./errors.ts";

/** The HTTP API, version 1. Times are ISO 8601 in UTC, durations milliseconds, sizes bytes. */

const time = z.iso.datetime().describe("ISO 8601, UTC");
const grantId = z.string().regex(/^gr_[0-9a-hjkmnp-tv-z]{12}$/, "is not a grant id such as gr_7kq2m9x4tbzc");
const sessionId = z.string().regex(/^se_[0-9a-hjkmnp-tv-z]{12}$/, "is not a session id such as se_7kq2m9x4tbzc");
const name = z.string().min(1).max(64);
const oneLine = (max: number): z.ZodString =>
  z
    .string()
    .max(max)
    .regex(/^[^\p{Cc}\p{Cs}]*$/u, "has control characters");

export const ROLES = ["requester", "approver", "security_officer", "auditor", "admin"] as const;
export type Role = (typeof ROLES)[number];

export const GRANT_STATES = [
  ...(["pending", "approved", "opening", "active", "closing", "closed", "reviewed"] as const),
  ...(["denied", "withdrawn", "timed_out", "failed"] as const),
] as const;
export type GrantState = (typeof GRANT_STATES)[number];

export const errorBody = z.object({
  error: z.object({
    code: z.enum(Object.keys(ERRORS) as [ErrorCode, ...ErrorCode[]]),
    message: z.string(),
    next: z.string().optional().describe("What to do about it"),
    details: z.record(z.string(), z.unknown()).optional(),
  }),
});
export type ErrorBody = z.infer<typeof errorBody>;

// -------------------------------------------------------------------------------------------------- people

export const loginRequest = z.strictObject({ name, secret: z.string().min(1).max(256) });
export const loginAnswer = z.object({ token: z.string(), person: z.string(), expiresAt: time });
export const whoami = z.object({
  person: z.string(),
  roles: z.array(z.enum(ROLES)),
  groups: z.array(z.string()),
  expiresAt: time.describe("When the token that asked ends"),
});
export type Whoami = z.infer<typeof whoami>;

// -------------------------------------------------------------------------------------------------- playbooks

export const playbookView = z.object({
  playbook: z.string(),
  summary: z.string(),
  target: z.string(),
  kind: z.string(),
  may: z.boolean().describe("Whether the caller may break this glass now"),
  need: z.number().int().describe("Approvals that it would take now"),
  quorum: z
    .array(z.string())
    .describe("Why it takes more approvals than usual, and what ends that; empty where it does not"),
  incident: z
    .array(z.string())
    .describe("Severities, one of which a named, open incident must have; empty: none is asked for"),
  unknown: z.array(z.string()).describe("What nobody can tell now, so that a human has to agree"),
  hours: z.string().nullable().describe("When it may be used, in words; null: at any time"),
  unanswered: z
    .object({ afterMs: z.number().int(), forMs: z.number().int() })
    .nullable()
    .describe("Whether it opens by itself when nobody answers, and for how long at most"),
  reasons: z.array(z.string()).describe("Where not: why not, and what would have to be true"),
  reasonCodes: z.array(z.string()),
  maxMs: z.number().int(),
  promises: z.object({ nativeExpiry: z.string(), killsLiveSessions: z.boolean(), worstCaseRevokeMs: z.number() }),
});
export type PlaybookView = z.infer<typeof playbookView>;

// -------------------------------------------------------------------------------------------------- grants

export const breakRequest = z.strictObject({
  playbook: name,
  reason: name.describe("One of the playbook's reason codes"),
  why: z
    .string()
    .trim()
    .min(3, "is too short: say in a few words what is broken")
    .max(2000, "is too long: 2,000 characters are enough")
    .regex(/^(?:[^\p{Cc}\p{Cs}]|[\n\r\t])*$/u, "has control characters")
    .describe("In the requester's own words"),
  incident: oneLine(200).optional(),
  forMs: z.number().int().positive().optional().describe("Default: the playbook's max"),
});
export type BreakRequest = z.infer<typeof breakRequest>;

export const evidence = z.object({ asked: z.string(), answered: z.string() });

export const proofView = z.object({
  provedAt: time,
  leases: z.array(z.object({ lease: z.string(), name: z.string(), deadFrom: time, evidence: z.array(evidence) })),
  drift: z
    .object({ known: z.boolean(), added: z.array(z.string()), removed: z.array(z.string()) })
    .describe("How the target's access state differs from before; `known: false` where it could not be compared"),
});
export type ProofView = z.infer<typeof proofView>;

export const observationView = z
  .object({
    fact: z.string().describe("`oncall:ROTA` or `incident:REF`"),
    value: z.enum(["true", "false", "unknown"]),
    severity: z.string().optional(),
    source: z.string(),
    observedAt: z.string().describe("When the source itself was asked, ISO 8601"),
    ageMs: z.number().describe("How old it was at the request"),
    detail: z.string().optional().describe("Where unknown: why"),
  })
  .describe("One fact that the request stood on");
export type ObservationView = z.infer<typeof observationView>;

export const reviewView = z.object({
  grant: z.string(),
  playbook: z.string(),
  requester: z.string(),
  openedAt: time,
  dueAt: time,
  overdue: z.boolean(),
  signedAt: time.nullable(),
  signedBy: z.string().nullable(),
  verdict: z.enum(["justified", "not_justified"]).nullable(),
  note: z.string().nullable(),
});
export type ReviewView = z.infer<typeof reviewView>;

export const approvalView = z.object({ person: z.string(), verdict: z.enum(["approve", "deny"]), at: time });

export const sessionView = z.object({
  session: z.string(),
  grant: z.string(),
  person: z.string(),
  target: z.string(),
  remoteAddress: z.string(),
  client: z.record(z.string(), z.unknown()),
  openedAt: time,
  closedAt: time.nullable(),
  cause: z.string().nullable(),
  detail: z.string().nullable(),
  statements: z.number().int(),
  refused: z.number().int(),
  bytesIn: z.number().int(),
  bytesOut: z.number().int(),
  recordingComplete: z.boolean(),
});
export type SessionView = z.infer<typeof sessionView>;

export const grantView = z.object({
  grant: z.string(),
  state: z.enum(GRANT_STATES),
  playbook: z.string(),
  playbookHash: z.string(),
  target: z.string(),
  kind: z.string(),
  mayDo: z
    .array(z.string())
    .describe("The scope that is decided upon, as it was at the request: one line for each key"),
  requester: z.string(),
  reason: z.string(),
  why: z.string(),
  incident: z.string().nullable(),
  bundle: z.string().nullable().describe("Hash of the policy bundle at the request"),
  evidence: z.array(observationView),
  need: z.number().int().describe("Approvals needed; while it waits, by the policy and the use of this moment"),
  missing: z.number().int().describe("While it waits: how many of them are missing; yeses that no longer count are"),
  quorum: z.array(z.string()).describe("Why it needs more approvals than usual; empty where it does not"),
  sidesMissing: z.array(z.string()).describe("While it waits: sides that nobody has spoken for"),
  paged: z.boolean().describe("While it waits: whether a channel that wakes people confirmed the call"),
  unansweredAt: time
    .nullable()
    .describe("While it waits: when it may open without an answer; at the earliest, while `paged` is false"),
  openedUnanswered: z.boolean(),
  extensionWanted: z.boolean(),
  approvals: z.array(approvalView),
  forMs: z.number().int(),
  createdAt: time,
  decideBy: time,
  approvedAt: time.nullable(),
  endsAt: time.nullable(),
  activeAt: time.nullable(),
  closedAt: time.nullable(),
  endCause: z.string().nullable(),
  endText: z.string().nullable(),
  gateway: z
    .object({ host: z.string(), port: z.number().int() })
    .nullable()
    .describe("While it is open: where clients of its kind connect, with the grant as the user's name"),
  mayApprove: z.array(z.string()).describe("While it waits: people whose approval would still count"),
  lastError: z.string().nullable().describe("While opening or closing: what the target answered last"),
  attempts: z.number().int(),
  proof: proofView.nullable(),
  review: reviewView.nullable().describe("The look back on it; null for a grant that was never open"),
});
export type GrantView = z.infer<typeof grantView>;

export const endRequest = z.strictObject({ waitMs: z.number().int().min(0).max(120_000).optional() });
export const killRequest = z.strictObject({ id: z.union([grantId, sessionId]), why: oneLine(500).optional() });
export const killAnswer = z.object({ id: z.string(), sessionsCut: z.number().int(), grant: grantView });
export type KillAnswer = z.infer<typeof killAnswer>;

// -------------------------------------------------------------------------------------------------- reviews and reports

export const reviewList = z.object({
  reviews: z
    .array(
      reviewView.extend({ target: z.string(), reason: z.string(), state: z.enum(GRANT_STATES), maySign: z.boolean() }),
    )
    .describe("Waiting for a signature, the most overdue first"),
});
export type ReviewList = z.infer<typeof reviewList>;

export const momentView = z.object({
  at: time,
  type: z.string(),
  index: z.number().int().describe("Of the entry in the log"),
  text: z.string(),
});

export const reviewAnswer = z.object({
  grant: grantView,
  maySign: z.boolean(),
  sessions: z.array(sessionView),
  timeline: z.array(momentView),
  complete: z.boolean().describe("False where the story is too long for one answer; the log has it all"),
});
export type ReviewAnswer = z.infer<typeof reviewAnswer>;

export const signRequest = z.strictObject({
  verdict: z.enum(["justified", "not_justified"]),
  note: z
    .string()
    .trim()
    .min(3, "is too short: say in a few words what you looked at")
    .max(2000, "is too long: 2,000 characters are enough")
    .regex(/^(?:[^\p{Cc}\p{Cs}]|[\n\r\t])*$/u, "has control characters")
    .describe("In the signer's own words; kept encrypted"),
});

export const reportView = z.object({
  from: time,
  to: time,
  reasons: z.array(
    z.object({ code: z.string(), means: z.string().nullable(), uses: z.number().int(), requests: z.number().int() }),
  ),
  playbooks: z.array(
    z.object({
      playbook: z.string(),
      uses: z.number().int(),
      requests: z.number().int(),
      notJustified: z.number().int(),
      unsigned: z.number().int(),
      overdue: z.number().int(),
    }),
  ),
  requests: z.object({
    total: z.number().int(),
    denied: z.number().int(),
    withdrawn: z.number().int(),
    timedOut: z.number().int(),
    failed: z.number().int(),
    openedAtOnce: z.number().int(),
    openedUnanswered: z.number().int(),
  }),
  approvals: z.object({ given: z.number().int(), denied: z.number().int() }),
  medianApproveMs: z.number().int().nullable(),
  overdueReviews: z.array(z.object({ grant: z.string(), playbook: z.string(), dueAt: time })),
});
export type ReportView = z.infer<typeof reportView>;

// -------------------------------------------------------------------------------------------------- recordings

export const recordView = z
  .object({ seq: z.number().int(), at: time, kind: z.string() })
  .catchall(z.unknown())
  .describe("One record of a session's recording; raw bytes are base64 in `bytes`");

// -------------------------------------------------------------------------------------------------- targets

export const checkView = z.object({
  check: z.string(),
  ok: z.boolean(),
  detail: z.string(),
  fix: z.string().optional(),
});
export const targetCheck = z.object({
  target: z.string(),
  kind: z.string(),
  playbook: z.string().nullable(),
  checks: z.array(checkView),
});
export type TargetCheck = z.infer<typeof targetCheck>;

export const alarmList = z.object({
  alarms: z.array(z.object({ alarm: z.string(), text: z.string(), raisedAt: time })),
});
export type AlarmList = z.infer<typeof alarmList>;

export const params = { grant: z.object({ grant: grantId }), session: z.object({ session: sessionId }) };
