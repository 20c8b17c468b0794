import { policyHistory, policyInForce, policyReload, type PolicyInForce } from "@glasskey/contract";
import { z } from "zod";
import { denied } from "../access/request.ts";
import type { Generation } from "../bundles/generations.ts";
import { pseudonymOf } from "../identity/pseudonyms.ts";
import type { InstallationVerb } from "../playbooks/policy.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

const HOOK_BODY_BYTES = 1024 * 1024; // a push of a few commits has some 20 KiB; it is only hashed

/** What is in force, what was, and the two ways to ask for news. */
export function policyRoutes(app: Routes, api: Api): void {
  const permitted = async (request: Parameters<typeof personOf>[1], action: InstallationVerb): Promise<string> => {
    const { person } = await personOf(api, request);
    const decision = api.access.policy().decide({ action, person });
    if (!decision.allow) throw denied(decision);
    return person;
  };

  app.get(
    "/v1/policy",
    { schema: { summary: "Which policy is in force, and where it came from", response: answers(policyInForce) } },
    async (request) => {
      await permitted(request, "read_targets");
      return view(api.bundles.inForce());
    },
  );

  app.get(
    "/v1/policy/history",
    {
      schema: {
        summary: "What was in force, newest first, with the plan of each change; fewer where the plans are large",
        querystring: z.object({
          limit: z.coerce.number().int().min(1).max(100).default(20),
          before: z.coerce.number().int().min(1).optional().describe("Only generations below this one"),
        }),
        response: answers(policyHistory),
      },
    },
    async (request) => {
      await permitted(request, "read_targets");
      const changes = await api.bundles.history(request.query.limit, request.query.before);
      return {
        changes: changes.map((change) => ({ ...view(change), plan: change.plan, widened: widened(change.plan) })),
      };
    },
  );

  app.post(
    "/v1/policy/reload",
    {
      schema: {
        summary:
          "Read this process's policy source again; where it is wrong, that is said, and what was in force stays",
        response: answers(policyReload),
      },
    },
    async (request) => {
      const person = await permitted(request, "reload_policy");
      const pseudonym = await pseudonymOf(api.access.store, person);
      const problems = await api.bundles.reload({ name: person, pseudonym });
      return { inForce: problems === undefined, problems: problems ?? null, hash: api.bundles.inForce().hash };
    },
  );

  void app.register((scope, _options, done) => {
    // The signature is over the bytes as they came; nothing reads them as JSON.
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", { parseAs: "buffer", bodyLimit: HOOK_BODY_BYTES }, (_request, body, parsed) =>
      parsed(null, body),
    );
    // Whoever calls learns nothing: not whether there is a hook, nor whether the signature or the size was right.
    scope.setErrorHandler((_error, _request, reply) => reply.status(200).send({}));
    scope.post(
      "/v1/policy/hook",
      {
        bodyLimit: HOOK_BODY_BYTES,
        schema: {
          summary: "A git server's push webhook (X-Hub-Signature-256): look for news now. Always the same answer",
          security: [],
          response: { 200: z.object({}) },
        },
      },
      (request, reply) => {
        const signature = request.headers["x-hub-signature-256"];
        if (Buffer.isBuffer(request.body)) {
          api.bundles.hook(request.body, typeof signature === "string" ? signature : undefined);
        }
        return reply.send({});
      },
    );
    done();
  });
}

function view({ at, generation, hash, source, commit, author, signer, node }: Omit<Generation, "plan">): PolicyInForce {
  return { generation, hash, source, commit, author, signer, node, since: at.toISOString() };
}

function widened(plan: Generation["plan"]): boolean | null {
  const known = typeof plan === "object" && plan !== null && "widened" in plan ? plan["widened"] : null;
  return typeof known === "boolean" ? known : null;
}
