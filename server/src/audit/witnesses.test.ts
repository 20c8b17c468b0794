import { generateKeyPairSync } from "node:crypto";
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type RequestListener, type Server } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  createCosigner,
  openWitnessed,
  parseCheckpointText,
  parseNote,
  parseProof,
  parseVerifierKey,
  signatureLine,
  verifyFolder,
  verifyProof,
  witnessPolicy,
} from "@glasskey/verify";
import {
  addLog,
  openWitnessFolder,
  serveWitness,
  type WitnessFolder,
  type WitnessServer,
} from "../../../witness/src/index.ts";
import pg from "pg";
import { afterEach, expect, inject, test } from "vitest";
import { createAuthority, issueServerCertificate } from "../core/certificates.ts";
import { clientConfig } from "../store/database.ts";
import { exportLog } from "./export.ts";
import { createLog, type LogFixture } from "./fixtures/log.ts";
import { createLogReader } from "./read.ts";
import { startSequencer, type Sequencer } from "./sequencer.ts";
import { createWitnesses, type Witnesses } from "./witnesses.ts";

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

async function log(): Promise<LogFixture> {
  const made = await createLog(inject("pg18"));
  cleanups.push(() => made.dispose());
  return made;
}

/** The real witness program, in this process, on a folder of its own. */
interface RealWitness {
  readonly key: string;
  readonly url: string;
  readonly folder: string;
  stop(): Promise<void>;
  /** Starts it again on the same port. */
  start(): Promise<void>;
}

async function witness(of: LogFixture, name: string): Promise<RealWitness> {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-witness-"));
  cleanups.push(() => rm(folder, { recursive: true, force: true }));
  let opened: WitnessFolder | undefined;
  let server: WitnessServer | undefined;
  let port = 0;
  const start = async (): Promise<void> => {
    opened = openWitnessFolder({ folder, name });
    server = await serveWitness({ witness: opened, host: "127.0.0.1", port, onProblem: () => {} });
    port = server.port;
  };
  const stop = async (): Promise<void> => {
    await server?.stop();
    opened?.close();
    server = undefined;
    opened = undefined;
  };
  await start();
  addLog(folder, of.signer.vkey);
  cleanups.push(stop);
  return { key: opened?.signer.vkey ?? "", url: `http://127.0.0.1:${port}`, folder, stop, start };
}

/** Somebody who speaks HTTP where a witness is configured, with a key of their own. */
async function stranger(listener: RequestListener, key = newCosigner("stranger.example/w").vkey) {
  const server = createServer(listener);
  await listen(server);
  cleanups.push(() => close(server));
  return { key, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}
const newCosigner = (name: string, now?: () => number) =>
  createCosigner(name, generateKeyPairSync("ed25519").privateKey, now);
const listen = (server: Server): Promise<void> =>
  new Promise((resolve) => void server.listen(0, "127.0.0.1", () => resolve()));
const close = (server: Server): Promise<void> =>
  new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });

interface Running extends Witnesses {
  readonly alarms: Map<string, string>;
  readonly warnings: string[];
  /** Everything that was ever raised. */
  readonly raised: string[];
}

function ask(
  of: LogFixture,
  need: number,
  peers: readonly { key: string; url: string; ca?: string }[],
  options: { alarmAfterMs?: number; timeoutMs?: number; now?: () => Date } = {},
): Running {
  const [alarms, warnings, raised]: [Map<string, string>, string[], string[]] = [new Map(), [], []];
  const witnesses = createWitnesses({
    ...{ store: of.store, config: { need, of: peers.map(({ key, url, ca }) => ({ key, url, ca })) } },
    logKeys: () => Promise.resolve([parseVerifierKey(of.signer.vkey)]),
    alarms: {
      raise: (key, text) => Promise.resolve(void (alarms.set(key, text), raised.push(key))),
      clear: (key) => Promise.resolve(void alarms.delete(key)),
    },
    warn: (line) => warnings.push(line),
    ...{ pauseMs: 50, timeoutMs: 3_000, ...options },
  });
  cleanups.push(() => witnesses.stop());
  return { ...witnesses, alarms, warnings, raised };
}

const readerOf = (of: LogFixture, witnesses: Witnesses) =>
  createLogReader(of.store, { witnessed: witnesses.satisfies });
