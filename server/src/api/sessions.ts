import { Readable } from "node:stream";
import { params, sessionView } from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
import { GlassError } from "../core/errors.ts";
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

  /** Records and chunks: only for those whom the policy lets read this recording. */
  const permit = async (session: string, person: string): Promise<void> => {
    const row = await access.store
      .selectFrom("sessions")
      .innerJoin("grants", "grants.id", "sessions.grant_id")
      .select(["grants.playbook", "grants.requester"])
      .where("sessions.id", "=", session)
      .executeTakeFirst();
    const policy = access.policy();
    const decision = row === undefined ? undefined : policy.decide({ action: "read_recording", person, ...row });
    if (row !== undefined && decision?.allow === true) return;
    if (row !== undefined && decision !== undefined && policy.decide({ action: "read_grant", person, ...row }).allow)
      throw denied(decision);
    throw new GlassError("not_found", `there is no session ${session}`, {
      next: "`glass sessions` lists those you may see.",
    });
  };

  app.get(
    "/v1/sessions/:session/recording",
    {
      schema: {
        summary: "Every record of a session, one JSON object a line",
        params: params.session,
        produces: ["application/x-ndjson"],
      },
    },
    async (request, reply) => {
      const { person } = await personOf(api, request);
      const { session } = request.params;
      await permit(session, person);
      const gone = new AbortController();
      request.raw.once("close", () => gone.abort(new Error("the reader left")));
      const records = api.recordings.records(session, gone.signal)[Symbol.asyncIterator]();
      const first = await records.next(); // an error before the first record is an answer of its own
      const lines = async function* (): AsyncGenerator<string> {
        for (let item = first; item.done !== true; item = await records.next()) yield `${JSON.stringify(item.value)}\n`;
      };
      return reply.type("application/x-ndjson").send(Readable.from(lines()));
    },
  );

  app.get(
    "/v1/sessions/:session/chunks/:chunk",
    {
      schema: {
        summary: "A sealed chunk, encrypted, exactly as the log commits to it",
        params: params.session.extend({ chunk: z.coerce.number().int().min(0) }),
        produces: ["application/octet-stream"],
      },
    },
    async (request, reply) => {
      const { person } = await personOf(api, request);
      await permit(request.params.session, person);
      const bytes = await api.recordings.chunk(request.params.session, request.params.chunk);
      if (bytes === undefined) throw new GlassError("not_found", "there is no such chunk");
      return reply.type("application/octet-stream").send(Buffer.from(bytes));
    },
  );
}
