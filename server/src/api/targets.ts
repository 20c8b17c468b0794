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
}
