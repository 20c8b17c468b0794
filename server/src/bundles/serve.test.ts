import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createHash, createHmac } from "node:crypto";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import canonicalize from "canonicalize";
import { afterEach, beforeEach, expect, inject, test } from "vitest";
import { createLog, type LogFixture } from "../audit/fixtures/log.ts";
import { Secret } from "../core/secret.ts";
import { bundleHash } from "../playbooks/files.ts";
import { compilePolicy } from "../playbooks/load.ts";
import { planPolicies } from "../playbooks/plan.ts";
import { packBundle, unpackBundle } from "./bundle.ts";
import type { GitSource, PolicySource } from "./config.ts";
import { activate } from "./generations.ts";
import { startBundles, type Bundles, type BundlesOptions } from "./serve.ts";
import { startOrigin, type Origin } from "./testing/origin.ts";
import { ANY_KIND, policyFiles } from "./testing/policy.ts";

const ANN = { ssh: "ann" };

let log: LogFixture;
let folder: string;
let origin: Origin | undefined;
const running: Bundles[] = [];
let alarms: Map<string, string>;
let warnings: string[];

beforeEach(async () => {
  log = await createLog(inject("pg18"));
  folder = await mkdtemp(join(tmpdir(), "glasskey-bundles-"));
  [alarms, warnings] = [new Map(), []];
});
afterEach(async () => {
  await Promise.all(running.splice(0).map((one) => one.stop()));
  await origin?.dispose();
  origin = undefined;
  await log.dispose();
  await rm(folder, { recursive: true, force: true });
});

async function policyIn(name: string, files: ReadonlyMap<string, string>): Promise<PolicySource> {
  for (const [path, text] of files) {
    const file = join(folder, name, path);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, text);
  }
  return { kind: "folder", folder: join(folder, name) };
}

async function start(node: string, source: PolicySource, change: Partial<BundlesOptions> = {}): Promise<Bundles> {
  const bundles = await startBundles({
    ...{ store: log.store, node, source, dir: join(folder, `git-${node}`), plan: planPolicies },
    compile: (files) => compilePolicy({ files, kinds: ANY_KIND }),
    onPolicy: async () => {},
    resolveSecret: () => new Secret("hook secret"),
    alarms: {
      raise: async (key, text) => void (alarms.has(key) || alarms.set(key, text)),
      clear: async (key) => void alarms.delete(key),
    },
    warn: (line) => warnings.push(line),
    storePollMs: 50,
    ...change,
  });
  running.push(bundles);
  await bundles.begin();
  return bundles;
}