const PATIENCE = { timeout: 30_000, interval: 50 };
const LEAD = 0x676c6f67; // the sequencers' advisory lock

test("two of three cosign while one is down: entries become witnessed, proofs and export carry the cosignatures", async () => {
  const a = await log();
  await a.sequence();
  const [first, second, third] = [
    await witness(a, "one.example/w"),
    await witness(a, "two.example/w"),
    await witness(a, "three.example/w"),
  ];
  await third.stop();
  const witnesses = ask(a, 2, [first, second, third]);
  const reader = readerOf(a, witnesses);
  expect(await reader.witnessedSize()).toBe(0);
  witnesses.start();
  for (let n = 1; n <= 4; n += 1) {
    await a.append({}, {});
    await reader.settled(20_000);
    await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(2 * n);
  }
  expect(witnesses.alarms.size).toBe(0);
  expect(witnesses.warnings.filter((line) => line.includes("three.example/w"))).toHaveLength(1);
  const policy = witnessPolicy(2, [first.key, second.key, third.key]);
  const own = [parseVerifierKey(a.signer.vkey)];
  const opened = openWitnessed((await reader.file("checkpoint.witnessed"))?.bytes ?? "", own, policy);
  expect(opened.cosignatures.map(({ name }) => name).toSorted()).toEqual(["one.example/w", "two.example/w"]);

  const { proof, entry, size, witnessed } = await reader.prove(3);
  expect([size, witnessed]).toEqual([8, true]);
  expect(verifyProof({ proof, entry, vkey: a.signer.vkey }).size).toBe(8);
  expect(openWitnessed(parseProof(proof).checkpoint, own, policy).size).toBe(8);

  const folder = join(a.folder, "export");
  await exportLog({ store: a.store, folder, vkey: a.signer.vkey, witnessed: () => reader.witnessed() });
  expect(await readFile(join(folder, "checkpoint.witnessed"), "utf8")).toBe(await reader.witnessed());
  expect(await verifyFolder({ folder, vkey: a.signer.vkey })).toMatchObject({ ok: true, problems: [] });

  await third.start(); // is back, and knows nothing of what it missed
  await expect
    .poll(async () => {
      await a.append({});
      await reader.settled(20_000);
      const found = openWitnessed((await reader.witnessed()) ?? "", own, policy);
      return found.cosignatures.map(({ name }) => name);
    }, PATIENCE)
    .toContain("three.example/w");
});

test("with fewer than the policy asks for nothing is witnessed, an alarm says so after a while, and is over with the next", async () => {
  const a = await log();
  await a.sequence();
  const [first, second] = [await witness(a, "one.example/w"), await witness(a, "two.example/w")];
  await second.stop();
  const witnesses = ask(a, 2, [first, second], { alarmAfterMs: 500 });
  const reader = readerOf(a, witnesses);
  await a.append({});
  await reader.settled(20_000);
  witnesses.start();
  await expect.poll(() => witnesses.alarms.get("witnesses"), PATIENCE).toMatch(/since its entry 0: 2 of 2 witnesses/);
  expect(await reader.witnessedSize()).toBe(0);
  expect(await reader.file("checkpoint.witnessed")).toBeUndefined();
  expect((await reader.prove(0)).witnessed).toBe(false);
  await second.start();
  await expect.poll(() => witnesses.alarms.size, PATIENCE).toBe(0);
  expect(await reader.witnessedSize()).toBe(1);
});

test("a witness that hangs delays nobody, and one that talks without end is cut off", async () => {
  const a = await log();
  await a.sequence();
  const held: string[] = [];
  const hanging = await stranger((request) => void held.push(request.url ?? ""));
  const talking = await stranger((_request, response) => {
    const flood = setInterval(() => response.write("— a ".repeat(20_000)), 5);
    response.on("close", () => clearInterval(flood));
  }, newCosigner("talking.example/w").vkey);
  const good = await witness(a, "good.example/w");
  const witnesses = ask(a, 1, [hanging, talking, good], { timeoutMs: 60_000 });
  const reader = readerOf(a, witnesses);
  witnesses.start();
  for (let n = 1; n <= 5; n += 1) {
    await a.append({});
    await reader.settled(20_000);
    await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(n);
  }
  expect(held).toEqual(["/add-checkpoint"]); // its one question is under way all the time
  expect(witnesses.warnings.join("\n")).toContain("talking.example/w is asked again later: its answer is larger");
});

