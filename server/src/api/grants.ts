import {
  breakRequest,
  connectAnswer,
  connectRequest,
  endRequest,
  grantView,
  killAnswer,
  killRequest,
  params,
  type GrantView,
} from "@glasskey/contract";
import { z } from "zod";
import { vote } from "../access/approve.ts";
import { endGrant, kill } from "../access/close.ts";
import { extendGrant } from "../access/extend.ts";
import { OPEN_STATES, type GrantRow } from "../access/lifecycle.ts";
import { pinned } from "../access/pins.ts";
import { readableGrants } from "../access/readable.ts";
import { denied, requestGrant } from "../access/request.ts";
import { connectSecret } from "../access/sessions.ts";
import { sleep } from "../core/clock.ts";
import { GlassError } from "../core/errors.ts";
import type { GrantVerb } from "../playbooks/policy.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";
import { grantViewOf } from "./views.ts";
import { createWaits } from "./waits.ts";

const END_WAIT_MS = 10_000; // longer than any proof with the target up; then the person is told, and the work goes on
const LIST_LIMIT = 200;
/** Each holds a connection to the store and asks the sources of evidence, of both of which others need some, too. */
const BREAKS_PER_PERSON = 6;
const WAIT_POLL_MS = 150;

export function grantRoutes(app: Routes, api: Api): void {
  const { access } = api;

  const waits = createWaits();
  const breaks = createWaits(BREAKS_PER_PERSON);
  const load = async (id: string): Promise<GrantRow> => {
    const row = await access.store.selectFrom("grants").selectAll().where("id", "=", id).executeTakeFirst();
    if (row === undefined)
      throw new GlassError("not_found", `there is no grant ${id}`, { next: "`glass status` lists yours." });
    return row;
  };
  /** The grant, if the policy lets this person do that with it. Who may not even read it learns nothing of it. */
  const permit = async (id: string, person: string, action: GrantVerb): Promise<GrantRow> => {
    const grant = await load(id);
    const about = { person, playbook: grant.playbook, requester: grant.requester };
    const policy = access.policy();
    const decision = policy.decide({ action, ...about });
    if (decision.allow) return grant;
    if (action !== "read_grant" && policy.decide({ action: "read_grant", ...about }).allow) throw denied(decision);
    throw new GlassError("not_found", `there is no grant ${id}`, { next: "`glass status` lists yours." });
  };

  app.post(
    "/v1/grants",
    { schema: { summary: "Break the glass", body: breakRequest, response: answers(grantView) } },
    async (request): Promise<GrantView> => {
      const { person } = await personOf(api, request);
      const grant = await breaks.run(person, request.raw, () => requestGrant(access, { ...request.body, person }));
      return grantViewOf(api, await load(grant));
    },
  );

  app.get(
    "/v1/grants",
    {
      schema: {
        summary: "Grants that the caller may see, newest first",
        querystring: z.object({ open: z.enum(["true", "false"]).optional() }),
        response: answers(z.object({ grants: z.array(grantView) })),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const policy = access.policy();
      const all = policy.decide({ action: "list_grants", person }).allow;
      let query = access.store
        .selectFrom("grants")
        .selectAll()
        .where(readableGrants(policy, person))
        .orderBy("created_at", "desc")
        .limit(LIST_LIMIT);
      if (request.query.open === "true") query = query.where("state", "in", ["pending", ...OPEN_STATES]);
      if (!all)
        query = query.where((eb) =>
          eb.or([eb("requester", "=", person), eb("state", "in", ["pending", ...OPEN_STATES])]),
        );
      const rows = (await query.execute()).filter(
        (row) =>
          policy.decide({ action: "read_grant", person, playbook: row.playbook, requester: row.requester }).allow,
      );
      return { grants: await Promise.all(rows.map((row) => grantViewOf(api, row))) };
    },
  );

  app.get(
    "/v1/grants/:grant",
    {
      schema: {
        summary: "One grant; with `until`, waits for a change",
        params: params.grant,
        querystring: z.object({
          until: z.enum(["decided", "open", "closed"]).optional(),
          waitMs: z.coerce.number().int().min(0).max(60_000).optional(),
        }),
        response: answers(grantView),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      let grant = await permit(request.params.grant, person, "read_grant");
      const until = request.query.until;
      const waiting: Record<string, readonly string[]> = {
        decided: ["pending"],
        open: ["pending", "approved", "opening"],
        closed: ["pending", "approved", "opening", "active", "closing"],
      };
      const states = until === undefined ? [] : (waiting[until] ?? []);
      if (states.includes(grant.state) && (request.query.waitMs ?? 0) > 0) {
        grant = await waits.run(person, request.raw, async (gone) => {
          const deadline = performance.now() + (request.query.waitMs ?? 0);
          let now = grant;
          while (states.includes(now.state) && performance.now() < deadline && !gone.aborted) {
            await sleep(WAIT_POLL_MS, gone).catch(() => {});
            now = await load(now.id);
          }
          return now;
        });
      }
      return grantViewOf(api, grant);
    },
  );

  for (const verdict of ["approve", "deny"] as const) {
    app.post(
      `/v1/grants/:grant/${verdict}`,
      {
        schema: {
          summary: verdict === "approve" ? "Say yes" : "Say no",
          params: params.grant,
          response: answers(grantView),
        },
      },
      async (request) => {
        const { person } = await personOf(api, request);
        await permit(request.params.grant, person, "read_grant");
        await vote(access, person, request.params.grant, verdict);
        return grantViewOf(api, await load(request.params.grant));
      },
    );
  }

  app.post(
    "/v1/grants/:grant/connect",
    {
      schema: {
        summary: "How a native client reaches the target under this grant",
        params: params.grant,
        body: connectRequest,
        response: answers(connectAnswer),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const grant = await permit(request.params.grant, person, "connect");
      const shut = access.mayOpen();
      if (shut !== undefined) throw shut;
      if (grant.state === "pending" || grant.state === "approved" || grant.state === "opening") {
        throw new GlassError("waiting_for_human", `grant ${grant.id} is ${grant.state}`, {
          next: `Wait for it: glass status ${grant.id}`,
        });
      }
      if (grant.state !== "active" || grant.ends_at === null || grant.ends_at <= new Date()) {
        throw new GlassError("grant_over", `grant ${grant.id} is over: ${grant.end_text ?? grant.state}`, {
          next: `Break the glass again: glass break ${grant.playbook} --reason CODE --why "…"`,
        });
      }
      const endpoint = api.endpoint(grant.kind);
      const kind = api.kinds.get(grant.kind);
      if (endpoint === undefined || kind === undefined) {
        throw new GlassError("config_invalid", `this Glasskey has no listener for ${grant.kind}`, {
          next: "Set `listen:` in glasskey.yaml.",
        });
      }
      const { target } = await pinned(access.store, grant.playbook_hash);
      const secret = connectSecret(access, grant.id);
      const publicKey = request.body?.publicKey;
      const now = api.clock.now();
      const certified =
        publicKey === undefined
          ? undefined
          : kind.clientCertificate?.({
              ...{ connectSecret: secret, grant: grant.id, publicKey, now, endsAt: grant.ends_at },
            });
      const command = kind.clientCommand({ ...endpoint, grant: grant.id, config: target.config, caFile: "{ca}" });
      return {
        ...{
          grant: grant.id,
          kind: grant.kind,
          ...endpoint,
          user: grant.id,
          secret: secret.reveal(),
        },
        ...{
          secretEnv: command.secretEnv,
          env: { ...command.env },
          argv: [...command.argv],
          ca: api.ca,
          certificate: certified?.certificate ?? null,
          certificateUntil: certified?.validUntil.toISOString() ?? null,
          endsAt: grant.ends_at.toISOString(),
        },
      };
    },
  );

  app.post(
    "/v1/grants/:grant/extend",
    {
      schema: {
        summary: "Ask for a later end; a new decision",
        params: params.grant,
        response: answers(z.object({ extended: z.boolean(), grant: grantView })),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      await permit(request.params.grant, person, "read_grant");
      const { extended } = await extendGrant(access, person, request.params.grant);
      return { extended, grant: await grantViewOf(api, await load(request.params.grant)) };
    },
  );

  app.post(
    "/v1/grants/:grant/end",
    {
      schema: {
        summary: "End it; answers after the proof, or after `waitMs`",
        params: params.grant,
        body: endRequest.optional(),
        response: answers(grantView),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const grant = await load(request.params.grant).catch(() => undefined);
      const permitted = await permit(request.params.grant, person, grant?.state === "pending" ? "withdraw" : "end");
      await endGrant(access, person, permitted, `ended by ${person}`);
      return grantViewOf(api, await closed(permitted.id, request.body?.waitMs ?? END_WAIT_MS));
    },
  );

  app.post(
    "/v1/kill",
    {
      schema: {
        summary: "Security officer: stop a grant or a session, in any state",
        body: killRequest,
        response: answers(killAnswer),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const { id, why = "" } = request.body;
      const session = id.startsWith("se_")
        ? await access.store.selectFrom("sessions").select("grant_id").where("id", "=", id).executeTakeFirst()
        : undefined;
      if (id.startsWith("se_") && session === undefined) {
        throw new GlassError("not_found", `there is no session ${id}`, { next: "`glass sessions --open` lists them." });
      }
      await permit(session?.grant_id ?? id, person, "kill");
      const { grant, cut } = await kill(access, person, id, why);
      const row = id === grant ? await closed(grant, END_WAIT_MS) : await load(grant);
      return { id, sessionsCut: cut, grant: await grantViewOf(api, row) };
    },
  );

  const closed = async (id: string, waitMs: number): Promise<GrantRow> => {
    const deadline = performance.now() + waitMs;
    for (;;) {
      const grant = await load(id);
      if (!(OPEN_STATES as readonly string[]).includes(grant.state) || performance.now() >= deadline) return grant;
      await sleep(20);
    }
  };
}