const maxOf = (bundles: Bundles): number => (bundles.policy().playbook("repair")?.time.maxMs ?? 0) / 60_000;
const stop = async (bundles: Bundles): Promise<void> => {
  running.splice(running.indexOf(bundles), 1);
  await bundles.stop();
};
const dead = (): Promise<unknown> => log.query("delete from nodes");
const entries = async (type: string): Promise<Record<string, unknown>[]> => {
  const { rows } = await log.query("select entry from log_queue order by 1");
  return rows
    .map((row) => JSON.parse(String(row["entry"])) as { type: string; data: Record<string, unknown> })
    .filter((entry) => entry.type === type)
    .map((entry) => entry.data);
};
async function until(check: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 1_600; tries += 1) {
    if (await check()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  throw new Error(`it never came; alarms: ${[...alarms.values()].join("; ")}; ${warnings.join("; ")}`);
}

test("a bundle has the same name on every machine, and bytes that were changed in the store are refused", () => {
  const files = policyFiles("30m");
  const reversed = new Map([...files].toReversed());
  expect(bundleHash(files)).toBe(bundleHash(reversed));
  expect(bundleHash(policyFiles("31m"))).not.toBe(bundleHash(files));
  expect(bundleHash(new Map([...files, ["x", ""]]))).not.toBe(bundleHash(files));
  const hash = bundleHash(files);
  expect(new Map(unpackBundle(hash, packBundle(reversed)))).toEqual(files);
  expect(() => unpackBundle(hash, packBundle(policyFiles("31m")))).toThrow(/damaged/);
  expect(() => unpackBundle(hash, Buffer.from("not gzip"))).toThrow(/damaged/);
  expect(() => packBundle(new Map([["a.yaml", "x".repeat(33 * 1024 * 1024)]]))).toThrow(/at most/);
});

test("the first start puts the folder into force, with its files in the store and its entry in the log", async () => {
  const files = policyFiles("30m");
  const bundles = await start("nd_a", await policyIn("a", files));
  expect(bundles.inForce()).toMatchObject({ generation: 1, hash: bundleHash(files), commit: null, node: "nd_a" });
  expect(bundles.policy().hash).toBe(bundleHash(files));
  expect(await entries("policy.loaded")).toEqual([
    { generation: 1, hash: bundleHash(files), node: "nd_a", source: "folder" },
  ]);
});

test("a folder that does not load stops the very first start; later it is refused and alarmed, and the old policy stays", async () => {
  const bad = await policyIn("bad", policyFiles("soon"));
  await expect(start("nd_a", bad)).rejects.toThrow(/repair\.yaml/);
  expect((await log.query("select 1 from bundle_generations")).rowCount).toBe(0);
  const good = await policyIn("good", policyFiles("30m"));
  const first = await start("nd_a", good);
  await policyIn("good", policyFiles("soon"));
  expect(await first.reload()).toMatch(/repair\.yaml/);
  expect(maxOf(first)).toBe(30);
  expect([...alarms.values()]).toEqual([expect.stringMatching(/does not load/)]);
  expect(await entries("policy.rejected")).toMatchObject([{ source: "folder", inForce: first.policy().hash }]);
  await stop(first);
  const second = await start("nd_a", good); // after a restart, too
  expect(maxOf(second)).toBe(30);
  await policyIn("good", policyFiles("20m"));
  expect(await second.reload({ name: "ida", pseudonym: "pe_0123456789ab" })).toBeUndefined();
  expect(maxOf(second)).toBe(20);
  expect(alarms.size).toBe(0);
});

test("every change has its plan in the row, and its counts and SHA-256, but no name, in the log", async () => {
  const bundles = await start("nd_a", await policyIn("a", policyFiles("30m")));
  await policyIn("a", policyFiles("45m"));
  expect(await bundles.reload({ name: "ida", pseudonym: "pe_0123456789ab" })).toBeUndefined();
  expect(await bundles.reload()).toBeUndefined(); // the same again changes nothing
  const [newest, oldest, ...more] = await bundles.history(10);
  expect(more).toEqual([]);
  expect(newest).toMatchObject({ generation: 2, author: "ida", plan: { widened: true } });
  expect(oldest).toMatchObject({ generation: 1, author: null, plan: null });
  const [, entry] = await entries("policy.loaded");
  const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");
  const plan = { widened: true, sha256: sha256(canonicalize(newest?.plan) ?? "") };
  expect(entry).toMatchObject({ generation: 2, author: sha256("ida"), plan });
  expect(JSON.stringify(entry)).not.toMatch(/ida|ann|repair/);
});

test("a page of the history ends early where the plans are large, and goes on where it ended", async () => {
  const bundles = await start("nd_a", await policyIn("a", policyFiles("30m")));
  const plan = JSON.stringify({ widened: false, text: "x".repeat(3 * 1024 * 1024) });
  await log.query(
    "insert into bundle_generations (generation, hash, source, node, plan) select n, $1, 'f', 'n', $2 from generate_series(2, 6) n",
    [bundles.policy().hash, plan],
  );
  const numbers = async (before?: number) => (await bundles.history(100, before)).map(({ generation }) => generation);
  expect(await numbers()).toEqual([6, 5]);
  expect(await numbers(5)).toEqual([4, 3]);
  expect(await numbers(3)).toEqual([2, 1]);
});

test("two servers that load different bundles at once: one wins, both serve it, and the other raises an alarm that says what to do", async () => {
  const [a, b] = [await policyIn("a", policyFiles("30m")), await policyIn("b", policyFiles("40m"))];
  const [one, two] = await Promise.all([start("nd_a", a), start("nd_b", b)]);
  expect(one.inForce().generation).toBe(1);
  expect(two.inForce().hash).toBe(one.inForce().hash);
  expect(maxOf(one)).toBe(maxOf(two));
  const loser = maxOf(one) === 30 ? two : one;
  expect([...alarms.values()]).toEqual([expect.stringMatching(/is not what is in force.*glass policy reload/s)]);
  expect(await loser.reload()).toBeUndefined();
  await until(() => maxOf(one) === maxOf(two) && one.inForce().generation === 2);
  expect(maxOf(one)).toBe(loser === two ? 40 : 30);
  expect(alarms.size).toBe(0);
});

test("reloads of two servers at the same moment, many times: no generation twice, and all agree in the end", async () => {
  const [a, b] = [await policyIn("a", policyFiles("30m")), await policyIn("b", policyFiles("40m"))];
  const [one, two] = [await start("nd_a", a), await start("nd_b", b)];
  for (let round = 0; round < 5; round += 1) {
    const said = await Promise.all([one.reload(), two.reload()]);
    expect(said).toEqual([undefined, undefined]);
  }
  await until(async () => {
    const newest = (await one.history(1))[0]?.generation;
    return one.inForce().generation === newest && two.inForce().generation === newest;
  });
  expect(one.policy().hash).toBe(two.policy().hash);
  const numbers = (await one.history(100)).map(({ generation }) => generation).toReversed();
  expect(numbers).toEqual(numbers.map((_, i) => i + 1));
  const logged = (await entries("policy.loaded")).map(({ generation }) => Number(generation));
  expect(logged.toSorted((a, b) => a - b)).toEqual(numbers);
});

test("of two activations after the same generation, one is done and the other leaves nothing in the log", async () => {
  const files = [policyFiles("30m"), policyFiles("40m"), policyFiles("50m")];
  const done = await Promise.all(
    files.map((each) =>
      activate(log.store, 0, { files: each, kind: "folder", source: "f", node: "n", actor: "glasskey" }),
    ),
  );
  expect(done.filter(Boolean)).toHaveLength(1);
  expect(await entries("policy.loaded")).toHaveLength(1);
});

test("a process that starts beside another one serves what is in force; alone, it puts its own folder into force", async () => {
  const first = await start("nd_a", await policyIn("a", policyFiles("30m")));
  const changed = await policyIn("b", policyFiles("40m"));
  const beside = await start("nd_b", changed);
  expect(maxOf(beside)).toBe(30);
  expect([...alarms.keys()]).toEqual(["policy source nd_b"]);
  await stop(first);
  await stop(beside);
  await dead();
  const alone = await start("nd_b", changed);
  expect(maxOf(alone)).toBe(40);
  expect(alarms.size).toBe(0);
});

test("every process tells of a change, and tells again until it was heard", async () => {
  const told: number[] = [];
  let deaf = 0;
  const onPolicy: BundlesOptions["onPolicy"] = async (policy) => {
    if (deaf-- > 0) throw new Error("the store is away");
    told.push((policy.playbook("repair")?.time.maxMs ?? 0) / 60_000);
  };
  const one = await start("nd_a", await policyIn("a", policyFiles("30m")));
  await start("nd_b", await policyIn("a", policyFiles("30m")), { onPolicy });
  expect(told).toEqual([30]);
  deaf = 2;
  await policyIn("a", policyFiles("10m"));
  await one.reload();
  await until(() => told.includes(10));
  expect(told).toEqual([30, 10]);
});

test("a bundle that somebody changed in the store is not served; the old one stays, with an alarm", async () => {
  const source = await policyIn("a", policyFiles("30m"));
  const one = await start("nd_a", source);
  const two = await start("nd_b", source);
  const forged = packBundle(policyFiles("8h"));
  await log.query("insert into bundles (hash, files) values ($1, $2)", ["ab".repeat(32), forged]);
  await log.query("insert into bundle_generations (generation, hash, source, node) values (2, $1, 'folder', 'nd_x')", [
    "ab".repeat(32),
  ]);
  await until(() => alarms.size === 2);
  expect([maxOf(one), maxOf(two)]).toEqual([30, 30]);
  expect([...alarms.values()].join()).toMatch(/damaged/);
});

// ------------------------------------------------------------------------------------------------ git

async function gitPolicy(change: Partial<GitSource> = {}): Promise<GitSource> {
  origin ??= await startOrigin();
  return { ...origin.source, ...change };
}
const inGit = (max: string): Record<string, string> =>
  Object.fromEntries([...policyFiles(max)].map(([path, text]) => [`policy/${path}`, text]));

test("from git: the signed head is in force, named as the same files in a folder would be, with commit, author and signer", async () => {
  const source = await gitPolicy();
  const head = await origin?.commit(inGit("30m"), ANN);
  const bundles = await start("nd_a", source);
  expect(bundles.inForce()).toMatchObject({
    ...{ generation: 1, hash: bundleHash(policyFiles("30m")), commit: head, author: "Ann Author <ann@shop.example>" },
    signer: expect.stringMatching(/^SHA256:/),
  });
  const [entry] = await entries("policy.loaded");
  expect(entry).toMatchObject({ commit: head, source: "git", author: expect.stringMatching(/^[0-9a-f]{64}$/) });
  expect(JSON.stringify(entry)).not.toMatch(/Ann|shop\.example/);
  await origin?.commit(inGit("20m"), ANN);
  expect(await bundles.reload()).toBeUndefined();
  expect(maxOf(bundles)).toBe(20);
});

test("from git: what is refused raises an alarm and leaves the old policy, and a later good commit ends the alarm", async () => {
  const source = await gitPolicy();
  const first = await origin?.commit(inGit("30m"), ANN);
  const bundles = await start("nd_a", source);
  await origin?.commit(inGit("8h"), undefined);
  expect(await bundles.reload()).toMatch(/refused: it is not signed/);
  expect(await bundles.reload()).toMatch(/refused/);
  expect([...alarms.keys()]).toEqual(["policy refused"]);
  expect(await entries("policy.rejected")).toMatchObject([{ cause: "signature", inForce: bundles.policy().hash }]);
  await origin?.git("reset", "--quiet", "--hard", first ?? "");
  await origin?.commit(inGit("soon"), ANN);
  expect(await bundles.reload()).toMatch(/repair\.yaml/);
  expect(maxOf(bundles)).toBe(30);
  await origin?.commit(inGit("20m"), ANN);
  expect(await bundles.reload()).toBeUndefined();
  expect(maxOf(bundles)).toBe(20);
  expect(alarms.size).toBe(0);
});

test("from git: a rollback that `accept` names comes into force once; forced on us again, it is refused", async () => {
  const source = await gitPolicy();
  const first = (await origin?.commit(inGit("30m"), ANN)) ?? "";
  const bundles = await start("nd_a", source);
  await origin?.commit(inGit("20m"), ANN);
  expect(await bundles.reload()).toBeUndefined();
  await origin?.git("reset", "--quiet", "--hard", first);
  expect(await bundles.reload()).toMatch(/history was rewritten/);
  await stop(bundles);
  const accepting = await start("nd_a", { ...source, accept: first });
  expect(await accepting.reload()).toBeUndefined();
  expect(maxOf(accepting)).toBe(30);
  await origin?.commit(inGit("10m"), ANN);
  expect(await accepting.reload()).toBeUndefined();
  await origin?.git("reset", "--quiet", "--hard", first);
  expect(await accepting.reload()).toMatch(/history was rewritten/);
  expect(maxOf(accepting)).toBe(10);
});

test("from git: a folder that was in force in between opens no way back to an older signed commit", async () => {
  const source = await gitPolicy();
  const first = (await origin?.commit(inGit("8h"), ANN)) ?? "";
  const bundles = await start("nd_a", source);
  const second = (await origin?.commit(inGit("20m"), ANN)) ?? "";
  expect(await bundles.reload()).toBeUndefined();
  await stop(bundles);
  await dead();
  await stop(await start("nd_b", await policyIn("copy", policyFiles("15m"))));
  await dead();
  await origin?.git("reset", "--quiet", "--hard", first);
  const again = await start("nd_c", source);
  expect(await again.reload()).toMatch(/history was rewritten/);
  expect(maxOf(again)).toBe(15);
  await origin?.git("reset", "--quiet", "--hard", second);
  expect(await again.reload()).toBeUndefined();
  expect(maxOf(again)).toBe(20);
});

test("from git: with git down a restart serves what was in force; a first start says why it cannot", async () => {
  const source = await gitPolicy();
  await origin?.commit(inGit("30m"), ANN);
  await stop(await start("nd_a", source));
  const away = { ...source, url: join(folder, "nowhere") };
  await dead();
  const bundles = await start("nd_b", away);
  expect(maxOf(bundles)).toBe(30);
  await until(() => warnings.some((line) => line.includes("cannot be had")));
  expect(alarms.size).toBe(0);
  await stop(bundles);
  await log.query("delete from bundle_generations");
  await expect(start("nd_c", away)).rejects.toThrow(/cannot be had from/);
});

test("from git: the webhook makes a server look at once when its signature is right, and not otherwise", async () => {
  const source = await gitPolicy({ hookSecret: "${env:X}" });
  await origin?.commit(inGit("30m"), ANN);
  let rounds = 0;
  const clear = async (key: string): Promise<void> => void (rounds += key === "policy git" ? 1 : 0);
  const bundles = await start(
    "nd_a",
    { ...source, pollMs: 600_000 },
    { alarms: { raise: () => Promise.resolve(), clear } },
  );
  await until(() => rounds === 2); // the start asked git, and the first round did
  await origin?.commit(inGit("20m"), ANN);
  const body = Buffer.from('{"ref":"refs/heads/main"}');
  const signed = (secret: string): string => `sha256=${createHmac("sha256", secret).update(body).digest("hex")}`;
  for (const wrong of [undefined, "", "sha256=", signed("another secret"), signed("hook secret").toUpperCase()]) {
    bundles.hook(body, wrong);
  }
  await new Promise((done) => setTimeout(done, 300));
  expect(maxOf(bundles)).toBe(30);
  bundles.hook(body, signed("hook secret"));
  await until(() => maxOf(bundles) === 20);
});
