import { generateKeyPairSync } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createCosigner, createSigner } from "@glasskey/verify";
import { expect, test } from "vitest";
import { readConfig, type ServerConfig } from "../config.ts";
import { describe } from "../core/errors.ts";

const cosigner = (name: string): string => createCosigner(name, generateKeyPairSync("ed25519").privateKey).vkey;
const [ONE, TWO] = [cosigner("one.example/w"), cosigner("two.example/w")];

async function read(yaml: string): Promise<ServerConfig | string> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-config-"));
  const file = join(folder, "glasskey.yaml");
  await writeFile(file, yaml);
  try {
    return readConfig(file);
  } catch (error) {
    return describe(error);
  } finally {
    await rm(folder, { recursive: true });
  }
}
const witnesses = (text: string): Promise<ServerConfig | string> => read(`log: { witnesses: ${text} }`);

test("witnesses are read with their keys, addresses and CA, and without the section there are none", async () => {
  const found = await witnesses(
    `{ need: 1, of: [{ key: ${ONE}, url: "https://w.example/glass/", ca: ca.pem }, { key: ${TWO}, url: "http://127.0.0.1:7455" }] }`,
  );
  expect(found).toMatchObject({
    witnesses: {
      need: 1,
      of: [
        { key: ONE, url: "https://w.example/glass", ca: expect.stringMatching(/^\/.*\/ca\.pem$/) },
        { key: TWO, url: "http://127.0.0.1:7455" },
      ],
    },
  });
  expect(await read("log: {}")).toMatchObject({ witnesses: undefined });
});

const https = "https://w.example";
const log = createSigner("log.example", generateKeyPairSync("ed25519").privateKey).vkey;
const again = generateKeyPairSync("ed25519").privateKey;
const [here, there] = ["a.example/w", "b.example/w"].map((name) => createCosigner(name, again).vkey);
test.each([
  ["nobody needed", `{ need: 0, of: [{ key: ${ONE}, url: "${https}" }] }`, /log\.witnesses\.need must be at least 1/],
  ["more needed than there are", `{ need: 2, of: [{ key: ${ONE}, url: "${https}" }] }`, /needs 1 to 1 of its 1/],
  ["no witness", "{ need: 1, of: [] }", /log\.witnesses\.of/],
  ["no list", "{ need: 1 }", /log\.witnesses\.of is missing/],
  ["a log's key", `{ need: 1, of: [{ key: ${log}, url: "${https}" }] }`, /not the key of a witness/],
  ["no key at all", `{ need: 1, of: [{ key: abc, url: "${https}" }] }`, /is not a verifier key/],
  ["plain HTTP to elsewhere", `{ need: 1, of: [{ key: ${ONE}, url: "http://w.example" }] }`, /must be an https/],
  ["a password in the address", `{ need: 1, of: [{ key: ${ONE}, url: "https://a:b@w.example" }] }`, /must be an https/],
  ["a query", `{ need: 1, of: [{ key: ${ONE}, url: "https://w.example/?" }] }`, /must be an https/],
  ["a fragment", `{ need: 1, of: [{ key: ${ONE}, url: "https://w.example/#" }] }`, /must be an https/],
  ["a space", `{ need: 1, of: [{ key: ${ONE}, url: "https://w.example/ " }] }`, /must be an https/],
  ["a file", `{ need: 1, of: [{ key: ${ONE}, url: "file:///etc/passwd" }] }`, /must be an https/],
  [
    "one witness twice",
    `{ need: 2, of: [{ key: ${ONE}, url: "${https}/1" }, { key: ${ONE}, url: "${https}/2" }] }`,
    /cannot be a policy/,
  ],
  [
    "one public key under two names",
    `{ need: 2, of: [{ key: ${here}, url: "${https}/1" }, { key: ${there}, url: "${https}/2" }] }`,
    /cannot be a policy/,
  ],
  ["a misspelt key", `{ need: 1, off: [] }`, /there is no key "off" here.*Did you mean "of"/s],
  ["a misspelt key of a witness", `{ need: 1, of: [{ key: ${ONE}, urk: "${https}" }] }`, /Did you mean "url"/],
])("%s is refused, with its place", async (_what, text, message) => {
  expect(await witnesses(text)).toMatch(message);
});
