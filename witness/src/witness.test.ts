import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { generateKeyPairSync, hash } from "node:crypto";
import { createSigner, openCosignatures, parseVerifierKey, signCheckpoint } from "@glasskey/verify";
import { afterEach, expect, test } from "vitest";
import { growingLog, type GrowingLog } from "../testing/log.ts";
import { nodeFiles, type Files } from "./files.ts";
import { addLog, dropKey, openWitnessFolder, WitnessError, type WitnessFolder } from "./folder.ts";
import { addCheckpoint, type Answer } from "./witness.ts";

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const undo of cleanup.splice(0).toReversed()) undo();
});

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "glasskey-witness-"));
  cleanup.push(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function open(folder: string, files?: Files): WitnessFolder {
  const witness = openWitnessFolder({ folder, name: "w.test/1", ...(files === undefined ? {} : { files }) });
  cleanup.push(witness.close);
  return witness;
}

function start(logs: readonly GrowingLog[], files?: Files): { folder: string; witness: WitnessFolder } {
  const folder = newFolder();
  const witness = open(folder, files);
  for (const log of logs) addLog(folder, log.signer.vkey);
  return { folder, witness };
}

function grown(size: number, origin?: string): GrowingLog {
  const log = growingLog(origin);
  log.append(size);
  return log;
}

const ask = (witness: WitnessFolder, body: string): Answer => addCheckpoint(witness, Buffer.from(body));
const stateOf = (folder: string, log: GrowingLog): string =>
  join(folder, "logs", hash("sha256", log.origin), "cosigned");

test("it cosigns a log that grows, from nothing on, and the cosignature verifies on the checkpoint", async () => {
  const log = grown(300);
  const { witness } = start([log]);
  let last = 0;
  for (const size of [0, 0, 1, 2, 7, 7, 255, 256, 300]) {
    const answer = ask(witness, await log.body(last, size));
    expect(answer.status, `${last} to ${size}`).toBe(200);
    const found = openCosignatures(log.checkpoint(size) + answer.body, [parseVerifierKey(witness.signer.vkey)]);
    expect(found.map(({ name }) => name)).toEqual(["w.test/1"]);
    expect(Math.abs((found[0]?.seconds ?? 0) - Date.now() / 1000)).toBeLessThan(3_600);
    last = size;
  }
});

test("another size than the one cosigned last is answered with that size, as text/x.tlog.size", async () => {
  const log = grown(20);
  const { witness } = start([log]);
  ask(witness, await log.body(0, 10));
  for (const [old, size] of [
    [0, 10],
    [0, 20],
    [9, 20],
    [11, 20],
    [5, 5],
  ] as const) {
    expect(ask(witness, await log.body(old, size))).toEqual({
      ...{ status: 409, body: "10\n", contentType: "text/x.tlog.size" },
    });
  }
  expect(ask(witness, await log.body(10, 20)).status).toBe(200);
});

test("a fork, a second root at one size and a proof that does not hold are 422, and are never cosigned", async () => {
  const log = grown(50);
  const { witness, folder } = start([log]);
  expect(ask(witness, await log.body(0, 20)).status).toBe(200);
  const fork = log.fork(10);
  expect(ask(witness, await fork.body(20, 40)).status).toBe(422);
  expect(ask(witness, await fork.body(20, 20)).status).toBe(422);
  const lines = (await log.body(20, 40)).split("\n");
  for (const wrong of [
    [lines[0], ...lines.slice(2)], // a hash less
    [lines[0], lines[1], ...lines.slice(1)], // a hash more
    [lines[0], lines[2], lines[1], ...lines.slice(3)], // in another order
  ]) {
    expect(ask(witness, wrong.join("\n")).status).toBe(422);
  }
  const fresh = start([log]);
  const withProof = (await log.body(0, 20)).replace("old 0\n", `old 0\n${Buffer.alloc(32).toString("base64")}\n`);
  expect(ask(fresh.witness, withProof).status).toBe(422);
  const wrongEmpty = signCheckpoint({ origin: log.origin, size: 0, root: Buffer.alloc(32, 1) }, [log.signer]);
  expect(ask(fresh.witness, `old 0\n\n${wrongEmpty}`).status).toBe(422);
  // The log signed two roots at one size: that is kept, beside the one that was cosigned, for whoever asks.
  const conflict = readFileSync(join(stateOf(folder, log), "../conflict"), "utf8");
  expect(conflict).toBe(fork.checkpoint(20));
  expect(ask(witness, await log.body(20, 50)).status).toBe(200);
});

test("a second root at one size is kept whatever old size is said with it", async () => {
  const log = grown(30);
  const { witness, folder } = start([log]);
  expect(ask(witness, await log.body(0, 20)).status).toBe(200);
  const fork = log.fork(10);
  expect(ask(witness, await fork.body(15, 20))).toMatchObject({ status: 409, body: "20\n" });
  expect(readFileSync(join(stateOf(folder, log), "../conflict"), "utf8")).toBe(fork.checkpoint(20));
});

test("a log that it does not know is 404, a checkpoint without that log's signature 403", async () => {
  const [log, stranger] = [grown(5), grown(5, "stranger.test/log")];
  const { witness } = start([log]);
  expect(ask(witness, await stranger.body(0, 5)).status).toBe(404);
  const impostor = createSigner(log.origin, generateKeyPairSync("ed25519").privateKey);
  const text = log.checkpoint(5).split("\n\n")[0] ?? "";
  const [, , root = ""] = text.split("\n");
  const forged = signCheckpoint({ origin: log.origin, size: 5, root: Buffer.from(root, "base64") }, [impostor]);
  expect(ask(witness, `old 0\n\n${forged}`).status).toBe(403);
  const body = await log.body(0, 5);
  expect(ask(witness, body.replace("\n5\n", "\n4\n")).status).toBe(403);
  // The signature of another known log does not count for this one.
  const other = grown(5, "other.test/log");
  const two = start([log, other]);
  const mixed = `${log.checkpoint(5).split("\n\n")[0]}\n\n${other.checkpoint(5).split("\n\n")[1]}`;
  expect(ask(two.witness, `old 0\n\n${mixed}`).status).toBe(403);
});

test("bodies that are not of the specified form are 400", async () => {
  const log = grown(8);
  const { witness } = start([log]);
  const good = await log.body(0, 8);
  const hashLine = `${Buffer.alloc(32).toString("base64")}\n`;
  for (const [why, body] of Object.entries({
    empty: "",
    "no old line": good.slice(good.indexOf("\n") + 1),
    "a leading zero": good.replace("old 0", "old 00"),
    "a negative size": good.replace("old 0", "old -1"),
    "no number": good.replace("old 0", "old x"),
    "too large a number": good.replace("old 0", "old 99999999999999999999"),
    "carriage returns": good.replaceAll("\n", "\r\n"),
    "a proof line of 31 bytes": good.replace("old 0\n", `old 0\n${Buffer.alloc(31).toString("base64")}\n`),
    "no base64": good.replace("old 0\n", "old 0\n!!\n"),
    "64 proof lines": good.replace("old 0\n", `old 0\n${hashLine.repeat(64)}`),
    "no checkpoint": "old 0\n\n",
    "no signatures": `old 0\n\n${log.checkpoint(8).split("\n\n")[0]}\n`,
    "an old size above the checkpoint's": good.replace("old 0", "old 9"),
    "half a surrogate": `${good}— \ud800`,
  })) {
    const bytes =
      why === "half a surrogate" ? Buffer.concat([Buffer.from(good), Buffer.from([0xff])]) : Buffer.from(body);
    expect(addCheckpoint(witness, bytes).status, why).toBe(400);
  }
  expect(ask(witness, good.replace("old 0\n", `old 0\n${hashLine.repeat(63)}`)).status).toBe(422);
  expect(ask(witness, good).status).toBe(200);
});

test("what it cosigned survives a restart, and an older state of a log is not cosigned again", async () => {
  const log = grown(30);
  const { folder, witness } = start([log]);
  ask(witness, await log.body(0, 25));
  witness.close();
  const again = open(folder);
  expect(again.signer.vkey).toBe(witness.signer.vkey);
  expect(ask(again, await log.body(0, 10))).toMatchObject({ status: 409, body: "25\n" });
  expect(ask(again, await log.fork(3).body(0, 30))).toMatchObject({ status: 409, body: "25\n" });
  expect(ask(again, await log.body(25, 30)).status).toBe(200);
});

test("logs do not touch each other", async () => {
  const [a, b] = [grown(9), grown(9, "other.test/log")];
  const { witness } = start([a, b]);
  expect(ask(witness, await a.body(0, 9)).status).toBe(200);
  expect(ask(witness, await b.body(0, 4)).status).toBe(200);
  expect(witness.logs().map(({ cosigned }) => cosigned?.checkpoint.size)).toEqual([9, 4]);
});

test("nothing leaves before it is on the disk: with a disk that is full or broken at any step, no cosignature", async () => {
  const log = grown(30);
  const trouble = { now: false };
  const failing: Files = {
    read: nodeFiles.read,
    replace(path, text, mode) {
      if (trouble.now) throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
      nodeFiles.replace(path, text, mode);
    },
  };
  const { witness } = start([log], failing);
  expect(ask(witness, await log.body(0, 10)).status).toBe(200);
  trouble.now = true;
  const body = await log.body(10, 20);
  expect(() => ask(witness, body)).toThrow(/ENOSPC/);
  expect(() => addCheckpoint(witness, Buffer.from(body))).toThrow(/ENOSPC/);
  trouble.now = false;
  expect(ask(witness, await log.body(10, 30)).status).toBe(200);
});

test("a state that is damaged, lost or foreign stops that log, and no other", async () => {
  const [log, other] = [grown(20), grown(20, "other.test/log")];
  const { folder, witness } = start([log, other]);
  ask(witness, await log.body(0, 10));
  const path = stateOf(folder, log);
  const sound = readFileSync(path, "utf8");
  const [foreignFolder, next] = [newFolder(), await log.body(10, 20)];
  const foreign = openWitnessFolder({ folder: foreignFolder, name: "w.test/1" });
  addLog(foreignFolder, log.signer.vkey);
  ask(foreign, await log.body(0, 5));
  foreign.close();
  for (const [why, text] of Object.entries({
    "a smaller size": sound.replace("\n10\n", "\n9\n"),
    "cut short": sound.slice(0, -20),
    "without our cosignature": log.checkpoint(10),
    "of another witness": readFileSync(stateOf(foreignFolder, log), "utf8"),
    garbage: "\u0000\u0001",
  })) {
    writeFileSync(path, text);
    expect(() => ask(witness, next), why).toThrow(WitnessError);
  }
  rmSync(path);
  expect(() => ask(witness, next)).toThrow(/cosigned is missing/);
  expect(ask(witness, await other.body(0, 20)).status).toBe(200);
  writeFileSync(path, sound);
  expect(ask(witness, next).status).toBe(200);
});

test("a checkpoint with a hundred signature lines of others does not spoil what is kept", async () => {
  const log = grown(9);
  const { witness, folder } = start([log]);
  const junk = `— ${log.origin} ${Buffer.alloc(68, 1).toString("base64")}\n`.repeat(90);
  expect(ask(witness, (await log.body(0, 5)) + junk).status).toBe(200);
  expect(readFileSync(stateOf(folder, log), "utf8").length).toBeLessThan(1_000);
  expect(ask(witness, await log.body(5, 9)).status).toBe(200);
});

test("a log's second key is added, and a checkpoint by either is cosigned; one of another log is not mixed in", async () => {
  const log = grown(9);
  const { witness, folder } = start([log]);
  const next = growingLog(log.origin);
  next.append(9);
  ask(witness, await log.body(0, 5));
  expect(ask(witness, await next.body(5, 9)).status).toBe(403);
  expect(addLog(folder, next.signer.vkey)).toEqual({ origin: log.origin, known: true });
  expect(ask(witness, await next.body(5, 9)).status).toBe(200);
  expect(() => addLog(folder, `${log.signer.vkey}\n${grown(1, "other.test/log").signer.vkey}`)).toThrow(
    /different logs/,
  );
  expect(() => addLog(folder, witness.signer.vkey)).toThrow(/key of a witness/);
  expect(() => addLog(newFolder(), log.signer.vkey)).toThrow(/there is no witness in/);
});

test("a retired key of a log is dropped: whoever has it gets nothing cosigned, and the last key stays", async () => {
  const log = grown(9);
  const { witness, folder } = start([log]);
  const next = growingLog(log.origin);
  next.append(9);
  ask(witness, await log.body(0, 5));
  expect(() => dropKey(folder, log.signer.vkey)).toThrow(/the only key/);
  addLog(folder, next.signer.vkey);
  expect(dropKey(folder, `${log.signer.vkey}\n`)).toEqual({ origin: log.origin });
  expect(ask(witness, await log.body(5, 9)).status).toBe(403);
  expect(ask(witness, await next.body(5, 9)).status).toBe(200); // what the old key signed is still where it goes on from
  expect(() => dropKey(folder, log.signer.vkey)).toThrow(/not known here/);
  expect(() => dropKey(folder, grown(1, "other.test/log").signer.vkey)).toThrow(/not known here/);
  expect(() => dropKey(newFolder(), log.signer.vkey)).toThrow(/there is no witness in/);
});

test("the private key is readable by its owner only, and no error tells it", () => {
  const { folder } = start([]);
  const file = join(folder, "witness.key");
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder).toSorted()).toEqual(["lock", "logs", "witness.key"]);
  const secret = readFileSync(file, "utf8");
  const other = newFolder();
  writeFileSync(join(other, "witness.key"), secret.replace("w.test/1", "w.test/2"));
  chmodSync(join(other, "witness.key"), 0o600);
  let said = "";
  try {
    openWitnessFolder({ folder: other });
  } catch (error) {
    said = String(error);
  }
  expect(said).toContain("witness.key in");
  expect(said).not.toContain(secret.slice(-20, -2));
});

