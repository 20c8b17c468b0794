import { sql } from "kysely";
import type { FastifyInstance, FastifyReply } from "fastify";
import type { Access, Observation } from "../access/access.ts";
import { vote } from "../access/approve.ts";
import type { GrantRow } from "../access/lifecycle.ts";
import { pinned } from "../access/pins.ts";
import { whyOf } from "../access/tell.ts";
import type { Clock } from "../core/clock.ts";
import { describe, GlassError, unreachable } from "../core/errors.ts";
import { namesOf } from "../identity/pseudonyms.ts";
import type { LinkClaim, Links } from "../notify/links.ts";
import { LINK_PAGE_HEADERS } from "./link-markup.ts";
import { linkPage, type LinkPage, type RequestView } from "./link-page.ts";
import { UNREADABLE } from "./views.ts";

export interface LinkServices {
  readonly access: Access;
  readonly links: Links;
  readonly clock: Clock;
  readonly warn: (line: string) => void;
}

type Verdict = "approve" | "deny";

const MAX_BODY_BYTES = 256; // `verdict=approve`
const STATUS = { dead: 404, unavailable: 503, ineligible: 403, decide: 200, done: 200 } as const;

/**
 * The pages behind signed links, to be registered with the prefix `/a`. GET and HEAD show and change nothing, whoever
 * fetches them first; POST votes, through the same function as every other vote. The token is the whole authority: there
 * is no cookie and no login, so there is nothing that another site could borrow.
 */
export function linkRoutes(app: FastifyInstance, services: LinkServices): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser(
    "application/x-www-form-urlencoded",
    { parseAs: "string", bodyLimit: MAX_BODY_BYTES },
    (_request, body, done) => done(null, body),
  );
  app.setErrorHandler(async (error, _request, reply) => {
    const status = error instanceof Error && "statusCode" in error ? Number(error.statusCode) : 500;
    if (status >= 400 && status < 500) return answer(reply, { kind: "dead" });
    services.warn(`signed link: ${describe(error)}`);
    return answer(reply, { kind: "unavailable" });
  });
  app.setNotFoundHandler(async (_request, reply) => answer(reply, { kind: "dead" }));

  app.get<{ Params: { "*": string } }>("/*", { schema: { hide: true } }, async (request, reply) => {
    const seen = await look(services, request.params["*"]);
    return answer(reply, seen === undefined ? { kind: "dead" } : seen.page);
  });

  app.post<{ Params: { "*": string }; Body: unknown }>("/*", { schema: { hide: true } }, async (request, reply) => {
    const token = request.params["*"];
    const seen = await look(services, token);
    if (seen === undefined) return answer(reply, { kind: "dead" });
    const verdict = verdictOf(request.body);
    if (verdict === undefined || seen.page.kind !== "decide") return answer(reply, seen.page);
    try {
      await vote(services.access, seen.person, seen.claim.grant, verdict, seen.claim.round);
    } catch (error) {
      if (!(error instanceof GlassError) || (error.code !== "conflict" && error.code !== "policy_denied")) throw error;
      const now = await look(services, token);
      if (now === undefined) return answer(reply, { kind: "dead" });
      const page = now.page.kind === "decide" ? { ...now.page, problem: error.message } : now.page;
      return answer(reply, page, error.status);
    }
    const after = await look(services, token);
    return answer(reply, after === undefined ? { kind: "dead" } : after.page);
  });
}

function verdictOf(body: unknown): Verdict | undefined {
  return body === "verdict=approve" ? "approve" : body === "verdict=deny" ? "deny" : undefined;
}

function answer(reply: FastifyReply, page: LinkPage, status: number = STATUS[page.kind]): FastifyReply {
  return reply.status(status).headers(LINK_PAGE_HEADERS).send(linkPage(page));
}

/** What the link's owner is to see now. @returns undefined for a token that is not good for anything. */
async function look(
  { access, links, clock }: LinkServices,
  token: string,
): Promise<{ claim: LinkClaim; person: string; page: LinkPage } | undefined> {
  const claim = links.read(token, clock.now().getTime());
  if (claim === undefined) return undefined;
  const { store } = access;
  const grant = await store.selectFrom("grants").selectAll().where("id", "=", claim.grant).executeTakeFirst();
  const name = (await namesOf(store, [claim.person]))[claim.person];
  if (grant === undefined || name === undefined) return undefined;
  const page = await pageFor(access, grant, claim, name);
  return { claim, person: name, page };
}

async function pageFor(access: Access, grant: GrantRow, claim: LinkClaim, name: string): Promise<LinkPage> {
  const policy = access.policy();
  const { playbook, requester } = grant;
  // By the name that the link was made for: a name that became somebody's alias is not that person's link.
  const enabled = policy.people.some((person) => person.name === name && person.enabled);
  const reading = policy.decide({ action: "read_grant", person: name, playbook, requester });
  if (!enabled || !reading.allow) return { kind: "ineligible", reasons: [] };

  const votes = await access.store
    .selectFrom("approvals")
    .select(["person", "verdict"])
    .where("grant_id", "=", grant.id)
    .where("round", "=", claim.round)
    .orderBy("at")
    .execute();
  const { now } = await access.store.selectNoFrom(sql<Date>`clock_timestamp()`.as("now")).executeTakeFirstOrThrow();
  const approvedBy = votes.filter((vote) => vote.verdict === "approve").map((vote) => vote.person);
  const request = await requestOf(access, grant, { claim, person: name, saidYes: approvedBy, now });
  const mine = votes.find((vote) => vote.person === name)?.verdict;
  if (mine !== undefined) return { kind: "done", ...afterMine(grant, request, mine), request };
  const waits =
    claim.round === 0 ? grant.state === "pending" : grant.state === "active" && grant.extension_round === claim.round;
  if (!waits) return { kind: "done", ...afterOthers(grant, request), request };
  if (request.decideBy <= now) return { kind: "done", ...tooLate(request), request };
  if (policy.playbook(playbook)?.hash !== grant.playbook_hash) {
    const text = `Ask ${requester} to break the glass again.`;
    return { kind: "done", tone: "over", title: "The playbook changed after the request", text, commands: [], request };
  }
  const ageMs = claim.round === 0 ? Math.max(0, now.getTime() - grant.created_at.getTime()) : 0;
  const deciding = policy.decide({ action: "approve", person: name, playbook, requester, ageMs, approvedBy });
  return deciding.allow ? { kind: "decide", request } : { kind: "ineligible", reasons: deciding.reasons };
}

