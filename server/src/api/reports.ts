import { reportView } from "@glasskey/contract";
import { z } from "zod";
import { reportOf } from "../access/report.ts";
import { denied } from "../access/request.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

const DAY_MS = 86_400_000;

export function reportRoutes(app: Routes, api: Api): void {
  app.get(
    "/v1/report",
    {
      schema: {
        summary: "How playbooks were used: by reason code and playbook, approvals, overdue reviews",
        querystring: z.object({
          sinceMs: z.coerce
            .number()
            .int()
            .min(1_000)
            .max(3_660 * DAY_MS)
            .optional()
            .describe("How far back; default 30 days"),
        }),
        response: answers(reportView),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const allowed = api.access.policy().decide({ action: "read_reports", person });
      if (!allowed.allow) throw denied(allowed);
      const report = await reportOf(api.access, request.query.sinceMs ?? 30 * DAY_MS);
      return {
        ...{ from: report.from.toISOString(), to: report.to.toISOString() },
        reasons: report.reasons.map(({ means, ...reason }) => ({ ...reason, means: means ?? null })),
        playbooks: report.playbooks.map((playbook) => ({ ...playbook })),
        ...{ requests: report.requests, approvals: report.approvals, medianApproveMs: report.medianApproveMs ?? null },
        overdueReviews: report.overdueReviews.map(({ dueAt, ...review }) => ({
          ...review,
          dueAt: dueAt.toISOString(),
        })),
      };
    },
  );
}
