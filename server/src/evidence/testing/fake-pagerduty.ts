import { startFake, type Answer, type FakeServer } from "./fake-server.ts";

/**
 * A fake of PagerDuty's REST API v2, built from its published schema: github.com/PagerDuty/api-schema,
 * reference/REST/openapiv3.json, version 2.0.0 of 2026-08-14. It has what Glasskey asks for: `listOnCalls`, `getSchedule`,
 * `getIncident`, `listIncidents`, with offset pagination and the errors of the schema.
 */
export interface FakePagerduty extends FakeServer {
  readonly state: PagerdutyState;
}

export interface PagerdutyState {
  token: string;
  /** Schedules that exist. */
  schedules: string[];
  oncalls: {
    schedule: string | null;
    user: string;
    email: string | undefined;
    level: number;
    start: string | null;
    end: string | null;
  }[];
  incidents: {
    id: string;
    number: number;
    title: string;
    status: string;
    urgency: "high" | "low";
    priority: string | null;
    createdAt: string;
  }[];
  /** Answers with every on-call of every schedule, whatever was asked. */
  deaf: boolean;
  /** Answers about this incident, whatever was asked. */
  insists: string | undefined;
}

export async function startFakePagerduty(): Promise<FakePagerduty> {
  const state: PagerdutyState = {
    ...{
      token: "pd-secret-token",
      schedules: ["PI7DH85"],
      oncalls: [],
      incidents: [],
      deaf: false,
      insists: undefined,
    },
  };
  const server = await startFake(({ method, url, headers }) => {
    if (headers.authorization !== `Token token=${state.token}`) return failure(401, 2006, "You are not authorized");
    if (headers.accept !== "application/vnd.pagerduty+json;version=2")
      return failure(400, 2001, "Invalid Input Provided");
    const [, collection = "", id] = url.pathname.split("/");
    if (method !== "GET") return failure(404, 2100, "Not Found");
    const offset = Number(url.searchParams.get("offset") ?? 0);
    const limit = Number(url.searchParams.get("limit") ?? 25);
    if (collection === "oncalls" && id === undefined) {
      const schedules = url.searchParams.getAll("schedule_ids[]");
      const full = url.searchParams.getAll("include[]").includes("users");
      const all = state.oncalls.filter(
        ({ schedule }) => state.deaf || (schedule !== null && schedules.includes(schedule)),
      );
      const oncalls = all.slice(offset, offset + limit).map(({ schedule, user, email, level, start, end }) => ({
        escalation_policy: reference("escalation_policy_reference", "PT20YPA"),
        escalation_level: level,
        schedule: schedule === null ? null : reference("schedule_reference", schedule),
        user: full
          ? {
              ...reference("user", user),
              name: user,
              email,
              role: "user",
              time_zone: "UTC",
              description: null,
              teams: [],
            }
          : reference("user_reference", user),
        ...{ start, end },
      }));
      return { status: 200, body: { oncalls, limit, offset, more: offset + limit < all.length, total: null } };
    }
    if (collection === "schedules" && id !== undefined) {
      if (!state.schedules.includes(id)) return failure(404, 2100, "Not Found");
      return { status: 200, body: { schedule: { ...reference("schedule", id), name: id, time_zone: "UTC" } } };
    }
    if (collection === "incidents" && id === undefined) {
      const statuses = url.searchParams.getAll("statuses[]");
      const all = state.incidents.filter(({ status }) => statuses.includes(status));
      const incidents = all.slice(offset, offset + limit).map(incidentBody);
      return { status: 200, body: { incidents, limit, offset, more: offset + limit < all.length, total: null } };
    }
    const wanted = state.insists ?? id;
    const found = state.incidents.find((one) => one.id === wanted || String(one.number) === wanted);
    if (collection !== "incidents" || found === undefined) return failure(404, 2100, "Not Found");
    return { status: 200, body: { incident: incidentBody(found) } };
  });
  return Object.assign(server, { state });
}

function incidentBody(one: PagerdutyState["incidents"][number]): object {
  const { id, number, title, status, urgency, priority, createdAt } = one;
  return {
    ...{ id, incident_number: number, type: "incident", summary: `[#${number}] ${title}`, title, status, urgency },
    ...{ created_at: createdAt, service: reference("service_reference", "PWIXJZS"), assignments: [] },
    priority: priority === null ? null : { ...reference("priority", "P53ZZH5"), summary: priority, name: priority },
  };
}

function reference(type: string, id: string): object {
  const self = `https://api.pagerduty.com/${type.replace("_reference", "")}s/${id}`;
  return { id, type, summary: id, self, html_url: null };
}

function failure(status: number, code: number, message: string): Answer {
  return { status, body: { error: { code, message, errors: [] } } };
}
