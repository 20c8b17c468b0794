import { describe, expect, test } from "vitest";
import { newId } from "../../core/ids.ts";
import type { JsonObject } from "../../core/json.ts";
import { createPlan, extensionsFor, orphanPlan, parseConfig, planOf } from "./config.ts";
import { issueCertificate } from "./certificate.ts";
import { publicKeyLine, signerFromSeed } from "./keys.ts";
import { promisesOf } from "./promises.ts";

const KEY = publicKeyLine(signerFromSeed(Buffer.alloc(32, 1)).blob);
const good: JsonObject = { host: "web-1.example.com", hostKeys: { pin: [`${KEY} root@web-1`] } };
const lease = newId("lease");
const name = `gk_ab12cd_${lease.slice(3)}`;

function problems(change: JsonObject): { path: string; message: string }[] {
  const parsed = parseConfig({ ...good, ...change });
  if (parsed.ok) return [];
  return parsed.problems.map(({ path, message }) => ({ path: path.join("."), message }));
}

function value(change: JsonObject = {}): JsonObject {
  const parsed = parseConfig({ ...good, ...change });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return parsed.value;
}

function plan(scope: JsonObject, change: JsonObject = {}): JsonObject {
  const endsAt = new Date("2030-01-01T00:00:00Z");
  return createPlan({ install: "ab12cd", lease, target: "web-1", config: value(change), scope, endsAt });
}

describe("config: of a target file", () => {
  test("defaults are filled in, and a parsed config parses to itself", () => {
    const parsed = parseConfig(good);
    expect(parsed).toEqual({
      ok: true,
      value: {
        ...{ host: "web-1.example.com", port: 22, hostKeys: { pin: [KEY] }, principal: null, from: [] },
        ...{ control: null, fingerprint: { paths: [] }, keepaliveSeconds: 30 },
      },
    });
    for (const config of [
      value(),
      value({ control: { user: "glasskey" }, principal: "gk-web", from: ["10.0.0.0/24", "::1"] }),
    ]) {
      expect(parseConfig(JSON.parse(JSON.stringify(config)))).toEqual({ ok: true, value: config });
    }
    expect(value({ control: { user: "glasskey" } })["control"]).toEqual({
      ...{ user: "glasskey", principal: "glasskey", revokedKeys: "/etc/ssh/glasskey_revoked_keys" },
    });
  });

  test("an empty list of host keys trusts nobody, so it is refused, and so are keys that are none", () => {
    for (const hostKeys of [
      {},
      { pin: [] },
      { ca: [] },
      { pin: [KEY], ca: [KEY] },
      { pin: ["ssh-ed25519 AAAA"] },
      { pin: "x" },
      { any: true },
      "any",
    ]) {
      expect(problems({ hostKeys }).length, JSON.stringify(hostKeys)).toBeGreaterThan(0);
    }
    expect(problems({ hostKeys: { pin: [] } })[0]?.message).toContain("an empty list trusts nobody");
    expect(problems({ hostKeys: { pin: ["ssh-ed25519 AAAA"] } })[0]?.message).toContain(".pub file");
    const certificate = issueCertificate(
      {
        ...{ key: signerFromSeed(Buffer.alloc(32, 1)).blob, type: "host", serial: 1n, keyId: "x", principals: ["x"] },
        ...{ validAfter: new Date(0), validBefore: new Date() },
      },
      signerFromSeed(Buffer.alloc(32, 2)),
    );
    expect(problems({ hostKeys: { pin: [publicKeyLine(certificate)] } })).toHaveLength(1);
  });

  test("lesson 21: names, principals and paths that a shell or sshd could read as more are refused", () => {
    for (const text of ["", " ", "a b", "a,b", "$(id)", "a;b", "-x", "a\nb", "../x", "é", "*", "a".repeat(200)]) {
      expect(problems({ control: { user: text } }), text).toHaveLength(1);
      expect(problems({ principal: text }), text).toHaveLength(1);
      expect(problems({ control: { user: "root", revokedKeys: `/etc/revoked/${text}revoked` } }), text).toHaveLength(
        ["", "-x", "a,b", "a".repeat(200)].includes(text) ? 0 : 1,
      );
    }
    expect(problems({ control: { user: "root", revokedKeys: "/etc/shadow" } })[0]?.message).toContain(
      "writes no other",
    );
    for (const path of ["etc/passwd", "/", "/etc/../root", "/etc/x y", "/etc/$HOME", "/etc//x"]) {
      expect(problems({ fingerprint: { paths: [path] } }), path).toHaveLength(1);
    }
  });

  test("an address that is none, and a network that is everywhere, are refused", () => {
    for (const text of [
      "",
      "example.com",
      "10.0.0.1/0",
      "::/0",
      "10.0.0.0/33",
      "10.0.0.0/8/8",
      "10.0.0.1,10.0.0.2",
      "fe80::1%eth0",
    ]) {
      expect(problems({ from: [text] }), text).toHaveLength(1);
    }
    expect(problems({ from: ["10.0.0.1", "10.0.0.0/8", "2001:db8::/32"] })).toEqual([]);
  });

  test("unknown keys are errors at their own path", () => {
    expect(problems({ hostkeys: {} })).toEqual([{ path: "hostkeys", message: 'unknown key "hostkeys"' }]);
    expect(problems({ control: { user: "root", sudo: true } })[0]?.path).toBe("control.sudo");
    for (const [path, change] of [
      ["host", { host: "a b" }],
      ["port", { port: 0 }],
      ["keepaliveSeconds", { keepaliveSeconds: 1 }],
    ] as const) {
      expect(problems(change)[0]?.path).toBe(path);
    }
  });
});

