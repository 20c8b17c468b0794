import { Readable } from "node:stream";
import { params, terminalNumber, type WatchLine } from "@glasskey/contract";
import { z } from "zod";
import { sleep, within } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import type { Watched } from "../recording/watch.ts";
import { storeError } from "../store/database.ts";
import { CHECK_MS, noteRead, permit, whenGone } from "./recording-access.ts";
import { lineView, screenView, shownView } from "./recording-views.ts";
import { personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";
import { createTickets } from "./tickets.ts";

const WATCHERS = 16;
const WATCHERS_A_PERSON = 4;
/** Without news, so that both sides notice a connection that is dead. */
const BEAT_MS = 5_000;
/** A client that takes nothing for so long holds a place that somebody else may need. */
const STALLED_MS = 60_000;
const FAREWELL_MS = 1_000;

/** A session as it goes on, until it ends or the watcher may not watch it any more. The watched user is not told. */
export function watchRoute(app: Routes, api: Api): void {
  const tickets = createTickets(WATCHERS, WATCHERS_A_PERSON, {
    message: "too many sessions are being watched",
    next: `${WATCHERS_A_PERSON} for each person and ${WATCHERS} for each Glasskey process: leave another one first.`,
  });
  const watchers = new Map<(why: GlassError) => void, Promise<void>>();

  // Told before connections are closed.
  app.addHook("preClose", async () => {
    const left = [...watchers].map(([stop, over]) => {
      stop(new GlassError("server_unreachable", "Glasskey is stopping", { next: "Watch again when it is back." }));
      return over;
    });
    if (left.length > 0) await within<unknown>(FAREWELL_MS, Promise.all(left), () => undefined);
  });

  app.get(
    "/v1/sessions/:session/watch",
    {
      schema: {
        summary: "What is done in a session, as lines of JSON, as it is done",
        params: params.session,
        querystring: z.object({
          n: terminalNumber.describe("Of several terminals, the one to show; else the one in use"),
        }),
        produces: ["application/x-ndjson"],
      },
    },
    async (request, reply) => {
      const { person } = await personOf(api, request);
      const { session } = request.params;
      const about = await permit(api, session, person, "watch_session");
      const gone = whenGone(reply);
      gone.throwIfAborted(); // nobody would give the place back
      const ticket = tickets.take(person);
      const cut = new AbortController();
      const cutOff = Promise.withResolvers<never>();
      cutOff.promise.catch(() => {});
      const stop = (why: unknown): void => {
        cutOff.reject(why);
        cut.abort(why);
      };
      const over = Promise.withResolvers<void>();
      let takenAtMs = performance.now();
      const check = async (): Promise<void> => {
        if (performance.now() - takenAtMs > STALLED_MS) reply.raw.destroy();
        try {
          await personOf(api, request);
          await permit(api, session, person, "watch_session");
        } catch (error) {
          stop(storeError(error)); // also when it cannot be told
        }
      };
      const timer = setInterval(() => void check(), CHECK_MS).unref();
      watchers.set(stop, over.promise);
      const items = api.recordings.watch(session, cut.signal, request.query.n)[Symbol.asyncIterator]();
      const leave = (): void => {
        clearInterval(timer);
        ticket[Symbol.dispose]();
        stop(new Error("the watcher left"));
        void items.return?.(undefined).catch(() => {});
      };
      // When all was sent, or the client is gone.
      gone.addEventListener("abort", () => {
        leave();
        watchers.delete(stop);
        over.resolve();
      });

      const lines = async function* (first: typeof next): AsyncGenerator<string> {
        try {
          let pending = first;
          for (;;) {
            takenAtMs = performance.now();
            const quiet = new AbortController();
            const beat = sleep(BEAT_MS, quiet.signal).catch(() => {});
            const item = await Promise.race([pending, beat, cutOff.promise]);
            quiet.abort();
            if (item === undefined) {
              yield lineOf({ what: "beat" });
              continue;
            }
            if (item.done === true) break;
            yield lineOf(viewOf(item.value));
            pending = items.next();
            pending.catch(() => {});
          }
          yield lineOf({ what: "over", text: "the session has ended" });
        } catch (thrown) {
          const error = thrown instanceof GlassError ? thrown : storeError(thrown);
          const known =
            error instanceof GlassError ? error : new GlassError("internal", "something went wrong in Glasskey");
          const { code, message, next: todo } = known;
          yield lineOf({ what: "over", code, text: message, ...(todo === undefined ? {} : { next: todo }) });
        } finally {
          leave();
        }
      };
      const next = items.next();
      try {
        await next; // an error before the first line is an answer of its own
        await noteRead(api, person, { ...about, session }, { how: "watch" });
      } catch (error) {
        leave();
        throw error;
      }
      return reply
        .type("application/x-ndjson")
        .header("x-accel-buffering", "no")
        .send(Readable.from(lines(next)));
    },
  );
}

function viewOf(item: Watched): WatchLine {
  if (item.what === "line") return lineView(item.line);
  if (item.what === "shown") return shownView(item.shown);
  return item.what === "screen" ? screenView(item.drawn) : item;
}

const lineOf = (line: WatchLine): string => `${JSON.stringify(line)}\n`;