test("a witness that begins to answer and stalls, or sends elsewhere, is given up in time", async () => {
  const a = await log();
  await a.sequence();
  await a.append({});
  await createLogReader(a.store).settled(20_000);
  const visited: string[] = [];
  const elsewhere = await stranger((request, response) => {
    visited.push(request.url ?? "");
    response.end();
  });
  const stalling = await stranger(
    (_request, response) => void response.writeHead(200).write("\u2014 stalling.example/w AA"),
    newCosigner("stalling.example/w").vkey,
  );
  const redirecting = await stranger((request, response) => {
    request.resume();
    response.writeHead(307, { location: `${elsewhere.url}/add-checkpoint` }).end();
  }, newCosigner("redirecting.example/w").vkey);
  const witnesses = ask(a, 1, [stalling, redirecting], { timeoutMs: 500 });
  witnesses.start();
  await expect
    .poll(() => witnesses.warnings.toSorted(), PATIENCE)
    .toEqual([
      "witness redirecting.example/w is asked again later: it answered with a redirect, which is not followed",
      "witness stalling.example/w is asked again later: it did not answer in time",
    ]);
  expect(visited).toEqual([]);
});

test("a witness whose answer is not its own signature, over this checkpoint, now, is not believed", async () => {
  const a = await log();
  await a.sequence();
  await a.append({});
  const reader0 = createLogReader(a.store);
  await reader0.settled(20_000);
  const real = newCosigner("liar.example/w");
  const text = (note: string): Buffer => Buffer.from(parseNote(note).text);
  const other = `${a.signer.name}\n1\n${Buffer.alloc(32, 1).toString("base64")}\n`;
  const line = (signer: ReturnType<typeof newCosigner>, over: Buffer | string): string =>
    signatureLine(signer, Buffer.from(over));
  const aheadBy = (ms: number) => () => Date.now() + ms;
  const keys = generateKeyPairSync("ed25519").privateKey;
  const clocks = (ms: number) => createCosigner("liar.example/w", keys, aheadBy(ms));
  const lies: Record<string, [string, (note: string) => string, RegExp]> = {
    "another's key": [
      real.vkey,
      (note) => line(newCosigner("liar.example/w"), text(note)),
      /no cosignature by its own key/,
    ],
    "another checkpoint": [real.vkey, () => line(real, other), /does not hold/],
    "an empty answer": [real.vkey, () => "", /not signature lines/],
    "text before the line": [real.vkey, (note) => `hello\n${line(real, text(note))}`, /not signature lines/],
    "a note of its own": [real.vkey, (note) => `\n${other}\n${line(real, text(note))}`, /not signature lines/],
    "a time to come": [clocks(0).vkey, (note) => line(clocks(3_600_000), text(note)), /60 minutes ahead/],
    "a time long gone": [clocks(0).vkey, (note) => line(clocks(-3_600_000), text(note)), /60 minutes behind/],
    "the log's own line": [real.vkey, (note) => `${note.split("\n\n")[1]}`, /no cosignature/],
  };
  for (const [what, [key, answer, why]] of Object.entries(lies)) {
    const liar = await stranger((request, response) => {
      let body = "";
      request.on("data", (chunk: Buffer) => (body += chunk.toString()));
      request.on("end", () => response.end(answer(body.slice(body.indexOf("\n\n") + 2))));
    }, key);
    const witnesses = ask(a, 1, [liar]);
    witnesses.start();
    await expect.poll(() => witnesses.warnings.join("\n"), { ...PATIENCE, message: what }).toMatch(why);
    expect(await readerOf(a, witnesses).witnessedSize(), what).toBe(0);
    await witnesses.stop();
  }
  const { rows } = await a.query("select count(*) as n from witnessed_checkpoints");
  expect(rows[0]?.["n"]).toBe(0);
});