describe("the plan", () => {
  test("one principal, the scope's user unless the target file says otherwise", () => {
    expect(planOf(plan({ user: "deploy", shell: true }))).toMatchObject({
      lease: name,
      user: "deploy",
      principal: "deploy",
    });
    expect(planOf(plan({ user: "deploy" }, { principal: "gk-web" }))).toMatchObject({
      user: "deploy",
      principal: "gk-web",
    });
    for (const user of [undefined, "", "a b", "root\n", 7]) {
      expect(() => plan(user === undefined ? {} : { user }), String(user)).toThrow("a scope with a user");
    }
  });

  test("the certificate permits what the scope needs and no more", () => {
    expect(extensionsFor({ user: "x" })).toEqual([]);
    expect(
      extensionsFor({ user: "x", sftp: { read: ["/"] }, shell: false, commands: [], forward: [], agent: false }),
    ).toEqual([]);
    expect(extensionsFor({ shell: true })).toEqual(["permit-pty"]);
    expect(extensionsFor({ commands: ["id"] })).toEqual(["permit-pty"]);
    expect(extensionsFor({ remoteForward: ["localhost:1"] })).toEqual(["permit-port-forwarding"]);
    expect(extensionsFor({ agent: true, x11: true, forward: ["db:5432"] })).toEqual([
      ...["permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding"],
    ]);
  });

  test("an orphan's plan lets nobody in", () => {
    const orphan = planOf(orphanPlan(value(), { name, lease }));
    expect(orphan).toMatchObject({ lease: name, user: "", principal: "", extensions: [] });
    expect(() => orphanPlan(value(), { name: "gk_x; rm -rf /", lease })).toThrow("no lease's name");
  });

  test("a stored plan that is damaged is not taken", () => {
    const whole = plan({ user: "deploy" });
    for (const change of [
      { v: 2 },
      { lease: "gk_ab12cd_$(id)" },
      { user: "a b" },
      { extensions: ["x y"] },
      { extra: 1 },
      { hostKeys: { pin: [] } },
    ]) {
      expect(() => planOf({ ...whole, ...change }), JSON.stringify(change)).toThrow(
        expect.objectContaining({ code: "integrity" }),
      );
    }
  });
});

test("what is promised follows from the control login", () => {
  expect(promisesOf(value({ control: { user: "root" } }))).toEqual({
    nativeExpiry: "login",
    killsLiveSessions: true,
    worstCaseRevokeMs: 60_000,
  });
  expect(promisesOf(value())).toEqual({ nativeExpiry: "login", killsLiveSessions: false, worstCaseRevokeMs: 120_000 });
});
