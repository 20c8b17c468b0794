import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { apiUrl, readConfig } from "./config.ts";
import { describe } from "./core/errors.ts";

test("the API has an address that every program can read, also where the first of `hosts` is a bare IPv6 address", () => {
  expect(apiUrl("glasskey.shop.example", 7443)).toBe("https://glasskey.shop.example:7443");
  expect(apiUrl("10.0.0.7", 7443)).toBe("https://10.0.0.7:7443");
  for (const address of ["::1", "fe80::1", "2001:db8::7"]) {
    expect(new URL(apiUrl(address, 7443))).toMatchObject({ hostname: `[${address}]`, port: "7443" });
  }
});

/** What is said of a glasskey.yaml with this text. */
async function complaint(text: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-config-"));
  const file = join(folder, "glasskey.yaml");
  await writeFile(file, text);
  try {
    readConfig(file);
    return "";
  } catch (error) {
    return describe(error);
  } finally {
    await rm(folder, { recursive: true });
  }
}

test("a secret that is written out is refused and shown to nobody, also behind a misspelt key", async () => {
  for (const text of [
    'database: { host: localhost, user: gk, password: "hunter2-literal" }',
    "database:\n  host: localhost\n  user: gk\n  password: hunter2-literal\n",
    "archive: { s3: { bucket: worm, endpoint: https://s3.example, region: x, access_key: hunter2-literal, secret_key: hunter2-literal }, retain: 400d }",
    "sinks: { siem: { kind: splunk_hec, url: https://siem.example, token: hunter2-literal } }",
    "root_key: hunter2-literal",
    "database: { host: localhost, user: gk, pasword: hunter2-literal }",
  ]) {
    const said = await complaint(text);
    expect(said).not.toBe("");
    expect(said).not.toContain("hunter2");
  }
});

test("a kind of targets that is off is not listened for, and every other one is, where nothing else is said", async () => {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-config-"));
  const gatewayOf = async (text: string): Promise<unknown> => {
    await writeFile(join(folder, "glasskey.yaml"), text);
    return readConfig(join(folder, "glasskey.yaml")).gateway;
  };
  const [postgres, ssh] = [
    { host: "127.0.0.1", port: 7432 },
    { host: "127.0.0.1", port: 7422 },
  ];
  expect(await gatewayOf("data: data")).toEqual({ postgres, ssh });
  expect(await gatewayOf("listen: { ssh: off }")).toEqual({ postgres });
  expect(await gatewayOf("listen: { postgres: off, ssh: '[::]:22' }")).toEqual({ ssh: { host: "::", port: 22 } });
  await rm(folder, { recursive: true });
  expect(await complaint("listen: { ssh: 7422 }")).toContain("must be HOST:PORT");
  expect(await complaint("listen: { ssh: none }")).toContain("or off");
  expect(await complaint("listen: { shh: off }")).toMatch(/no key "shh"[^]*ssh/);
});

test("a type that is wrong and a key that is missing are said in our words, and a channel's misspelt key has a suggestion", async () => {
  expect(await complaint("tokens: { ttl: 5 }")).toContain("tokens.ttl must be text");
  expect(await complaint("hosts: here")).toContain("hosts must be a list");
  const slip = await complaint("notify: { slack:x: { webhok: a } }");
  expect(slip).toContain("notify.slack:x.webhook is missing");
  expect(slip).toContain('Did you mean "webhook"?');
  expect(await complaint("evidence: { pagerduty:main: {} }")).toContain("token is missing");
});

test("a folder in place of the file, and a file that is not there, are said in words, with what to give", async () => {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-config-"));
  const [file, missing] = [join(folder, "glasskey.yaml"), join(folder, "glaskey.yaml")];
  try {
    const thrown = (path: string): unknown => {
      try {
        return readConfig(path);
      } catch (error) {
        return error;
      }
    };
    expect(thrown(folder)).toMatchObject({ message: `${folder} is a folder`, next: expect.stringContaining(file) });
    expect(thrown(missing)).toMatchObject({
      message: `there is no ${missing}`,
      next: expect.stringContaining("--config"),
    });
  } finally {
    await rm(folder, { recursive: true });
  }
});
