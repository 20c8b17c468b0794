import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readConfig, type ServerConfig } from "../config.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey-archive-config-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function read(yaml: string): Promise<ServerConfig> {
  await writeFile(join(folder, "glasskey.yaml"), yaml);
  return readConfig(join(folder, "glasskey.yaml"));
}
const KEYS = 'access_key: "${file:id}", secret_key: "${env:S3_SECRET}"';
const DAY_MS = 86_400_000;

test("archive, mirror and chunk store are read, with paths beside the file and the service's own address", async () => {
  const config = await read(`
archive: { s3: { bucket: worm, prefix: gk/prod, region: eu-central-1, ${KEYS} }, retain: 400d, recordings: 90d, every: 30m }
log: { mirror: public }
recordings: { keep: 400d, store: { s3: { bucket: chunks, endpoint: "https://s3.example.com:9000", credentials: standard, ca: ca.pem } } }
`);
  const credentials = { accessKey: `\${file:${join(folder, "id")}}`, secretKey: "${env:S3_SECRET}" };
  expect(config.archive).toEqual({
    ...{ retainMs: 400 * DAY_MS, recordingsRetainMs: 90 * DAY_MS, everyMs: 1_800_000 },
    to: {
      ...{ kind: "s3", bucket: "worm", prefix: "gk/prod", region: "eu-central-1", pathStyle: false, ca: undefined },
      ...{ endpoint: "https://s3.eu-central-1.amazonaws.com", credentials },
    },
  });
  expect(config.mirror).toEqual({ kind: "folder", folder: join(folder, "public") });
  expect(config.recordings).toMatchObject({
    keepMs: 400 * DAY_MS,
    store: { bucket: "chunks", prefix: "", pathStyle: true, credentials: "standard", ca: join(folder, "ca.pem") },
  });
  const byFolder = await read("archive: { folder: worm, retain: 1d }");
  expect(byFolder.archive).toEqual({
    ...{ to: { kind: "folder", folder: join(folder, "worm") }, retainMs: DAY_MS, recordingsRetainMs: DAY_MS },
    everyMs: 3_600_000,
  });
  expect((await read("log: { origin: example.com/gk }")).archive).toBeUndefined();
});

test("a mirror where the archive lies, above it or below it, is refused; beside it is fine", async () => {
  const s3 = (prefix: string): string => `{ s3: { bucket: worm, prefix: ${prefix}, ${KEYS} }`;
  for (const [archive, mirror] of [
    ["{ folder: worm,", "./worm/"],
    ["{ folder: worm,", join(folder, "worm")],
    ["{ folder: /srv/log/worm,", "/srv/log"],
    ["{ folder: worm,", "worm/public"],
    [`${s3("a").slice(0, -1)}},`, `${s3("a")} }`],
  ]) {
    await expect(read(`archive: ${archive} retain: 1d }\nlog: { mirror: ${mirror} }`), mirror).rejects.toThrow(
      /glasskey\.yaml:2:\d+.*\n?.*log\.mirror is where the archive is/,
    );
  }
  await read("archive: { folder: worm, retain: 1d }\nlog: { mirror: worm-public }");
  await read(`archive: ${s3("a").slice(0, -1)}}, retain: 1d }\nlog: { mirror: ${s3("b")} } }`);
});

test.each([
  ["archive: { folder: worm }", "archive.retain is missing"],
  ["archive: { retain: 400d }", "needs either `s3` or `folder`"],
  [`archive: { folder: worm, s3: { bucket: abc, ${KEYS} }, retain: 400d }`, "needs either `s3` or `folder`"],
  ["archive: { folder: worm, retain: 2h }", "must be a day at least"],
  ["archive: { folder: worm, retain: 40000d }", "is not a duration"],
  ["archive: { folder: worm, retain: 400d, every: 5s }", "must be 1m to 1d"],
  ["archive: { folder: worm, retian: 400d, retain: 1d }", 'there is no key "retian" here'],
  ["archive: { s3: { bucket: abc }, retain: 1d }", "needs `access_key` and `secret_key`"],
  ["archive: { s3: { bucket: abc, access_key: '${file:x}' }, retain: 1d }", "needs `access_key` and `secret_key`"],
  [`archive: { s3: { bucket: abc, credentials: standard, ${KEYS} }, retain: 1d }`, "one of them must go"],
  [
    "archive: { s3: { bucket: abc, access_key: AKIAXXXX, secret_key: '${file:x}' }, retain: 1d }",
    "a literal secret is refused",
  ],
  [`archive: { s3: { bucket: Abc_d, ${KEYS} }, retain: 1d }`, "is not the name of a bucket"],
  [`archive: { s3: { bucket: abc, prefix: ../x, ${KEYS} }, retain: 1d }`, "must be segments"],
  [`archive: { s3: { bucket: abc, prefix: /x, ${KEYS} }, retain: 1d }`, "must be segments"],
  [`archive: { s3: { bucket: abc, region: "x/../y", ${KEYS} }, retain: 1d }`, "is not a region"],
  [
    `archive: { s3: { bucket: abc, endpoint: "http://s3.example.com", ${KEYS} }, retain: 1d }`,
    "must begin with https://",
  ],
  [
    `archive: { s3: { bucket: abc, endpoint: "https://u:p@s3.example.com", ${KEYS} }, retain: 1d }`,
    "must not have a user",
  ],
  [
    `archive: { s3: { bucket: abc, endpoint: "https://s3.example.com/x", ${KEYS} }, retain: 1d }`,
    "must end after host and port",
  ],
  ["recordings: { store: { s3: { bucket: abc } } }", "needs `access_key`"],
  ["recordings: { store: { s4: {} } }", 'there is no key "s4" here'],
  ["log: { mirror: { s3: { bucket: abc } } }", "log.mirror"],
])("%s is refused with what is wrong", async (yaml, message) => {
  await expect(read(yaml)).rejects.toThrow(message);
});
