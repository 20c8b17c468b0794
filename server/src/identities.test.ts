import { expect, test } from "vitest";
import { hkdfSync } from "node:crypto";
import type { JsonObject } from "./core/json.ts";
import { Secret } from "./core/secret.ts";
import { createIdentities, type IdentityParts } from "./identities.ts";
import type { TargetKind } from "./targets/target.ts";

const DAY_MS = 86_400_000;
let now = new Date("2026-01-01T00:00:00Z");

/** A kind as far as this file looks at one: an identity that is renewed after a day. */
function kind(name: string, parts: Partial<TargetKind> = {}): TargetKind {
  const none = (): never => {
    throw new Error("not asked for");
  };
  return {
    ...{ kind: name, parseConfig: none, parseScope: none, promises: none, driver: none, serve: none },
    ...{ clientCommand: none, ...parts },
  };
}

const withIdentity = kind("ssh", {
  identity: ({ derive, hosts, port, now: at }) => ({
    listener: { key: derive("host key").reveal(), at: at.toISOString() },
    trust: `${hosts.join()} ${port}`,
    renewAt: new Date(at.getTime() + DAY_MS),
  }),
  hostSetup: ({ install, derive }, config) => ({
    steps: [{ title: `for ${install}`, text: JSON.stringify(config) }],
    formats: { shell: derive("ca").reveal() },
  }),
});

const parts: IdentityParts = {
  kinds: [kind("postgres"), withIdentity],
  keyring: { derive: (purpose, id) => Buffer.from(hkdfSync("sha256", "root", "", `${purpose} ${id}`, 32)) },
  install: "abc123",
  resolve: (text) => new Secret(text),
  hosts: ["gate.example.com"],
  listeners: ["postgres", "ssh"],
  now: () => now,
};

test("every process of an installation makes the same keys, and each kind has its own", () => {
  const [one, other] = [createIdentities(parts), createIdentities(parts)];
  expect(one.listeners).toEqual(other.listeners);
  expect(Object.keys(one.listeners)).toEqual(["ssh"]); // the kind without an identity has none
  const secret = (name: string): string => one.tools(name).derive("ca").reveal();
  expect(secret("ssh")).toHaveLength(43);
  expect(secret("ssh")).not.toBe(secret("postgres"));
});

test("clients are told of the port that was really taken; a kind that nobody listens for is trusted for nothing", () => {
  expect(createIdentities(parts).trust("ssh", 7422)).toBe("gate.example.com 7422");
  expect(createIdentities(parts).trust("postgres", 7432)).toBe("");
  expect(createIdentities({ ...parts, listeners: [] }).trust("ssh", 7422)).toBe("");
});

test("an identity is made anew when it is due, once, and again if the data plane could not take it", async () => {
  const identities = createIdentities(parts);
  const given: JsonObject[] = [];
  const identify = (_kind: string, listener: JsonObject): Promise<void> => Promise.resolve(void given.push(listener));
  await identities.renew(identify);
  expect(given).toEqual([]);
  now = new Date(now.getTime() + DAY_MS);
  await expect(identities.renew(() => Promise.reject(new Error("not now")))).rejects.toThrow("not now");
  await identities.renew(identify);
  await identities.renew(identify);
  expect(given).toEqual([{ key: identities.listeners["ssh"]?.["key"], at: now.toISOString() }]);
});

test("a set-up is shown for a target, and for a kind without one it says where to look", () => {
  const identities = createIdentities(parts);
  expect(identities.setup("ssh", { port: 22 }).steps).toEqual([{ title: "for abc123", text: '{"port":22}' }]);
  expect(() => identities.setup("postgres", {})).toThrow(
    expect.objectContaining({ code: "not_found", next: "See docs/postgres-target.md." }),
  );
  expect(() => identities.setup("nothing", {})).toThrow(expect.objectContaining({ next: "Kinds with one: ssh" }));
});
