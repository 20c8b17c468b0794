import { targetCheck, targetSetup, type TargetSetup } from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
import { GlassError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

export function targetRoutes(app: Routes, api: Api): void {
  app.post(
    "/v1/targets/check",
    {
      schema: {
        summary: "Could a lease be minted, and revoked, on each target? Changes nothing",
        body: z.strictObject({ target: z.string().max(64).optional() }),
        response: answers(z.object({ targets: z.array(targetCheck) })),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const decision = api.access.policy().decide({ action: "check_target", person });
      if (!decision.allow) throw denied(decision);
      return { targets: [...(await api.checkTargets(request.body.target))] };
    },
  );

  const mayAsk = async (request: Parameters<typeof personOf>[1]): Promise<void> => {
    const { person } = await personOf(api, request);
    const decision = api.access.policy().decide({ action: "check_target", person });
    if (!decision.allow) throw denied(decision);
  };
  const shown = (kind: string, target: string | null, config: JsonObject): TargetSetup => {
    const { steps, formats } = api.setup(kind, config);
    return { kind, target, steps: steps.map((step) => ({ ...step })), formats: { ...formats } };
  };

  app.get(
    "/v1/targets/:name/setup",
    {
      schema: {
        summary: "What to put on a target once so that leases can be minted there; no secret",
        params: z.object({ name: z.string().max(64) }),
        response: answers(targetSetup),
      },
    },
    async (request) => {
      await mayAsk(request);
      const { name } = request.params;
      const target = api.access.policy().targets.find((candidate) => candidate.name === name);
      if (target === undefined) {
        throw new GlassError("not_found", `there is no target "${name}"`, {
          next: "Before its file is there, ask by kind: glass target setup --kind ssh",
        });
      }
      return shown(target.kind, target.name, target.config);
    },
  );

  app.get(
    "/v1/kinds/:kind/setup",
    {
      schema: {
        summary: "The same for any target of a kind, before its file is there",
        params: z.object({ kind: z.string().max(64) }),
        response: answers(targetSetup),
      },
    },
    async (request) => {
      await mayAsk(request);
      return shown(request.params.kind, null, {});
    },
  );
}
