import { Readable } from "node:stream";
import { END_TRAILER, EXPORT_FORMATS, params, searchAnswer, searchRequest } from "@glasskey/contract";
import type { FastifyReply } from "fastify";
import { z } from "zod";
import { GlassError } from "../core/errors.ts";
import { EXPORT_TYPES } from "../recording/export.ts";
import { noteRead, permit, whenGone } from "./recording-access.ts";
import { playedView } from "./recording-views.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";
import { createTickets } from "./tickets.ts";
import { watchRoute } from "./watch.ts";

const SEARCHES = 2;
const SEARCHES_A_PERSON = 1;
const NDJSON = "application/x-ndjson";

/** Recordings: replay, export, watch, search and chunks. Whoever reads one leaves an entry in the log before they see it. */
export function recordingRoutes(app: Routes, api: Api): void {
  const { access } = api;

  app.get(
    "/v1/sessions/:session/replay",
    {
      schema: {
        summary: "What was done in a session, and what its terminal showed, as lines of JSON",
        params: params.session,
        querystring: z.object({ terminal: z.enum(["frames", "lines"]).default("lines") }),
        produces: [NDJSON],
      },
    },
    async (request, reply) => {
      const { person } = await personOf(api, request);
      const { session } = request.params;
      const about = await permit(api, session, person, "read_recording");
      const gone = whenGone(reply);
      const lines = async function* (): AsyncGenerator<string> {
        for await (const item of api.recordings.replay(session, request.query.terminal, gone))
          yield `${JSON.stringify(playedView(item))}\n`;
      };
      const first = await begin(lines());
      await noteRead(api, person, { ...about, session }, { how: "replay" });
      return sendStream(reply, NDJSON, first);
    },
  );

  app.get(
    "/v1/sessions/:session/export",
    {
      schema: {
        summary: "A recording as a file; its last trailer says whether it is whole",
        params: params.session,
        querystring: z.object({ format: z.enum(EXPORT_FORMATS).default("json") }),
        produces: [NDJSON, "text/plain", "application/x-asciicast"],
      },
    },
    async (request, reply) => {
      const { person } = await personOf(api, request);
      const { session } = request.params;
      const { format } = request.query;
      const about = await permit(api, session, person, "read_recording");
      const first = await begin(api.recordings.export(session, format, whenGone(reply)));
      await noteRead(api, person, { ...about, session }, { how: "export", format });
      return sendStream(reply, EXPORT_TYPES[format], first);
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
      const { session, chunk } = request.params;
      const about = await permit(api, session, person, "read_recording");
      const bytes = await api.recordings.chunk(session, chunk);
      if (bytes === undefined) throw new GlassError("not_found", "there is no such chunk");
      await noteRead(api, person, { ...about, session }, { how: "chunk", chunk });
      return reply.type("application/octet-stream").send(Buffer.from(bytes));
    },
  );

  const searches = createTickets(SEARCHES, SEARCHES_A_PERSON, {
    message: "too many searches are running",
    next: "One at a time for each person, and two in all: wait for the other to end.",
  });
  app.post(
    "/v1/recordings/search",
    {
      schema: {
        summary: "Look for words in all recordings that the caller may read, newest session first, a page at a time",
        body: searchRequest,
        response: answers(searchAnswer),
      },
    },
    async (request, reply) => {
      const { person } = await personOf(api, request);
      const { since, until, ...rest } = request.body;
      const policy = access.policy();
      using _ticket = searches.take(person);
      const page = await api.recordings.search(
        {
          ...rest,
          ...(since === undefined ? {} : { since: new Date(since) }),
          ...(until === undefined ? {} : { until: new Date(until) }),
        },
        ({ playbook, requester }) => policy.decide({ action: "read_recording", person, playbook, requester }).allow,
        whenGone(reply),
      );
      await noteRead(api, person, {}, { how: "search", sessions: page.sessions });
      return {
        hits: page.hits.map(({ session: of, timeUs, ...hit }) => ({
          ...{ session: of.session, person: of.person, target: of.target, playbook: of.playbook },
          ...{ ...hit, at: new Date(timeUs / 1000).toISOString() },
        })),
        ...{ sessions: page.sessions, erased: page.erased, problems: [...page.problems], next: page.next ?? null },
      };
    },
  );

  watchRoute(app, api);
}

/** Waits for the first piece: an error before it is an answer of its own. */
async function begin(pieces: AsyncIterable<string>): Promise<AsyncGenerator<string>> {
  const iterator = pieces[Symbol.asyncIterator]();
  const first = await iterator.next();
  return (async function* () {
    try {
      for (let item = first; item.done !== true; item = await iterator.next()) yield item.value;
    } finally {
      await iterator.return?.();
    }
  })();
}

/** Sends pieces as they come; a trailer says how it ended, so that a part is never taken for the whole. */
function sendStream(reply: FastifyReply, type: string, pieces: AsyncGenerator<string>): FastifyReply {
  let end = "ok";
  const guarded = async function* (): AsyncGenerator<string> {
    try {
      yield* pieces;
    } catch (error) {
      const { code, message, next } =
        error instanceof GlassError ? error : new GlassError("internal", "something went wrong in Glasskey");
      end = Buffer.from(JSON.stringify({ code, message, next })).toString("base64url");
    }
  };
  reply.trailer(END_TRAILER, () => Promise.resolve(end));
  return reply.type(type).send(Readable.from(guarded()));
}
