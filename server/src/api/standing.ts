import { standingView } from "@glasskey/contract";
import type { Doors } from "../access/doors.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

/** What main.ts knows of this process and its store. */
export interface StandingApi {
  readonly doors: Pick<Doors, "reasons">;
  /** Why the login that Glasskey works with could change the log; undefined where it cannot. */
  readonly storeStanding: string | undefined;
}

/** For everybody who is logged in: whoever cannot get in must be able to learn why. */
export function standingRoutes(app: Routes, api: Api): void {
  app.get(
    "/v1/health",
    { schema: { summary: "Whether anything new may be opened, and if not, why not", response: answers(standingView) } },
    async (request) => {
      await personOf(api, request);
      const { doors, storeStanding } = api.standing;
      const shut = doors.reasons().map(({ reason, error, since }) => ({
        ...{ reason, code: error.code, message: error.message },
        ...{ next: error.next ?? null, since: since.toISOString() },
      }));
      const store = { separate: storeStanding === undefined, detail: storeStanding ?? null };
      return { opening: shut.length === 0, shut, store };
    },
  );
}
