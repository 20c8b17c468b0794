import { beforeAll, expect, test } from "vitest";
import { createAuthority } from "../../core/certificates.ts";
import { newId } from "../../core/ids.ts";
import type { JsonObject } from "../../core/json.ts";
import { Secret } from "../../core/secret.ts";
import type { LeasePlan } from "../target.ts";
import { configOf, parseConfig, planOf } from "./config.ts";
import { createDriver } from "./credentials.ts";
import { postgres } from "./index.ts";

let good: JsonObject;

beforeAll(async () => {
  const { cert } = await createAuthority("test CA", 1);
  const admin = { user: "glasskey", password: "${file:/run/secrets/orders}" };
  good = { host: "db.example.com", tls: { ca: cert }, admin, databases: ["orders", "billing"] };
});

function problems(change: JsonObject): { path: string; message: string }[] {
  const parsed = parseConfig({ ...good, ...change });
  if (parsed.ok) return [];
  return parsed.problems.map(({ path, message }) => ({ path: path.join("."), message }));
}

test("defaults are filled in, and a parsed config parses to itself", () => {
  const parsed = parseConfig(good);
  expect(parsed).toMatchObject({
    ok: true,
    value: { port: 5432, connections: 20, tls: { servername: "db.example.com" }, admin: { database: "postgres" } },
  });
  expect(parseConfig(parsed.ok ? JSON.parse(JSON.stringify(parsed.value)) : undefined)).toEqual(parsed);
  expect(problems({ tls: { ca: "system", servername: "10.0.0.1" } })).toEqual([]);
  expect(problems({ host: "::1" })).toEqual([]);
});

test("a literal secret is refused, and not repeated in the message", () => {
  for (const password of ["hunter2", "${file:}", "${vault:x}", "x${env:A}", "${env:A}\n"]) {
    const [problem] = problems({ admin: { user: "glasskey", password } });
    expect(problem, password).toMatchObject({
      path: "admin.password",
      message: expect.stringContaining("a literal secret is refused"),
    });
    expect(problem?.message).not.toContain("hunter2");
  }
});

test("unknown keys are errors at their own path", () => {
  expect(problems({ sslmode: "disable" })).toEqual([
    { path: "sslmode", message: expect.stringContaining('unknown key "sslmode"') },
  ]);
  expect(problems({ tls: { ca: "system", verify: false } })[0]?.path).toBe("tls.verify");
});

test.for([
  ["host", { host: "/var/run/postgresql" }],
  ["host", { host: "db.example.com; x" }],
  ["port", { port: 0 }],
  ["port", { port: "5432" }],
  ["tls.ca", { tls: { ca: "/etc/ca.pem" } }],
  ["tls.ca", { tls: { ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----" } }],
  ["tls", { tls: null }],
  ["databases", { databases: [] }],
  ["databases", { databases: ["a", "a"] }],
  ["databases.0", { databases: ["x".repeat(64)] }],
  ["databases.0", { databases: ["a\0b"] }],
  ["connections", { connections: 0 }],
] as [string, JsonObject][])("a wrong %s is refused: %o", ([path, change]) => {
  expect(problems(change)[0]?.path).toBe(path);
});

test("the plan names the role after installation and lease, and keeps the secret's reference only", () => {
  const driver = createDriver({ resolve: () => new Secret("hunter2") });
  const parsed = parseConfig(good);
  if (!parsed.ok) throw new Error("not ok");
  const lease = newId("lease");
  const endsAt = new Date("2030-01-01T00:00:00Z");
  const request = { install: "ab12cd", lease, target: "t", config: parsed.value, scope: { role: "orders_rw" }, endsAt };
  const plan = planOf(driver.plan(request));
  expect(plan).toMatchObject({
    ...{ v: 1, role: `gk_ab12cd_${lease.slice(3)}`, template: "orders_rw", validUntil: "2030-01-01T00:00:00.000Z" },
    ...{ admin: { password: "${file:/run/secrets/orders}" }, connectionLimit: 20 },
  });
  for (const bad of [{ install: "AB12CD" }, { install: "a" }, { lease: "ls_x" }, { scope: {} }]) {
    expect(() => driver.plan({ ...request, ...bad })).toThrow(expect.objectContaining({ code: "internal" }));
  }
});

test("what is no plan is not acted upon", () => {
  for (const bad of [{}, { v: 2 }, { role: "postgres" }] as LeasePlan[]) {
    expect(() => planOf(bad)).toThrow(expect.objectContaining({ code: "integrity" }));
  }
  expect(() => configOf({})).toThrow(expect.objectContaining({ code: "config_invalid" }));
});

test("the client's command verifies the gateway and quotes what a path may hold", () => {
  const command = postgres.clientCommand({
    ...{
      host: "gate.example.com",
      port: 6432,
      grant: "gr_7kq2m9x4tbzc",
      trust: "",
      caFile: "/home/o'brien/my ca\\.pem",
    },
    config: parsed(),
  });
  expect(command.argv).toEqual([
    "psql",
    String.raw`host=gate.example.com port=6432 user=gr_7kq2m9x4tbzc dbname=orders sslmode=verify-full sslrootcert='/home/o\'brien/my ca\\.pem'`,
  ]);
  expect(command.env).toMatchObject({ PGSSLMODE: "verify-full", PGDATABASE: "orders" });
  expect(command.secretEnv).toBe("PGPASSWORD");
  function parsed(): JsonObject {
    const result = parseConfig(good);
    if (!result.ok) throw new Error("not ok");
    return result.value;
  }
});
