import type { FastifyReply } from "fastify";
import { denied } from "../access/request.ts";
import { append } from "../audit/append.ts";
import { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { Api } from "./services.ts";

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

/** Aborts when the client has left. */
export function whenGone(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once("close", () => gone.abort(new Error("the reader left")));
  return gone.signal;
}
