import {
  eraseAnswer,
  eraseRequest,
  type HoldView,
  holdList,
  holdParams,
  holdRequest,
  holdView,
  params,
} from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
import { GlassError } from "../core/errors.ts";
import { isId } from "../core/ids.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { GrantVerb } from "../playbooks/policy.ts";
import type { Doer, Hold } from "../recording/retention.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

/** What the API needs of retention. Made in main.ts. */
export interface RetentionApi {
  /** The installation's own time; undefined: for ever. */
  readonly keepMs: number | undefined;
  hold(doer: Doer, on: { grant: string; session?: string | undefined; why: string }): Promise<string>;
  release(doer: Doer, hold: string): Promise<void>;
  holds(which: { hold?: string; lifted?: boolean }): Promise<readonly Hold[]>;
  erase(doer: Doer, what: { session: string; why: string }): Promise<void>;
}

/** Holds on recordings, and erasure. Both are told to the log; the words are not. */
export function retentionRoutes(app: Routes, api: Api): void {
  const { access } = api;

  /** @returns who does it. Whoever may not even see the grant learns nothing of it. */
  const permit = async (action: GrantVerb, person: string, grant: string, what: string): Promise<Doer> => {
    const row = await access.store
      .selectFrom("grants")
      .select(["playbook", "requester"])
      .where("id", "=", grant)
      .executeTakeFirst();
    const policy = access.policy();
    const decision = row === undefined ? undefined : policy.decide({ action, person, ...row });
    if (decision?.allow === true) {
      const name = policy.person(person)?.name ?? person;
      return { person: name, actor: await pseudonymOf(access.store, name) };
    }
    if (row !== undefined && decision !== undefined && policy.decide({ action: "read_grant", person, ...row }).allow)
      throw denied(decision);
    throw new GlassError("not_found", `there is no ${what}`, { next: "`glass sessions` lists those you may see." });
  };

  const grantOf = async (session: string): Promise<string> => {
    const row = await access.store
      .selectFrom("sessions")
      .select("grant_id")
      .where("id", "=", session)
      .executeTakeFirst();
    return row?.grant_id ?? "";
  };

  const one = async (hold: string): Promise<Hold | undefined> => (await api.retention.holds({ hold, lifted: true }))[0];

  app.get(
    "/v1/holds",
    {
      schema: {
        summary: "Holds on recordings, newest first",
        querystring: z.object({ lifted: z.enum(["true", "false"]).optional().describe("Also those that are lifted") }),
        response: answers(holdList),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const decision = access.policy().decide({ action: "read_holds", person });
      if (!decision.allow) throw denied(decision);
      const holds = await api.retention.holds({ lifted: request.query.lifted === "true" });
      return { holds: holds.map(viewOf), keepMs: api.retention.keepMs ?? null };
    },
  );

  app.post(
    "/v1/holds",
    {
      schema: {
        summary: "Keep a recording from being erased, whatever its age",
        body: holdRequest,
        response: answers(holdView),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const { id, why } = request.body;
      const session = isId("session", id) ? id : undefined;
      const grant = session === undefined ? id : await grantOf(session);
      const doer = await permit(
        "hold_recording",
        person,
        grant,
        session === undefined ? `grant ${id}` : `session ${id}`,
      );
      const hold = await one(await api.retention.hold(doer, { grant, session, why }));
      if (hold === undefined) throw new GlassError("internal", "the hold is not there");
      return viewOf(hold);
    },
  );

  app.post(
    "/v1/holds/:hold/release",
    { schema: { summary: "Lift a hold", params: holdParams, response: answers(holdView) } },
    async (request) => {
      const { person } = await personOf(api, request);
      const { hold } = request.params;
      const doer = await permit("release_hold", person, (await one(hold))?.grant ?? "", `hold ${hold}`);
      await api.retention.release(doer, hold);
      const lifted = await one(hold);
      if (lifted === undefined) throw new GlassError("internal", "the hold is not there");
      return viewOf(lifted);
    },
  );

  app.post(
    "/v1/sessions/:session/erase",
    {
      schema: {
        summary: "Destroy the key of a recording, for ever; its chunks stay and still match the log",
        params: params.session,
        body: eraseRequest,
        response: answers(eraseAnswer),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const { session } = request.params;
      const doer = await permit("erase_recording", person, await grantOf(session), `session ${session}`);
      await api.retention.erase(doer, { session, why: request.body.why });
      const { chunks } = await access.store
        .selectFrom("chunks")
        .select((eb) => eb.fn.countAll<number>().as("chunks"))
        .where("session", "=", session)
        .executeTakeFirstOrThrow();
      return { session, chunks };
    },
  );
}

function viewOf({ heldAt, releasedAt, ...hold }: Hold): HoldView {
  return { ...hold, heldAt: heldAt.toISOString(), releasedAt: releasedAt?.toISOString() ?? null };
}
