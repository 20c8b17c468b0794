import { expect, test } from "vitest";
import { evidenceConfig, evidenceKeys, placeEvidence } from "./config.ts";

/** `path: message` of everything that is wrong. */
function problems(input: unknown): readonly string[] {
  const parsed = evidenceConfig.safeParse(input);
  return parsed.success ? [] : parsed.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`);
}

const token = "${env:TOKEN}";

test("every kind of source is read, with its defaults", () => {
  const sources = evidenceConfig.parse({
    "pagerduty:main": { token, severity: { P1: "SEV1" }, urgency: { low: "SEV4" }, max_age: "2m" },
    "grafana:irm": { url: "https://shop.grafana.net", oncall_url: "https://oncall.grafana.net/oncall", token },
    "alertmanager:prod": { url: "https://alerts.shop.example/am", ca: "certs/ca.pem" },
    "webhook:pager": { secret: "${file:secrets/pager}", knows: ["oncall"] },
  });
  const [pagerduty, grafana, alertmanager, webhook] = sources;
  expect(pagerduty).toMatchObject({ kind: "pagerduty", maxAgeMs: 120_000, knows: ["oncall", "incident"] });
  expect(pagerduty?.kind === "pagerduty" && pagerduty.url.href).toBe("https://api.pagerduty.com/");
  expect(pagerduty?.severity.get("P1")).toBe("SEV1");
  expect(grafana).toMatchObject({ kind: "grafana", maxAgeMs: 60_000 });
  expect(alertmanager).toMatchObject({ incidentLabel: "incident", severityLabel: "severity", knows: ["incident"] });
  expect(webhook).toMatchObject({ secrets: ["${file:secrets/pager}"], knows: ["oncall"] });
  const placed = placeEvidence(
    sources,
    (path) => `/etc/glasskey/${path}`,
    (reference) => `at ${reference}`,
  );
  expect(placed).toMatchObject([
    { token: `at ${token}` },
    { token: `at ${token}` },
    { ca: "/etc/glasskey/certs/ca.pem" },
    { secrets: ["at ${file:secrets/pager}"] },
  ]);
});

test("a literal secret, plain HTTP to another machine, a slip of the fingers: each is refused where it stands", () => {
  expect(problems({ "pagerduty:main": { token: "u+literal" } })).toEqual([
    expect.stringMatching(/^pagerduty:main\.token: a literal secret is refused/),
  ]);
  expect(problems({ "alertmanager:prod": { url: "http://alerts.shop.example" } })).toEqual([
    expect.stringMatching(/^alertmanager:prod\.url: must begin with https/),
  ]);
  expect(problems({ "alertmanager:prod": { url: "http://localhost:9093" } })).toEqual([]);
  for (const url of [
    "https://user:secret@a.example",
    "https://a.example/?token=x",
    "file:///etc/passwd",
    "api.pagerduty.com",
  ])
    expect(problems({ "grafana:irm": { url, token } }), url).toHaveLength(1);
  expect(problems({ "pagerduty:main": { token, max_age: "2h" } })).toEqual([
    "pagerduty:main.max_age: must be 1h at most",
  ]);
  expect(problems({ "alertmanager:prod": { url: "https://a.example", knows: ["oncall"] } })).toHaveLength(1);
  expect(problems({ "pagerduty:main": { token, severity: { P1: "very bad" } } })).toHaveLength(1);
  expect(problems({ "webhook:pager": { secret: [] } })).toHaveLength(1);
  expect(problems({ "webhook:pager": "${env:X}" })).toHaveLength(1);
});

test("an unknown key is reported as one, with its place, so that the reader of glasskey.yaml can suggest the right one", () => {
  const parsed = evidenceConfig.safeParse({ "pagerduty:main": { token, max_aeg: "1m" } });
  expect(parsed.error?.issues).toMatchObject([
    { code: "unrecognized_keys", keys: ["max_aeg"], path: ["pagerduty:main"] },
  ]);
  expect(evidenceKeys("pagerduty:main")).toContain("max_age");
  expect(evidenceKeys("toString:main")).toEqual([]);
});

test("a source of no known kind, or whose name is no name, is refused", () => {
  expect(problems({ "opsgenie:main": { token } })).toEqual([
    expect.stringContaining("pagerduty, grafana, alertmanager, webhook"),
  ]);
  expect(problems({ pagerduty: { token } })).toHaveLength(1);
  expect(problems({ "constructor:main": {} })).toHaveLength(1);
  expect(problems(Object.fromEntries(Array.from({ length: 20 }, (_, n) => [`pagerduty:n${n}`, { token }])))).toEqual([
    ": has more than 16 sources",
  ]);
});
