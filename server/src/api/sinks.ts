import { sinkList, sinkRetry, type SinkView } from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
import type { InstallationVerb } from "../playbooks/policy.ts";
import type { Sinks, SinkStatus } from "../sinks/sinks.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

/** Where the log goes on to: who may read the log sees it, and an administrator has a sink try again. */
export function sinkRoutes(app: Routes, api: Api, sinks: Pick<Sinks, "status" | "retry">): void {
  const permit = async (request: Parameters<typeof personOf>[1], action: InstallationVerb): Promise<void> => {
    const { person } = await personOf(api, request);
    const decision = api.access.policy().decide({ action, person });
    if (!decision.allow) throw denied(decision);
  };

  app.get(
    "/v1/sinks",
    {
      schema: { summary: "Where the log goes on to, how far each is, and what is wrong", response: answers(sinkList) },
    },
    async (request) => {
      await permit(request, "read_log");
      return { sinks: (await sinks.status()).map(viewOf) };
    },
  );

  app.post(
    "/v1/sinks/:sink/retry",
    {
      schema: {
        summary: "Try a sink at once, and the entries that its receiver refused once more",
        params: z.object({ sink: z.string().max(64) }),
        response: answers(sinkRetry),
      },
    },
    async (request) => {
      await permit(request, "check_target");
      return { retried: await sinks.retry(request.params.sink) };
    },
  );
}

function viewOf({ name, node, lag, parked, failingSince, deliveredAt, ...rest }: SinkStatus): SinkView {
  const { kind, configured, nextIndex, failures, lastError } = rest;
  return {
    ...{ sink: name, node: node === "" ? null : node, kind, configured, nextIndex, failures, lastError },
    ...{ lagEntries: lag.entries, lagSeconds: Math.round(lag.seconds * 10) / 10 },
    failingSince: failingSince?.toISOString() ?? null,
    deliveredAt: deliveredAt?.toISOString() ?? null,
    parked: parked.map(({ index, error, at }) => ({ index, error, at: at.toISOString() })),
  };
}