type Ending = Omit<Extract<LinkPage, { kind: "done" }>, "kind" | "request">;

function afterMine(grant: GrantRow, request: RequestView, mine: Verdict): Ending {
  const { requester, target, need, saidYes, extension } = request;
  if (mine === "deny") {
    const text = extension
      ? `The access of ${requester} ends when it was to end.`
      : `The request of ${requester} is over.`;
    return { tone: "no", title: "You said no", text, commands: [] };
  }
  if (grant.state === "pending") {
    const missing = Math.max(1, need - saidYes.length);
    const text = `${missing} more ${missing === 1 ? "person has" : "people have"} to agree before ${target} opens.`;
    return { tone: "yes", title: "Your yes is counted", text, commands: [`glass status ${grant.id}`] };
  }
  if (grant.end_cause !== null) return { ...afterOthers(grant, request), title: "You said yes" };
  const stop = [`glass status ${grant.id}`, `glass end ${grant.id}`];
  const text = extension
    ? `The end of the access of ${requester} to ${target} moves, once everybody who must agree has.`
    : `${target} opens for ${requester} until ${untilOf(grant)}. You can end it at any time.`;
  return { tone: "yes", title: "You said yes", text, commands: stop };
}

function afterOthers(grant: GrantRow, request: RequestView): Ending {
  const { requester, target, saidYes } = request;
  const ending = (tone: Ending["tone"], title: string, text: string): Ending => ({
    ...{ tone, title, text },
    commands: [`glass status ${grant.id}`],
  });
  const by = saidYes.length === 0 ? "" : `${saidYes.join(", ")} said yes. `;
  switch (grant.state) {
    case "pending":
      return ending("over", "There is nothing to decide", "Somebody else was faster, or it was taken back.");
    case "denied":
      return ending(
        "no",
        "Somebody else said no",
        `${grant.ended_by ?? "Somebody"} denied the request of ${requester}.`,
      );
    case "withdrawn":
      return ending("over", "The request was taken back", `${requester} does not ask for it any more.`);
    case "timed_out":
      return tooLate(request);
    case "failed":
      return ending("over", "The request failed", grant.end_text ?? `${target} was not opened.`);
    case "approved":
    case "opening":
    case "active":
      return request.extension
        ? ending(
            "over",
            "The extension is decided",
            `Somebody else was faster. ${target} is open until ${untilOf(grant)}.`,
          )
        : ending(
            "yes",
            "Somebody else was faster",
            grant.opened_unanswered
              ? `Nobody answered, so ${target} opened by itself until ${untilOf(grant)}.`
              : `${by}${target} is open for ${requester} until ${untilOf(grant)}.`,
          );
    case "closing":
    case "closed":
    case "reviewed":
      return ending("over", "It is over", `${by}The access of ${requester} to ${target} has ended.`);
    default:
      return unreachable(grant.state);
  }
}

function tooLate({ requester, extension }: RequestView): Ending {
  const text = extension
    ? `The access of ${requester} has ended.`
    : `Nobody decided in time. ${requester} can break the glass again.`;
  return { tone: "over", title: "Too late", text, commands: [] };
}

function untilOf(grant: GrantRow): string {
  return grant.ends_at === null ? "its end" : `${grant.ends_at.toISOString().slice(11, 16)} UTC`;
}

async function requestOf(
  access: Access,
  grant: GrantRow,
  about: { claim: LinkClaim; person: string; saidYes: readonly string[]; now: Date },
): Promise<RequestView> {
  const { playbook } = await pinned(access.store, grant.playbook_hash);
  const why = whyOf(access, grant) ?? UNREADABLE;
  const extension = about.claim.round > 0;
  return {
    ...{ grant: grant.id, requester: grant.requester, person: about.person, playbook: grant.playbook, why },
    ...{ summary: playbook.summary, target: grant.target, kind: grant.kind, scope: playbook.scope },
    ...{ reason: grant.reason, reasonMeans: access.policy().reasons.get(grant.reason) },
    incident: grant.incident ?? undefined,
    evidence: grant.evidence as unknown as readonly Observation[],
    quorum: grant.quorum as unknown as readonly string[],
    ...{ need: Math.max(1, grant.need), saidYes: about.saidYes, extension, now: about.now },
    durationMs: extension ? (playbook.time.extend?.byMs ?? 0) : grant.duration_ms,
    askedAt: grant.created_at,
    decideBy: (extension ? grant.ends_at : grant.decide_by) ?? grant.decide_by,
  };
}
