import { alarmList, loginAnswer, loginRequest, playbookView, whoami } from "@glasskey/contract";
import { z } from "zod";
import { playbooksFor } from "../access/list.ts";
import { denied } from "../access/request.ts";
import type { Person } from "../playbooks/policy.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";

export function personRoutes(app: Routes, api: Api): void {
  app.get(
    "/v1/alarms",
    { schema: { summary: "Alarms that are not over", response: answers(alarmList) } },
    async (request) => {
      const { person } = await personOf(api, request);
      const allowed = api.access.policy().decide({ action: "read_alarms", person });
      if (!allowed.allow) throw denied(allowed);
      const rows = await api.access.store
        .selectFrom("alarms")
        .select(["id", "text", "raised_at"])
        .where("cleared_at", "is", null)
        .orderBy("raised_at")
        .execute();
      return {
        alarms: rows.map(({ id, text, raised_at }) => ({ alarm: id, text, raisedAt: raised_at.toISOString() })),
      };
    },
  );

  app.post(
    "/v1/login",
    { schema: { summary: "Log a local person in", security: [], body: loginRequest, response: answers(loginAnswer) } },
    async (request) => {
      const { token, person, expiresAt } = await api.login(request.body.name, request.body.secret, request.ip);
      return { token: token.reveal(), person, expiresAt: expiresAt.toISOString() };
    },
  );

  app.post(
    "/v1/logout",
    { schema: { summary: "End the token that asks", response: answers(z.object({})) } },
    async (request) => {
      const { token } = await personOf(api, request);
      await api.logout(token);
      return {};
    },
  );

  app.get("/v1/whoami", { schema: { summary: "Who is logged in", response: answers(whoami) } }, async (request) => {
    const { person, expiresAt } = await personOf(api, request);
    const known: Person | undefined = api.access.policy().person(person);
    return {
      person,
      roles: [...(known?.roles ?? [])],
      groups: [...(known?.groups ?? [])],
      expiresAt: expiresAt.toISOString(),
    };
  });

  app.get(
    "/v1/playbooks",
    {
      schema: {
        summary: "What may I break now, and if not, why not",
        response: answers(z.object({ playbooks: z.array(playbookView) })),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const policy = api.access.policy();
      const allowed = policy.decide({ action: "list_playbooks", person });
      if (!allowed.allow) throw denied(allowed);
      const views = await playbooksFor(api.access, person);
      const shut = api.access.mayOpen();
      const closed = shut === undefined ? [] : [shut.message];
      const playbooks = views.map(({ playbook, decision, quorum, unknown, hours }) => {
        const target = policy.target(playbook.target);
        const promises = target === undefined ? undefined : api.kinds.get(target.kind)?.promises(target.config);
        return {
          playbook: playbook.name,
          summary: playbook.summary,
          target: playbook.target,
          kind: target?.kind ?? "",
          may: decision.allow && shut === undefined,
          need: decision.need,
          ...{ quorum: [...quorum], unknown: [...unknown], hours, incident: [...(playbook.when.incident ?? [])] },
          unanswered: playbook.approve.unanswered === undefined ? null : { ...playbook.approve.unanswered },
          reasons: [...closed, ...(decision.allow ? [] : [...decision.reasons, ...decision.wouldHold])],
          reasonCodes: [...playbook.when.reasons],
          maxMs: playbook.time.maxMs,
          promises: promises ?? { nativeExpiry: "none", killsLiveSessions: false, worstCaseRevokeMs: 0 },
        };
      });
      return { playbooks };
    },
  );
}
