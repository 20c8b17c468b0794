import { startFake, type Answer, type FakeServer } from "./fake-server.ts";

/**
 * A fake of Grafana IRM. Schedules and users as Grafana's "OnCall HTTP API reference" documents them (grafana.com/docs,
 * docs/sources/oncall-api-reference of OnCall 1.16); incidents as its Incident RPC API v1 has them
 * (`IncidentsService.QueryIncidents`, from the client that Grafana generated out of it on 2026-06-30).
 */
export interface FakeGrafana extends FakeServer {
  readonly state: GrafanaState;
}

export interface GrafanaState {
  token: string;
  /** Schedule → ids of users. */
  schedules: Record<string, string[]>;
  /** User → e-mail. */
  users: Record<string, string>;
  incidents: {
    id: string;
    severity: string;
    status: "active" | "resolved";
    title: string;
    isDrill: boolean;
    createdTime: string;
  }[];
  /** Answers about this user, whatever was asked. */
  insists: string | undefined;
  /** Its list has no end. */
  loops: boolean;
}

export async function startFakeGrafana(): Promise<FakeGrafana> {
  const state: GrafanaState = {
    ...{ token: "glsa_secret", schedules: {}, users: {}, incidents: [], insists: undefined, loops: false },
  };
  const server = await startFake(({ method, url, headers, body }) => {
    if (headers.authorization !== `Bearer ${state.token}`) return { status: 401, body: { detail: "Invalid token" } };
    const path = url.pathname.split("/").filter((part) => part !== "");
    if (path[0] === "oncall" && headers["x-grafana-url"] === undefined)
      return { status: 403, body: { detail: "No stack" } };
    const [collection, id = ""] = path.slice(3);
    if (path[0] === "oncall" && method === "GET" && collection === "schedules") {
      const now = Object.hasOwn(state.schedules, id) ? state.schedules[id] : undefined;
      if (now === undefined) return NOT_FOUND;
      const schedule = { id, name: "Primary", type: "web", team_id: null, time_zone: "UTC", on_call_now: now };
      return { status: 200, body: { ...schedule, slack: { channel_id: null, user_group_id: null } } };
    }
    if (path[0] === "oncall" && method === "GET" && collection === "users") {
      const email = state.users[id];
      if (email === undefined) return NOT_FOUND;
      return { status: 200, body: { id: state.insists ?? id, email, slack: [], username: id.toLowerCase() } };
    }
    if (method === "POST" && path.at(-1) === "IncidentsService.QueryIncidents" && path[2] === "grafana-irm-app") {
      const { query, cursor } = body as {
        query: { limit: number; includeStatuses: string[] };
        cursor: { nextValue: string };
      };
      const from = Number(cursor.nextValue || 0);
      const all = state.incidents.filter(({ status }) => query.includeStatuses.includes(status));
      const incidents = all.slice(from, from + query.limit).map(({ id: incidentID, ...one }) => ({
        ...{ incidentID, ...one, labels: [], refs: [], incidentType: "internal", overviewURL: "/a/x", closedTime: "" },
      }));
      const next = from + query.limit;
      const hasMore = state.loops || next < all.length;
      const nextValue = state.loops ? "0" : hasMore ? String(next) : "";
      return { status: 200, body: { incidents, query, cursor: { hasMore, nextValue } } };
    }
    return NOT_FOUND;
  });
  return Object.assign(server, { state });
}

const NOT_FOUND: Answer = { status: 404, body: { detail: "Not found." } };
