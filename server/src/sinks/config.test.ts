import { expect, test } from "vitest";
import { placeSinks, sinksSchema } from "./config.ts";

const faultsOf = (input: unknown): readonly string[] => {
  const parsed = sinksSchema.safeParse(input);
  return parsed.success ? [] : parsed.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`);
};

test("each kind has its keys, its defaults, and paths and references relative to glasskey.yaml", () => {
  const sinks = sinksSchema.parse({
    siem: { kind: "syslog", host: "siem.internal", ca: "ca.pem", cert: "me.pem", key: "me.key" },
    hook: { kind: "webhook", url: "https://soc.example/in", secret: "${file:hook}" },
    hec: { kind: "splunk_hec", url: "https://splunk.example:8088", token: "${env:HEC}", names: true },
    otel: {
      kind: "otel",
      url: "https://otel.example/v1/logs",
      headers: { authorization: "${file:otel}" },
      from: "start",
    },
    copy: { kind: "file", folder: "copy", rotate: "2GiB", format: "entry" },
  });
  const placed = placeSinks(
    sinks,
    (path) => `/etc/${path}`,
    (text) => text.replace(":", ":/etc/"),
  );
  expect(placed).toMatchObject([
    {
      name: "siem",
      port: 6514,
      transport: "tls",
      ca: "/etc/ca.pem",
      client: { cert: "/etc/me.pem", key: "/etc/me.key" },
    },
    { name: "hook", secret: "${file:/etc/hook}", body: "ndjson", format: "ocsf", from: "now", names: false },
    { name: "hec", token: "${env:/etc/HEC}", names: true },
    { name: "otel", headers: { authorization: "${file:/etc/otel}" }, from: "start" },
    { name: "copy", folder: "/etc/copy", rotateBytes: 2 * 1024 ** 3 },
  ]);
});

test("secrets are references, other machines are reached over TLS only, and no URL has a password in it", () => {
  const hook = { kind: "webhook", url: "https://soc.example/in", secret: "${env:HOOK}" };
  expect(faultsOf({ hook: { ...hook, secret: "whsec_abc" } })).toEqual([expect.stringContaining("literal secret")]);
  expect(faultsOf({ hook: { ...hook, url: "http://soc.example/in" } })).toEqual([
    expect.stringContaining("without TLS"),
  ]);
  expect(faultsOf({ hook: { ...hook, url: "http://127.0.0.1.evil.example/in" } })).toHaveLength(1);
  expect(faultsOf({ hook: { ...hook, url: "https://user:pass@soc.example/" } })).toEqual([
    expect.stringContaining("password"),
  ]);
  expect(faultsOf({ hook: { ...hook, url: "file:///etc/passwd" } })).toEqual([expect.stringContaining("https://")]);
  expect(faultsOf({ hook: { ...hook, url: "http://127.0.0.1:9/in" } })).toEqual([]);
  const siem = { kind: "syslog", host: "siem.internal" };
  expect(faultsOf({ siem: { ...siem, transport: "tcp" } })).toEqual([
    expect.stringContaining("siem.transport: must be tls"),
  ]);
  expect(faultsOf({ siem: { ...siem, cert: "me.pem" } })).toEqual([expect.stringContaining("belong together")]);
});

test("names of sinks, kinds and keys that are not known are errors that say what would be right", () => {
  for (const name of ["Siem", "a b", "x'; drop table sinks; --", "\u001b[2J", "-x", "x".repeat(41), "constructor "])
    expect(faultsOf({ [name]: { kind: "file", folder: "x" } }), name).toEqual([
      expect.stringContaining("not the name of a sink"),
    ]);
  expect(faultsOf({ siem: { kind: "toString" } })).toEqual([
    expect.stringContaining("one of syslog, webhook, splunk_hec, otel, file"),
  ]);
  expect(faultsOf({ siem: "syslog" })).toEqual([expect.stringContaining("needs `kind`")]);
  const unknown = sinksSchema.safeParse({ siem: { kind: "syslog", host: "a", tokn: 1 } });
  expect(unknown.error?.issues).toMatchObject([{ code: "unrecognized_keys", keys: ["tokn"], path: ["siem"] }]);
  const many = Object.fromEntries(Array.from({ length: 21 }, (_, i) => [`s${i}`, { kind: "file", folder: "x" }]));
  expect(faultsOf(many)).toEqual([": has more than 20 sinks"]);
});
