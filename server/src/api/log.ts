import { createHash } from "node:crypto";
import {
  logKeyList,
  logKeyView,
  logPage,
  logProof,
  logStatus,
  type EntryState,
  type LogKeyView,
} from "@glasskey/contract";
import type { FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import { denied } from "../access/request.ts";
import type { LogKey } from "../audit/keys.ts";
import type { LogFile } from "../audit/read.ts";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { isId } from "../core/ids.ts";
import { namesOf, pseudonymOf } from "../identity/pseudonyms.ts";
import type { InstallationVerb } from "../playbooks/policy.ts";
import { noteRead, permit } from "./recording-access.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import { createWaits } from "./waits.ts";
import type { Api } from "./services.ts";

const PAGE = 500;
const NEWS_POLL_MS = 100;
/** Open to anybody and never changed: any cache may keep it. */
const PUBLIC = "public, max-age=31536000, immutable";
/** Given for a token: only the asker's own cache may keep it. */
const PRIVATE = "private, max-age=31536000, immutable";
/** A cache asks each time whether there is a newer one. */
const NEWEST = "no-cache";

/**
 * The log: entries with names for people who may read it, and the C2SP files for verifiers. Checkpoints and hash tiles
 * say nothing about what happened and are open to anybody; entry bundles and recordings are for those who may read them.
 */
export function logRoutes(app: Routes, api: Api): void {
  const { reader, keys } = api.log;
  const permitted = async (request: FastifyRequest, action: InstallationVerb): Promise<string> => {
    const { person } = await personOf(api, request);
    const decision = api.access.policy().decide({ action, person });
    if (!decision.allow) throw denied(decision);
    return person;
  };

  app.get(
    "/v1/log",
    {
      schema: {
        summary: "Entries in order; `from` past the end waits up to `waitMs` for news",
        querystring: z.object({
          from: z.coerce.number().int().min(0).optional(),
          limit: z.coerce.number().int().min(1).max(PAGE).optional(),
          grant: z.string().max(32).optional(),
          waitMs: z.coerce.number().int().min(0).max(30_000).optional(),
        }),
        response: answers(logPage),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const policy = api.access.policy();
      const { from, limit = PAGE, grant, waitMs = 0 } = request.query;
      const decision = policy.decide({ action: "read_log", person });
      if (!decision.allow && !(await ownGrant(person, grant))) throw denied(decision);
      if (from !== undefined && waitMs > 0) await waits.run(person, request.raw, (gone) => news(from, waitMs, gone));
      const [witnessed, archived] = [await reader.witnessedSize(), await reader.archivedSize()];
      const entries = await reader.entries({
        ...(from === undefined ? {} : { from }),
        ...(grant === undefined ? {} : { grant }),
        limit,
      });
      const size = await reader.size();
      const decoded = entries.map(({ index, leafHash, entry }) => ({
        index,
        leafHash: leafHash.toString("hex"),
        state: stateOf(index, witnessed, archived),
        entry: { ...entry },
      }));
      const ids = [...new Set(decoded.map(({ entry }) => actorOf(entry)).filter((actor) => isId("person", actor)))];
      const names = await namesOf(api.access.store, ids);
      return {
        size,
        witnessed: witnessed ?? null,
        archived: archived ?? null,
        entries: decoded.map((item) => {
          const actor = actorOf(item.entry);
          const name = names[actor];
          return { ...item, people: name === undefined ? {} : { [actor]: name } };
        }),
      };
    },
  );

  const waits = createWaits();
  /** Resolves when the signed log has that index, or after the time. */
  const news = async (index: number, waitMs: number, signal: AbortSignal): Promise<void> => {
    const until = performance.now() + waitMs;
    while (!signal.aborted && performance.now() < until && (await reader.size()) <= index)
      await sleep(NEWS_POLL_MS, signal).catch(() => {});
  };

  const ownGrant = async (person: string, grant: string | undefined): Promise<boolean> => {
    if (grant === undefined) return false;
    const row = await api.access.store
      .selectFrom("grants")
      .select(["playbook", "requester"])
      .where("id", "=", grant)
      .executeTakeFirst();
    return row !== undefined && api.access.policy().decide({ action: "read_grant", person, ...row }).allow;
  };

  app.get(
    "/v1/log/proof/:index",
    {
      schema: {
        summary: "A C2SP tlog-proof of one entry, and the entry's own bytes",
        params: z.object({ index: z.coerce.number().int().min(0) }),
        response: answers(logProof),
      },
    },
    async (request) => {
      await permitted(request, "read_log");
      const { entry, ...proof } = await reader.prove(request.params.index);
      return { ...proof, entry: entry.toString("utf8") };
    },
  );

  app.get(
    "/v1/log/status",
    { schema: { summary: "How far the log is, what waits, and who signs", response: answers(logStatus) } },
    async (request) => {
      await permitted(request, "read_log");
      const { size, witnessed, archived, signedAt, waiting, waitingSince, unwitnessedSince } = await reader.progress();
      const signing = (await keys.list()).filter((key) => key.retiredAt === null);
      const iso = (date: Date | undefined): string | null => date?.toISOString() ?? null;
      return {
        ...{ size, witnessed: witnessed ?? null, archived: archived ?? null, waiting },
        origin: signing[0]?.vkey.split("+", 1)[0] ?? "",
        now: new Date().toISOString(),
        ...{ signedAt: iso(signedAt), waitingSince: iso(waitingSince), unwitnessedSince: iso(unwitnessedSince) },
        keys: signing.map(keyView),
      };
    },
  );

  app.get(
    "/v1/log/keys",
    { schema: { summary: "Every key that signs the log or did", response: answers(logKeyList) } },
    async (request) => {
      await personOf(api, request); // the keys are public: /log/vkey
      return { keys: (await keys.list()).map(keyView) };
    },
  );

  app.post(
    "/v1/log/keys",
    { schema: { summary: "Put a further key into force: both sign from now on", response: answers(logKeyView) } },
    async (request) => {
      const person = await permitted(request, "manage_log_keys");
      return keyView(await keys.add(await pseudonymOf(api.access.store, person)));
    },
  );

  app.post(
    "/v1/log/keys/:generation/retire",
    {
      schema: {
        summary: "A key signs no more from now on; never the last",
        params: z.object({ generation: z.coerce.number().int().min(1).max(1_000_000) }),
        response: answers(logKeyView),
      },
    },
    async (request) => {
      const person = await permitted(request, "manage_log_keys");
      return keyView(await keys.retire(request.params.generation, await pseudonymOf(api.access.store, person)));
    },
  );

  app.get(
    "/log/vkey",
    {
      schema: {
        summary: "The log's verifier keys, one to a line; compare them with those you got elsewhere",
        security: [],
        produces: ["text/plain"],
      },
    },
    async (request, reply) => {
      const bytes = Buffer.from(await keys.described());
      return file(request, reply, { bytes, contentType: "text/plain; charset=utf-8", immutable: false }, NEWEST);
    },
  );

  for (const [path, summary] of [
    ["checkpoint", "The newest C2SP tlog-checkpoint"],
    ["checkpoint.witnessed", "The newest checkpoint that enough witnesses cosigned, with their cosignatures"],
  ] as const) {
    app.get(`/log/${path}`, { schema: { summary, security: [], produces: ["text/plain"] } }, async (request, reply) => {
      const found = await reader.file(path);
      if (found === undefined) throw new GlassError("not_found", `the log has no ${path} yet`);
      return file(request, reply, found, NEWEST);
    });
  }

  app.get(
    "/log/checkpoints/:size",
    {
      schema: {
        summary: "The checkpoint of that size, if one was signed",
        security: [],
        params: z.object({ size: z.string().max(20) }),
        produces: ["text/plain"],
      },
    },
    async (request, reply) => {
      const found = await reader.file(`checkpoints/${request.params.size}`);
      if (found === undefined) throw new GlassError("not_found", "no checkpoint of that size was signed");
      return file(request, reply, found, PUBLIC);
    },
  );

  app.get(
    "/log/tile/*",
    {
      schema: {
        summary: "C2SP tlog-tiles: hash tiles for anybody, entry bundles for who may read the log",
        params: z.object({ "*": z.string().max(200) }),
        produces: ["application/octet-stream"],
      },
    },
    async (request, reply) => {
      const bundle = request.params["*"].startsWith("entries/");
      if (bundle) await permitted(request, "read_log");
      const tile = await reader.file(`tile/${request.params["*"]}`);
      if (tile === undefined) throw new GlassError("not_found", "there is no such tile");
      return file(request, reply, tile, bundle ? PRIVATE : PUBLIC);
    },
  );

  app.get(
    "/log/chunks/:session/:file",
    {
      schema: {
        summary: "A sealed chunk, encrypted, for who may read both the log and that recording; it is logged",
        params: z.object({ session: z.string().max(32), file: z.string().max(32) }),
        produces: ["application/octet-stream"],
      },
    },
    async (request, reply) => {
      const person = await permitted(request, "read_log");
      const { session, file: name } = request.params;
      const number = /^(0|[1-9]\d{0,8})\.gkc$/.exec(name)?.[1];
      if (number === undefined || !isId("session", session)) throw noChunk();
      const about = await permit(api, session, person, "read_recording");
      // One that is damaged is not here, to a verifier: it names it, and goes on with the others. People were told.
      const bytes = await api.recordings.chunk(session, Number(number)).catch((error: unknown) => {
        if (error instanceof GlassError && error.code === "integrity") return undefined;
        throw error;
      });
      if (bytes === undefined) throw noChunk();
      if (request.method !== "HEAD")
        await noteRead(api, person, { session, ...about }, { how: "chunk", chunk: Number(number) });
      const chunk = { bytes: Buffer.from(bytes), contentType: "application/octet-stream", immutable: true } as const;
      return file(request, reply, chunk, PRIVATE);
    },
  );
}

function noChunk(): GlassError {
  return new GlassError("not_found", "there is no such chunk");
}

/** One file of the public layout. Whoever has it already, by its hash, gets no bytes. */
function file(request: FastifyRequest, reply: FastifyReply, found: LogFile, cacheControl: string): FastifyReply {
  const etag = `"${createHash("sha256").update(found.bytes).digest("base64url")}"`;
  void reply.header("cache-control", cacheControl).header("etag", etag);
  if (cacheControl === PRIVATE) void reply.header("vary", "authorization");
  const known = (request.headers["if-none-match"] ?? "").split(",").map((tag) => tag.trim().replace(/^W\//, ""));
  if (known.includes(etag)) return reply.status(304).send();
  return reply.type(found.contentType).send(found.bytes);
}

/** The states follow each other: what waits for its witnesses is not called archived. */
function stateOf(index: number, witnessed: number | undefined, archived: number | undefined): EntryState {
  if (witnessed !== undefined && index >= witnessed) return "checkpointed";
  if (archived !== undefined && index < archived) return "archived";
  return witnessed === undefined ? "checkpointed" : "witnessed";
}

function keyView({ generation, vkey, addedAt, retiredAt }: LogKey): LogKeyView {
  return { generation, vkey, addedAt: addedAt.toISOString(), retiredAt: retiredAt?.toISOString() ?? null };
}

function actorOf(entry: Readonly<Record<string, unknown>>): string {
  return typeof entry["actor"] === "string" ? entry["actor"] : "";
}