test("a witness that says it knows more than was ever signed here, or another history, is an alarm at once", async () => {
  const a = await log();
  await a.sequence();
  await a.append({});
  const claims = await stranger((request, response) => {
    request.resume();
    response.writeHead(409, { "content-type": "text/x.tlog.size" }).end("4000\n");
  });
  const witnesses = ask(a, 1, [claims]);
  const reader = readerOf(a, witnesses);
  await reader.settled(20_000);
  witnesses.start();
  await expect
    .poll(() => witnesses.alarms.get("witness stranger.example/w"), PATIENCE)
    .toMatch(/saw another log than this one: it knows 4000 entries, and 1 were ever signed here/);
  await witnesses.stop();

  // Another store under the same key and origin: what a restored backup that went on would be.
  const b = await log();
  await b.sequence();
  const real = await witness(a, "real.example/w");
  const before = ask(a, 1, [real]);
  before.start();
  await expect.poll(() => readerOf(a, before).witnessedSize(), PATIENCE).toBe(1);
  await before.stop();
  await b.append({ data: { n: 7 } }, { data: { n: 8 } });
  await createLogReader(b.store).settled(20_000);
  const forked = ask(b, 1, [real]);
  forked.start();
  await expect
    .poll(() => forked.alarms.get("witness real.example/w"), PATIENCE)
    .toMatch(/no continuation of what it cosigned/);
  expect(await readerOf(b, forked).witnessedSize()).toBe(0);
});

test("one key of a witness that cosigns does not end the alarm about its other key", async () => {
  const a = await log();
  await a.sequence();
  await a.append({});
  const suspicious = await stranger((request, response) => {
    request.resume();
    response.writeHead(409, { "content-type": "text/x.tlog.size" }).end("4000\n");
  });
  const next = newCosigner("stranger.example/w");
  let cosigned = 0;
  const sound = await stranger((request, response) => {
    let body = "";
    request.on("data", (chunk: Buffer) => (body += chunk.toString()));
    request.on("end", () => {
      const afterAlarm = async (): Promise<void> => {
        await expect.poll(() => witnesses.raised.length, PATIENCE).toBeGreaterThan(0);
        const note = body.slice(body.indexOf("\n\n") + 2);
        response.end(signatureLine(next, Buffer.from(parseNote(note).text)));
        cosigned += 1;
      };
      void afterAlarm();
    });
  }, next.vkey);
  const witnesses = ask(a, 1, [suspicious, sound]);
  const reader = readerOf(a, witnesses);
  await reader.settled(20_000);
  witnesses.start();
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(1);
  expect(cosigned).toBeGreaterThan(0);
  expect(witnesses.alarms.get("witness stranger.example/w")).toMatch(/it knows 4000 entries/);
});

test("a witness that lost its memory is told of, and cosigns from the beginning again", async () => {
  const a = await log();
  await a.sequence();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  const reader = readerOf(a, witnesses);
  await a.append({}, {});
  await reader.settled(20_000);
  witnesses.start();
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(2);
  await real.stop();
  await rm(join(real.folder, "logs"), { recursive: true });
  await real.start();
  addLog(real.folder, a.signer.vkey);
  await a.append({});
  await reader.settled(20_000);
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(3);
  expect(witnesses.warnings.join("\n")).toContain("real.example/w lost its memory: it cosigned 2 entries, and says 0");
  expect(witnesses.raised).toEqual([]);
});

test("insider who writes a witnessed checkpoint into the store is believed by nobody", async () => {
  const a = await log();
  const sequencer = await a.sequence();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  const reader = readerOf(a, witnesses);
  await a.append({}, {});
  await reader.settled(20_000);
  const note = (await reader.checkpoint()) ?? "";
  const { root } = parseCheckpointText(parseNote(note).text);
  const forge = (size: number, text: string): Promise<unknown> =>
    a.query("insert into witnessed_checkpoints (size, root, note) values ($1, $2, $3)", [
      size,
      Buffer.from(root),
      text,
    ]);
  await forge(1_000, note); // no cosignature at all
  await forge(1_001, `${note}${signatureLine(newCosigner("real.example/w"), Buffer.from(parseNote(note).text))}`);
  expect(await reader.witnessedSize()).toBe(0);
  expect((await reader.prove(0)).witnessed).toBe(false);
  witnesses.start();
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(2);
  await witnesses.stop();
  await sequencer.stop();
  for (const sql of [
    "delete from witnessed_checkpoints",
    "update witnessed_checkpoints set size = 5",
    "truncate witnessed_checkpoints",
  ])
    await expect(a.query(sql), sql).rejects.toMatchObject({ code: "42501" });
});

