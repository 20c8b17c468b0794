import { logPage, logProof } from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import { isId } from "../core/ids.ts";
import { namesOf } from "../identity/pseudonyms.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import { createWaits } from "./waits.ts";
import type { Api } from "./services.ts";

const PAGE = 500;
const NEWS_POLL_MS = 100;
const IMMUTABLE = "private, max-age=31536000, immutable";

/**
 * The log: entries with names for people who may read it, and the C2SP files for verifiers. Checkpoints and hash tiles
 * say nothing about what happened and are open to anybody; entry bundles are for those who may read the log.
 */
export function logRoutes(app: Routes, api: Api): void {
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
      const entries = await api.log.reader.entries({
        ...(from === undefined ? {} : { from }),
        ...(grant === undefined ? {} : { grant }),
        limit,
      });
      const size = await api.log.reader.size();
      const decoded = entries.map(({ index, leafHash, entry }) => ({
        index,
        leafHash: leafHash.toString("hex"),
        entry: { ...entry },
      }));
      const ids = [...new Set(decoded.map(({ entry }) => actorOf(entry)).filter((actor) => isId("person", actor)))];
      const names = await namesOf(api.access.store, ids);
      return {
        size,
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
    while (!signal.aborted && performance.now() < until && (await api.log.reader.size()) <= index)
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
      const { person } = await personOf(api, request);
      const decision = api.access.policy().decide({ action: "read_log", person });
      if (!decision.allow) throw denied(decision);
      const { proof, entry } = await api.log.reader.prove(request.params.index);
      return { proof, entry: entry.toString("utf8") };
    },
  );

  app.get(
    "/log/vkey",
    {
      schema: {
        summary: "The log's verifier key; compare it with one you got elsewhere",
        security: [],
        produces: ["text/plain"],
      },
    },
    (_request, reply) => reply.type("text/plain; charset=utf-8").send(`${api.log.vkey}\n`),
  );

  app.get(
    "/log/checkpoint",
    { schema: { summary: "C2SP tlog-checkpoint", security: [], produces: ["text/plain"] } },
    async (_request, reply) => {
      const checkpoint = await api.log.reader.checkpoint();
      if (checkpoint === undefined) throw new GlassError("not_found", "the log has no checkpoint yet");
      return reply.type("text/plain; charset=utf-8").header("cache-control", "no-cache").send(checkpoint);
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
      if (request.params["*"].startsWith("entries/")) {
        const { person } = await personOf(api, request);
        const decision = api.access.policy().decide({ action: "read_log", person });
        if (!decision.allow) throw denied(decision);
      }
      const tile = await api.log.reader.file(`tile/${request.params["*"]}`);
      if (tile === undefined) throw new GlassError("not_found", "there is no such tile");
      return reply.type(tile.contentType).header("cache-control", IMMUTABLE).send(tile.bytes);
    },
  );
}

function actorOf(entry: Readonly<Record<string, unknown>>): string {
  return typeof entry["actor"] === "string" ? entry["actor"] : "";
}