test("a folder is for one process, one name and one key", () => {
  const { folder } = start([]);
  expect(() => openWitnessFolder({ folder })).toThrow(/runs on .* already/);
  const empty = newFolder();
  expect(() => openWitnessFolder({ folder: empty })).toThrow(/give its name with --name/);
  expect(() => openWitnessFolder({ folder: empty, name: "two words" })).toThrow(/cannot name a witness/);
  const named = openWitnessFolder({ folder: empty, name: "w.test/a" });
  named.close();
  expect(() => openWitnessFolder({ folder: empty, name: "w.test/b" })).toThrow(/is called w\.test\/a, and not/);
});

test("a key that is lost is not replaced in the folder where it cosigned", async () => {
  const log = grown(5);
  const { folder, witness } = start([log]);
  ask(witness, await log.body(0, 5));
  witness.close();
  rmSync(join(folder, "witness.key"));
  expect(() => openWitnessFolder({ folder, name: "w.test/1" })).toThrow(/begin in an empty folder/);
});

test("a witness with an ML-DSA-44 key cosigns alike", async () => {
  const [folder, log] = [newFolder(), grown(9)];
  const witness = openWitnessFolder({ folder, name: "w.test/pq", keyType: "ml-dsa-44" });
  cleanup.push(witness.close);
  addLog(folder, log.signer.vkey);
  const answer = ask(witness, await log.body(0, 5));
  expect(openCosignatures(log.checkpoint(5) + answer.body, [parseVerifierKey(witness.signer.vkey)])).toHaveLength(1);
  expect(ask(witness, await log.body(5, 9)).status).toBe(200);
});