test("insider who rewrites the store below an honest witnessed checkpoint: no entry is called witnessed, and the proof holds", async () => {
  const [a, forged] = [await log(), await log()];
  const real = await witness(a, "real.example/w");
  for (const [of, count] of [
    [a, 3],
    [forged, 4],
  ] as const) {
    const sequencer = await of.sequence();
    for (let n = 0; n < count; n += 1) {
      await of.append({ data: { n: n + count } });
      await createLogReader(of.store).settled(20_000);
    }
    await sequencer.stop();
  }
  const witnesses = ask(a, 1, [real]);
  await witnesses.stop(); // one round
  const reader = readerOf(a, witnesses);
  expect(await reader.witnessedSize()).toBe(3);
  await copyStore(forged, a); // with every checkpoint, signed by the log's own key
  expect(await reader.witnessedSize()).toBe(0);
  expect((await reader.progress()).witnessed).toBe(0);
  const { proof, entry, witnessed } = await reader.prove(1);
  expect(witnessed).toBe(false);
  expect(verifyProof({ proof, entry, vkey: a.signer.vkey }).index).toBe(1);
  // What the witness saw is still given to auditors: it is what finds the other history.
  expect(parseCheckpointText(parseNote((await reader.witnessed()) ?? "").text).size).toBe(3);
});

test("of two processes one asks at a time, and when it is gone the other takes over", async () => {
  const a = await log();
  await a.sequence();
  const real = await witness(a, "real.example/w");
  const [one, two] = [ask(a, 1, [real]), ask(a, 1, [real])];
  const reader = readerOf(a, one);
  const claimant = async (): Promise<unknown> =>
    (await a.query("select claimed_by from witness_claim")).rows[0]?.["claimed_by"];
  one.start();
  await expect.poll(claimant, PATIENCE).not.toBeNull();
  const first = await claimant();
  two.start();
  await a.append({});
  await reader.settled(20_000);
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(1);
  expect(await claimant()).toBe(first);
  await one.stop();
  await expect.poll(claimant, PATIENCE).not.toBeOneOf([null, first]);
  await a.append({});
  await reader.settled(20_000);
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(2);
  // A process that died holds its claim no longer than that runs.
  await two.stop();
  await a.query("update witness_claim set claimed_by = 'dead', claimed_until = now() - interval '1 second'");
  const three = ask(a, 1, [real]);
  three.start();
  await expect.poll(claimant, PATIENCE).not.toBeOneOf([null, "dead"]);
});

test("a stop asks once more, so that what was signed last is witnessed", async () => {
  const a = await log();
  const sequencer = await a.sequence();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  await a.append({}, {}, {});
  await sequencer.stop();
  await witnesses.stop();
  expect(await readerOf(a, witnesses).witnessedSize()).toBe(3);
});

test("a witness over TLS is believed under its CA, and under no other", async () => {
  const a = await log();
  await a.sequence();
  const authority = await createAuthority("Witness CA", 30);
  const identity = await issueServerCertificate(authority, ["127.0.0.1"], 30);
  const own = newCosigner("tls.example/w");
  const server = createHttpsServer({ key: identity.key, cert: identity.cert }, (request, response) => {
    let body = "";
    request.on("data", (chunk: Buffer) => (body += chunk.toString()));
    request.on("end", () =>
      response.end(signatureLine(own, Buffer.from(parseNote(body.slice(body.indexOf("\n\n") + 2)).text))),
    );
  });
  await listen(server);
  cleanups.push(() => close(server));
  const ca = join(a.folder, "witness-ca.pem");
  await writeFile(ca, authority.cert);
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  await a.append({});
  const untrusting = ask(a, 1, [{ key: own.vkey, url }]);
  await createLogReader(a.store).settled(20_000);
  untrusting.start();
  await expect.poll(() => untrusting.warnings.join("\n"), PATIENCE).toMatch(/its certificate does not hold/);
  await untrusting.stop();
  expect(await readerOf(a, untrusting).witnessedSize()).toBe(0);
  const trusting = ask(a, 1, [{ key: own.vkey, url, ca }]);
  trusting.start();
  await expect.poll(() => readerOf(a, trusting).witnessedSize(), PATIENCE).toBe(1);
});

// ------------------------------------------------------------------- the third place

async function sequenceWith(of: LogFixture, witnesses: Witnesses, headFile = of.headFile): Promise<Sequencer> {
  const sequencer = await startSequencer({
    ...{ address: of.address, signers: [of.signer], headFile, thirdPlace: witnesses },
    onProblem: () => {},
    onIntegrityError: () => {},
  });
  cleanups.push(() => sequencer.stop());
  return sequencer;
}

