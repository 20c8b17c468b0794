import { Readable } from "node:stream";
import { END_TRAILER, EXPORT_FORMATS, params, searchAnswer, searchRequest, terminalNumber } from "@glasskey/contract";
import type { FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { EXPORT_TYPES } from "../recording/export.ts";
import { storeError } from "../store/database.ts";
import { CHECK_MS, noteRead, permit, whenGone } from "./recording-access.ts";
import { playedView } from "./recording-views.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";
import { createTickets, type Tickets } from "./tickets.ts";
import { watchRoute } from "./watch.ts";

/** Each may hold a thread and a screen, for as long as its client takes to read. */
const READERS = 16;
const READERS_A_PERSON = 4;
const SEARCHES = 2;
const SEARCHES_A_PERSON = 1;
const NDJSON = "application/x-ndjson";

/** Recordings: replay, export, watch, search and chunks. Whoever reads one leaves an entry in the log before they see it. */
export function recordingRoutes(app: Routes, api: Api): void {
  const { access } = api;
  const readers = createTickets(READERS, READERS_A_PERSON, {
    message: "too many recordings are being read",
    next: `${READERS_A_PERSON} for each person and ${READERS} for each Glasskey process: wait for one to end, or leave it.`,
  });

  app.get(
    "/v1/sessions/:session/replay",
    {
      schema: {
        summary: "What was done in a session, and what its terminal showed, as lines of JSON",
        params: params.session,
        querystring: z.object({ terminal: z.enum(["frames", "lines"]).default("lines"), n: terminalNumber }),
        produces: [NDJSON],
      },
    },
    async (request, reply) => {
      const { session } = request.params;
      const lines = async function* (gone: AbortSignal): AsyncGenerator<string> {
        for await (const item of api.recordings.replay(session, request.query.terminal, gone, request.query.n))
          yield `${JSON.stringify(playedView(item))}\n`;
      };
      const reading = { request, reply, session, type: NDJSON, how: { how: "replay" } };
      return sendRecording(api, readers, reading, lines);
    },
  );

  app.get(
    "/v1/sessions/:session/export",
    {
      schema: {
        summary: "A recording as a file; its last trailer says whether it is whole",
        params: params.session,
        querystring: z.object({ format: z.enum(EXPORT_FORMATS).default("json"), n: terminalNumber }),
        produces: [NDJSON, "text/plain", "application/x-asciicast"],
      },
    },
    async (request, reply) => {
      const { session } = request.params;
      const { format, n } = request.query;
      const reading = { request, reply, session, type: EXPORT_TYPES[format], how: { how: "export", format } };
      return sendRecording(api, readers, reading, (gone) => api.recordings.export(session, format, gone, n));
    },
  );

  app.get(
    "/v1/sessions/:session/chunks/:chunk",
    {
      schema: {
        summary: "A sealed chunk, encrypted, exactly as the log commits to it",
        params: params.session.extend({
          chunk: z.coerce
            .number()
            .int()
            .min(0)
            .max(2 ** 31 - 1),
        }),
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

interface Reading {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  readonly session: string;
  /** Content type of the answer. */
  readonly type: string;
  /** For the log. */
  readonly how: JsonObject;
}

/**
 * Asks whether the reader may, waits for the first piece (an error before it is an answer of its own), notes the reading
 * in the log, and sends pieces as they come. A trailer says how it ended, so that a part is never taken for the whole.
 */
async function sendRecording(
  api: Api,
  readers: Tickets,
  { request, reply, session, type, how }: Reading,
  read: (gone: AbortSignal) => AsyncIterable<string>,
): Promise<FastifyReply> {
  const { person } = await personOf(api, request);
  const about = await permit(api, session, person, "read_recording");
  const gone = whenGone(reply);
  gone.throwIfAborted();
  const ticket = readers.take(person);
  const pieces = read(gone)[Symbol.asyncIterator]();
  gone.addEventListener("abort", () => {
    ticket[Symbol.dispose]();
    void pieces.return?.().catch(() => {}); // also where nothing of it was sent
  });
  const first = await pieces.next();
  await noteRead(api, person, { ...about, session }, how);

  let end = "ok";
  let askedMs = performance.now();
  const guarded = async function* (): AsyncGenerator<string> {
    try {
      for (let piece = first; piece.done !== true; piece = await pieces.next()) {
        if (performance.now() - askedMs >= CHECK_MS) {
          // Who replays may take hours for it.
          await personOf(api, request);
          await permit(api, session, person, "read_recording");
          askedMs = performance.now();
        }
        yield piece.value;
      }
    } catch (thrown) {
      const error = storeError(thrown);
      const { code, message, next } =
        error instanceof GlassError ? error : new GlassError("internal", "something went wrong in Glasskey");
      end = Buffer.from(JSON.stringify({ code, message, next })).toString("base64url");
    }
  };
  reply.trailer(END_TRAILER, () => Promise.resolve(end));
  return reply.type(type).send(Readable.from(guarded()));
}
