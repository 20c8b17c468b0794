import { expect, test } from "vitest";
import { locateChannels, notifySchema } from "./config.ts";

const parse = (input: unknown): string[] => {
  const parsed = notifySchema.safeParse(input);
  return parsed.success ? [] : parsed.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`);
};

test("channels are read by the kind in their name, with defaults, and alarms name some of them", () => {
  const config = notifySchema.parse({
    "slack:incidents": { webhook: "${file:secrets/slack}", why: true },
    "pagerduty:duty": { routing_key: "${env:PD}" },
    "webhook:siren": { url: "https://siren.example/hook", secret: "${file:s}", page: true, ca: "siren.pem" },
    alarms: ["pagerduty:duty", "pagerduty:duty"],
  });
  expect(config.channels.get("slack:incidents")).toEqual({
    kind: "slack",
    webhook: "${file:secrets/slack}",
    why: true,
  });
  expect(config.channels.get("pagerduty:duty")).toMatchObject({
    ...{ kind: "pagerduty", routingKey: "${env:PD}", page: true, why: false },
    url: "https://events.pagerduty.com/v2/enqueue",
  });
  expect(config.alarms).toEqual(["pagerduty:duty"]);
  const located = locateChannels(config, {
    path: (p) => `/etc/${p}`,
    reference: (r) => r.replace("file:", "file:/etc/"),
  });
  expect(located.channels.get("webhook:siren")).toMatchObject({ ca: "/etc/siren.pem", secret: "${file:/etc/s}" });
  expect(located.channels.get("slack:incidents")).toMatchObject({ webhook: "${file:/etc/secrets/slack}" });
  expect(located.channels.get("pagerduty:duty")).toMatchObject({ routingKey: "${env:PD}" });
});

test("a literal secret, plain http, an unknown kind or key, and an alarm channel that is not there are refused, each at its place", () => {
  const secret = "https://hooks.slack.com/services/T/B/literal";
  const literal = parse({ "slack:a": { webhook: secret } });
  expect(literal).toEqual([expect.stringMatching(/^slack:a\.webhook: a literal secret is refused/)]);
  expect(literal.join()).not.toContain("services/T/B");
  expect(parse({ "webhook:a": { url: "http://siren.example", secret: "${env:S}" } })).toEqual([
    "webhook:a.url: must be an https:// URL",
  ]);
  expect(parse({ "email:a": {} })).toEqual([expect.stringMatching(/^email:a: is not the name of a channel/)]);
  expect(parse({ "slack:A b": {} })).toEqual([expect.stringMatching(/^slack:A b: is not the name/)]);
  expect(parse({ "slack:a": { webhook: "${env:S}", page: true } })).toEqual([
    expect.stringMatching(/^slack:a: .*page/),
  ]);
  expect(parse({ alarms: ["slack:a"] })).toEqual(["alarms.0: is not one of the channels above"]);
  expect(parse({ alarms: "slack:a" })).toEqual([expect.stringMatching(/^alarms: must be a list/)]);
  expect(parse({ "slack:a": null })).toHaveLength(1);
});

test("nothing configured is no channel and no alarm, and names such as __proto__ are no channels", () => {
  expect(notifySchema.parse({})).toEqual({ channels: new Map(), alarms: [] });
  expect(notifySchema.parse(JSON.parse('{"__proto__": {"webhook": "${env:S}"}}')).channels.size).toBe(0);
  expect(parse({ alarms: ["__proto__", "toString"] })).toHaveLength(2);
});