/** Runs SQL on every row of the log's tables of `from`, and writes them into `to`: a backup, brought back. */
async function copyStore(from: LogFixture, to: LogFixture): Promise<void> {
  await to.query(
    "set session_replication_role = replica; delete from log_entries; delete from log_tiles; delete from log_checkpoints; delete from log_head; delete from log_queue",
  );
  for (const table of ["log_entries", "log_tiles", "log_checkpoints", "log_head"]) {
    const { rows } = await from.query(`select * from ${table}`);
    for (const row of rows) {
      const names = Object.keys(row);
      await to.query(
        `insert into ${table} (${names.join(", ")}) values (${names.map((_, i) => `$${i + 1}`).join(", ")})`,
        Object.values(row),
      );
    }
  }
}

test("store and data folder restored together from an old backup: the witness knows more, and the start is refused", async () => {
  const a = await log();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  const reader = readerOf(a, witnesses);
  const first = await sequenceWith(a, witnesses);
  await a.append({ data: { n: 1 } });
  await reader.settled(20_000);
  await first.stop();
  const backup = await log(); // holds both: the store and the head file
  await copyStore(a, backup);
  const head = join(backup.folder, "head");
  await copyFile(a.headFile, head);

  const second = await sequenceWith(a, witnesses);
  await a.append({ data: { n: 2 } });
  await reader.settled(20_000);
  await second.stop();
  await witnesses.stop(); // asks about what was signed last
  expect(await reader.witnessedSize()).toBe(2);

  const restored = ask(backup, 1, [real]);
  await expect(sequenceWith(backup, restored, head)).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("real.example/w saw: it knows 2 entries, and the store and the data folder 1"),
  });
  // What would have been a second root at size 2 was not signed.
  expect(await createLogReader(backup.store).size()).toBe(1);

  // With the witness away the start goes on and says so; the fork is found as soon as it is back.
  await real.stop();
  const blind = ask(backup, 1, [real]);
  const third = await sequenceWith(backup, blind, head);
  expect(blind.warnings.join("\n")).toContain("no witness says whether this is the newest state");
  await backup.append({ data: { n: 3 } }, { data: { n: 4 } });
  await createLogReader(backup.store).settled(20_000);
  await real.start();
  blind.start();
  await expect.poll(() => blind.alarms.get("witness real.example/w"), PATIENCE).toMatch(/no continuation/);
  await third.stop();
  await blind.stop();
  await expect(sequenceWith(backup, ask(backup, 1, [real]), head)).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("real.example/w saw: these 3 entries do not go on from them"),
  });
});

test("a process in reserve that takes the lead over a restored store asks the witnesses first, and signs nothing", async () => {
  const a = await log();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  const reader = readerOf(a, witnesses);
  const leader = await sequenceWith(a, witnesses);
  await a.append({ data: { n: 1 } });
  await reader.settled(20_000);
  const backup = await log();
  await copyStore(a, backup);
  await a.append({ data: { n: 2 } });
  await reader.settled(20_000);
  const broken: string[] = [];
  const reserve = await startSequencer({
    ...{ address: a.address, signers: [a.signer], headFile: join(a.folder, "head-of-reserve") },
    ...{ thirdPlace: ask(a, 1, [real]), onProblem: () => {}, onIntegrityError: (error) => broken.push(error.message) },
  });
  cleanups.push(() => reserve.stop());

  // The lock goes from the leader to this connection, not to the reserve, until the store is what it was.
  const holder = new pg.Client(clientConfig(a.address));
  await holder.connect();
  const held = holder.query("select pg_advisory_lock($1)", [LEAD]);
  const waits =
    "select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())";
  await expect.poll(async () => (await a.query(waits)).rowCount, PATIENCE).toBe(1); // before the reserve, which only asks now and then
  await leader.stop();
  await held;
  await witnesses.stop(); // asks about what was signed last: the witness knows 2 entries
  await copyStore(backup, a);
  await a.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'glasskey log'",
  );
  await a.append({ data: { n: 3 } }); // would be another entry 2
  await holder.end();
  await expect
    .poll(() => broken, PATIENCE)
    .toEqual([expect.stringContaining("real.example/w saw: it knows 2 entries")]);
  expect(await reader.size()).toBe(1);
});

