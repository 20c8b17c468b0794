import { startFake, type FakeServer } from "./fake-server.ts";

/**
 * A fake of Alertmanager's API v2, built from its api/v2/openapi.yaml (0.0.1 of that file): `getAlerts` with its filters.
 * Tests run against the real Alertmanager too, where Debian's package is installed.
 */
export interface FakeAlertmanager extends FakeServer {
  readonly state: AlertmanagerState;
}

export interface AlertmanagerState {
  alerts: {
    labels: Record<string, string>;
    startsAt: string;
    endsAt: string;
    state: "unprocessed" | "active" | "suppressed";
    silencedBy: string[];
    summary?: string;
  }[];
  /** Answers with every alert, whatever was asked. */
  deaf: boolean;
}

export async function startFakeAlertmanager(): Promise<FakeAlertmanager> {
  const state: AlertmanagerState = { alerts: [], deaf: false };
  const server = await startFake(({ url }) => {
    if (url.pathname !== "/api/v2/alerts") return { status: 404, body: "not found" };
    const matchers = url.searchParams.getAll("filter").map((text) => /^([a-zA-Z_]\w*)(=|!=)"([^"\\]*)"$/.exec(text));
    if (matchers.includes(null)) return { status: 400, body: "bad matcher format" };
    const wanted = (flag: string): boolean => url.searchParams.get(flag) !== "false";
    const found = state.alerts.filter(
      ({ labels, state: is, silencedBy }) =>
        state.deaf ||
        ((wanted("silenced") || silencedBy.length === 0) &&
          (wanted("active") || is !== "active") &&
          (wanted("unprocessed") || is !== "unprocessed") &&
          matchers.every((match) => {
            const [, label = "", sign, value = ""] = match ?? [];
            return sign === "=" ? (labels[label] ?? "") === value : (labels[label] ?? "") !== value;
          })),
    );
    const body = found.map(({ labels, startsAt, endsAt, state: is, silencedBy, summary }, index) => ({
      ...{ labels, startsAt, endsAt, updatedAt: startsAt, fingerprint: `f${index}`, receivers: [{ name: "default" }] },
      annotations: summary === undefined ? {} : { summary },
      status: { state: is, silencedBy, inhibitedBy: [] },
    }));
    return { status: 200, body };
  });
  return Object.assign(server, { state });
}
