import { type ProbeAnswer, probeAnswer } from "@glasskey/contract";
import type { Probe } from "../metrics/health.ts";
import { answers, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

const RESPONSE = { ...answers(probeAnswer), 503: probeAnswer };

/** The probes, for load balancers and supervisors: no login, and no more than a word for what is wrong. */
export function probeRoutes(app: Routes, api: Api): void {
  const live = "Whether this process works; a store that is down does not count";
  app.get("/healthz", { schema: { summary: live, security: [], response: RESPONSE } }, async (_request, reply) => {
    const probe = api.probes.live();
    if (!probe.ok) void reply.status(503).header("retry-after", "5");
    return shown(probe);
  });
  const ready = "Whether a grant can be opened and used here now";
  app.get("/readyz", { schema: { summary: ready, security: [], response: RESPONSE } }, async (_request, reply) => {
    const probe = await api.probes.ready();
    if (!probe.ok) void reply.status(503).header("retry-after", "5");
    return shown(probe);
  });
}

function shown({ ok, reasons, notes }: Probe): ProbeAnswer {
  return { ok, reasons: [...reasons], ...(notes === undefined ? {} : { notes: [...notes] }) };
}