test("a store of the same size with other entries is refused at the start by the witness alone", async () => {
  const [a, b] = [await log(), await log()];
  const real = await witness(a, "real.example/w");
  for (const [of, n] of [
    [a, 1],
    [b, 2],
  ] as const) {
    const sequencer = await of.sequence();
    await of.append({ data: { n } });
    await createLogReader(of.store).settled(20_000);
    await sequencer.stop();
  }
  const witnesses = ask(a, 1, [real]);
  await witnesses.stop(); // one round
  await expect(sequenceWith(b, ask(b, 1, [real]))).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("these 1 entries do not go on from them"),
  });
});

test("an emptied store and data folder, before anything is signed: the witness remembers, and the start is refused", async () => {
  const [a, empty] = [await log(), await log()];
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  const sequencer = await a.sequence();
  await a.append({}, {});
  await createLogReader(a.store).settled(20_000);
  await sequencer.stop();
  await witnesses.stop();
  await expect(sequenceWith(empty, ask(empty, 1, [real]))).rejects.toMatchObject({
    code: "integrity",
    message: expect.stringContaining("it knows 2 entries, and the store and the data folder 0"),
  });
});

test("what another process published meanwhile is no sign of another history, neither at the start nor later", async () => {
  const a = await log();
  await a.sequence();
  const reader = createLogReader(a.store);
  await a.append({});
  await reader.settled(20_000);
  const old = (await reader.checkpoint()) ?? "";
  let asked = 0;
  const ahead = await stranger((request, response) => {
    request.resume();
    asked += 1;
    const meanwhile = async (): Promise<void> => {
      await a.append({}); // published, and cosigned for the other process, while this one waits for its answer
      const size = await reader.settled(20_000);
      response.writeHead(409, { "content-type": "text/x.tlog.size" }).end(`${size}\n`);
    };
    void meanwhile();
  });
  const witnesses = ask(a, 1, [ahead]);
  await witnesses.confirm(old, () => reader.size());
  await expect(witnesses.confirm(old, () => Promise.resolve(1))).rejects.toMatchObject({ code: "integrity" });
  witnesses.start();
  await expect.poll(() => asked, PATIENCE).toBeGreaterThan(4);
  expect(witnesses.raised).toEqual([]);
});

test("a process that starts while another one signs is not misled by what the witness knows already", async () => {
  const a = await log();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  await sequenceWith(a, witnesses);
  witnesses.start();
  const done = new AbortController();
  const appending = (async () => {
    while (!done.signal.aborted) await a.append({});
  })();
  try {
    for (let start = 0; start < 8; start += 1) {
      const head = join(a.folder, `head-${start}`);
      const other = await sequenceWith(a, ask(a, 1, [real]), head);
      await other.stop();
    }
  } finally {
    done.abort();
    await appending;
  }
  expect(witnesses.raised).toEqual([]);
});

test("a process that takes the questions over again ends the alarms of the one before it, which is gone", async () => {
  const a = await log();
  await a.sequence();
  const real = await witness(a, "real.example/w");
  const witnesses = ask(a, 1, [real]);
  const reader = readerOf(a, witnesses);
  await a.append({});
  await reader.settled(20_000);
  witnesses.start();
  await expect.poll(() => reader.witnessedSize(), PATIENCE).toBe(1);
  // It was held up; another one asked meanwhile, found trouble, and died.
  await a.query("update witness_claim set claimed_by = 'other', claimed_until = now() + interval '1 hour'");
  await a.query("create table looks (at timestamptz default now())");
  await a.query(
    "create function looked() returns trigger language plpgsql as 'begin insert into looks default values; return null; end'",
  );
  await a.query("create trigger looked after update on witness_claim for each statement execute function looked()");
  const looks = async (): Promise<number> => (await a.query("select 1 from looks")).rows.length;
  await expect.poll(looks, PATIENCE).toBeGreaterThan(2);
  witnesses.alarms.set("witnesses", "the log has not been witnessed since its entry 0");
  witnesses.alarms.set("witness real.example/w", "the witness real.example/w saw another log than this one");
  await a.query("update witness_claim set claimed_until = now() - interval '1 second'");
  await a.append({});
  await expect.poll(() => witnesses.alarms.size, PATIENCE).toBe(0);
});
