import { sessionView } from "@glasskey/contract";
import { z } from "zod";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";
import { sessionViewOf } from "./views.ts";

const LIST_LIMIT = 200;

export function sessionRoutes(app: Routes, api: Api): void {
  const { access } = api;

  app.get(
    "/v1/sessions",
    {
      schema: {
        summary: "Sessions that the caller may see, newest first",
        querystring: z.object({ grant: z.string().max(32).optional(), open: z.enum(["true", "false"]).optional() }),
        response: answers(z.object({ sessions: z.array(sessionView) })),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const policy = access.policy();
      let query = access.store
        .selectFrom("sessions")
        .innerJoin("grants", "grants.id", "sessions.grant_id")
        .selectAll("sessions")
        .select(["grants.target", "grants.playbook", "grants.requester"])
        .orderBy("sessions.opened_at", "desc")
        .limit(LIST_LIMIT);
      if (request.query.grant !== undefined) query = query.where("sessions.grant_id", "=", request.query.grant);
      if (request.query.open === "true") query = query.where("sessions.closed_at", "is", null);
      if (!policy.decide({ action: "list_grants", person }).allow) query = query.where("grants.requester", "=", person);
      const rows = (await query.execute()).filter(
        (row) =>
          policy.decide({ action: "read_grant", person, playbook: row.playbook, requester: row.requester }).allow,
      );
      return { sessions: rows.map(sessionViewOf) };
    },
  );
}
