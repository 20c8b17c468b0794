import { params, reviewAnswer, reviewList, signRequest, type ReviewAnswer } from "@glasskey/contract";
import type { GrantRow } from "../access/lifecycle.ts";
import { denied } from "../access/request.ts";
import { signReview, waitingReviews } from "../access/review.ts";
import { timelineOf } from "../access/timeline.ts";
import { GlassError } from "../core/errors.ts";
import { answers, personOf, type Routes } from "./routes.ts";
import type { Api } from "./services.ts";
import { grantViewOf, reviewViewOf, sessionViewOf } from "./views.ts";

const MAX_SESSIONS = 500;

export function reviewRoutes(app: Routes, api: Api): void {
  const { access } = api;

  /** The grant, for people who may see it or sign its review. Who may do neither learns nothing of it. */
  const permit = async (id: string, person: string): Promise<{ grant: GrantRow; maySign: boolean }> => {
    const grant = await access.store.selectFrom("grants").selectAll().where("id", "=", id).executeTakeFirst();
    if (grant !== undefined) {
      const about = { person, playbook: grant.playbook, requester: grant.requester };
      const maySign = access.policy().decide({ action: "sign_review", ...about }).allow;
      if (maySign || access.policy().decide({ action: "read_grant", ...about }).allow) return { grant, maySign };
    }
    throw new GlassError("not_found", `there is no grant ${id}`, { next: "`glass review` lists reviews that wait." });
  };

  const answer = async (grant: GrantRow, maySign: boolean): Promise<ReviewAnswer> => {
    const sessions = await access.store
      .selectFrom("sessions")
      .selectAll()
      .where("grant_id", "=", grant.id)
      .orderBy("opened_at")
      .limit(MAX_SESSIONS)
      .execute();
    const { moments, complete } = await timelineOf(access, api.log.reader, grant.id);
    const view = await grantViewOf(api, grant);
    return {
      ...{ grant: view, maySign: maySign && view.review !== null && view.review.signedAt === null },
      sessions: sessions.map((row) => sessionViewOf({ ...row, target: grant.target })),
      ...{ timeline: moments.map((moment) => ({ ...moment })), complete },
    };
  };

  app.get(
    "/v1/reviews",
    { schema: { summary: "Reviews that wait for a signature, the most overdue first", response: answers(reviewList) } },
    async (request) => {
      const { person } = await personOf(api, request);
      const allowed = access.policy().decide({ action: "list_grants", person });
      if (!allowed.allow) throw denied(allowed);
      const rows = await waitingReviews(access, person);
      return {
        reviews: rows.map(({ review, grant, maySign }) => ({
          ...reviewViewOf(access, review),
          ...{ target: grant.target, reason: grant.reason, state: grant.state, maySign },
        })),
      };
    },
  );

  app.get(
    "/v1/grants/:grant/review",
    {
      schema: {
        summary: "The look back on one use: its story from the log, its sessions, evidence and proof",
        params: params.grant,
        response: answers(reviewAnswer),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      const { grant, maySign } = await permit(request.params.grant, person);
      return answer(grant, maySign);
    },
  );

  app.post(
    "/v1/grants/:grant/review",
    {
      schema: {
        summary: "Sign the review of a closed grant; never one's own",
        params: params.grant,
        body: signRequest,
        response: answers(reviewAnswer),
      },
    },
    async (request) => {
      const { person } = await personOf(api, request);
      await permit(request.params.grant, person);
      await signReview(access, person, request.params.grant, request.body);
      const { grant, maySign } = await permit(request.params.grant, person);
      return answer(grant, maySign);
    },
  );
}
