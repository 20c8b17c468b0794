import { archiveAnswer, type ArchiveView } from "@glasskey/contract";
import { denied } from "../access/request.ts";
import type { ArchiveStatus } from "../archive/archive.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

/** How the archive stands, for those who may read the log. */
export function archiveRoutes(app: Routes, api: Api): void {
  app.get(
    "/v1/archive",
    {
      schema: { summary: "How much is archived, how far behind, and what is wrong", response: answers(archiveAnswer) },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const decision = api.access.policy().decide({ action: "read_log", person });
      if (!decision.allow) throw denied(decision);
      const status = await api.archive?.status();
      return { archive: status === undefined ? null : viewOf(status) };
    },
  );
}

function viewOf(status: ArchiveStatus): ArchiveView {
  const { datedAt, failedAt, lastError, faults, lagMs, ...rest } = status;
  return {
    ...{ ...rest, lagMs: Math.round(lagMs), faults: [...faults], lastError: lastError ?? null },
    ...{ datedAt: datedAt?.toISOString() ?? null, failedAt: failedAt?.toISOString() ?? null },
  };
}
