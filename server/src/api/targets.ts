import { targetCheck } from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
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

  app.post(
    "/v1/policy/reload",
    {
      schema: {
        summary: "Read the policy folder again; what is wrong with it is said, and the policy in force stays",
        response: answers(z.object({ inForce: z.boolean(), problems: z.string().nullable(), hash: z.string() })),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const decision = api.access.policy().decide({ action: "reload_policy", person });
      if (!decision.allow) throw denied(decision);
      const problems = await api.reloadPolicy();
      return { inForce: problems === undefined, problems: problems ?? null, hash: api.access.policy().hash };
    },
  );
}
