import type { FastifyReply } from "fastify";
import { denied } from "../access/request.ts";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Api } from "./services.ts";

/** Whoever loses the right to read sees no more than this of it. */
export const CHECK_MS = 3_000;

/** @throws GlassError `forbidden`, or `not_found` for who may not know that there is such a session. */
export async function permit(
  api: Api,
  session: string,
  person: string,
  action: "read_recording" | "watch_session",
): Promise<{ grant: string; target: string; playbook: string }> {
  const row = await api.access.store
    .selectFrom("sessions")
    .innerJoin("grants", "grants.id", "sessions.grant_id")
    .select(["grants.id as grant", "grants.target", "grants.playbook", "grants.requester"])
    .where("sessions.id", "=", session)
    .executeTakeFirst();
  if (row !== undefined) {
    const { grant, target, playbook, requester } = row;
    const policy = api.access.policy();
    const decision = policy.decide({ action, person, playbook, requester });
    if (decision.allow) return { grant, target, playbook };
    if (policy.decide({ action: "read_grant", person, playbook, requester }).allow) throw denied(decision);
  }
  throw new GlassError("not_found", `there is no session ${session}`, {
    next: "`glass sessions` lists those you may see.",
  });
}

/** The log's entry about a reading, committed before anything of it is shown. */
export async function noteRead(
  { access, clock }: Api,
  person: string,
  about: { session?: string; grant?: string; target?: string; playbook?: string },
  data: JsonObject,
): Promise<void> {
  await access.store.transaction().execute(async (trx) => {
    const actor = await pseudonymOf(trx, person);
    await append(trx, { type: "recording.read", at: clock.now(), actor, ...about, data });
  });
}

/** Aborts when all was sent, or the client has left; it may have left already. */
export function whenGone(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  const leave = (): void => gone.abort(new GlassError("server_unreachable", "the reader left"));
  if (reply.raw.destroyed) leave();
  else reply.raw.once("close", leave);
  return gone.signal;
}
