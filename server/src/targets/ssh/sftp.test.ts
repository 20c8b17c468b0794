import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { authorize } from "./authorize.ts";
import type { FileProxy } from "./file-proxy.ts";
import { createTestTape, type FileRig, scopeFor, SFTP_SERVER, startFileRig } from "./fixtures/file-proxies.ts";
import { createSftpProxy } from "./sftp.ts";

const missing = [SFTP_SERVER, "/usr/bin/sftp", "/usr/bin/scp", "/usr/bin/python3"].find((file) => !existsSync(file));
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** A rig whose scope names folders of its own: `read/**` and `write/**`, beside `secret/`. */
async function rigWith(
  more: Record<string, unknown> = {},
  options: { mask?: boolean } = {},
  files?: (home: string) => { read: string[]; write: string[] },
): Promise<FileRig & { at: (path: string) => string }> {
  const home = await realpath(await mkdtemp(join(tmpdir(), "glasskey-home-")));
  for (const name of ["read/deep", "write", "secret", "local"]) await mkdir(join(home, name), { recursive: true });
  const sftp = files?.(home) ?? { read: [`${home}/read/**`], write: [`${home}/write/**`] };
  const rig = await startFileRig(scopeFor({ sftp, ...more }), { home, ...options });
  onTestFinished(async () => {
    await rig.dispose();
    await rm(home, { recursive: true, force: true });
  });
  return { ...rig, at: (path) => join(home, path) };
}

const sftp = (rig: FileRig, batch: string): ReturnType<FileRig["run"]> =>
  rig.run(["sftp", "-q", "-D", rig.bridge, "-b", "-"], batch);

describe.skipIf(missing !== undefined)(
  `SFTP through the proxy${missing === undefined ? "" : ` (skipped: no ${missing})`}`,
  () => {
    test("a download is one statement with its path, bytes and the digest that sha256sum gives", async () => {
      const rig = await rigWith();
      const content = randomBytes(3_000_000);
      await writeFile(rig.at("read/deep/data.bin"), content);
      const { code, stderr } = await sftp(rig, `get ${rig.at("read/deep/data.bin")} ${rig.at("local/data.bin")}\n`);
      expect([code, stderr, rig.failures]).toEqual([0, "", []]);
      expect(sha256(await readFile(rig.at("local/data.bin")))).toBe(sha256(content));
      const [statement] = rig.statements().filter(({ text }) => text === `read ${rig.at("read/deep/data.bin")}`);
      expect(statement).toMatchObject({
        via: "sftp",
        tag: "ok",
        bytes: 3_000_000,
        detail: { verb: "read", sha256: sha256(content) },
      });
      expect(statement?.["detail"]).not.toHaveProperty("ranges");
    });

    test("an upload is one statement, and the file on the host is the one that was sent", async () => {
      const rig = await rigWith();
      const content = randomBytes(3_000_000);
      await writeFile(rig.at("local/up.bin"), content);
      const { code, stderr } = await sftp(rig, `put -p ${rig.at("local/up.bin")} ${rig.at("write/up.bin")}\n`);
      expect([code, stderr, rig.failures]).toEqual([0, "", []]);
      expect(sha256(await readFile(rig.at("write/up.bin")))).toBe(sha256(content));
      const statements = rig.statements();
      const write = statements.find(({ text }) => text === `write ${rig.at("write/up.bin")}`);
      expect(write).toMatchObject({ via: "sftp", tag: "ok", bytes: 3_000_000, detail: { sha256: sha256(content) } });
      expect(statements.some(({ text }) => text === `change ${rig.at("write/up.bin")}`)).toBe(true);
    });

    test("folders, renames, links and removals are statements, and work", async () => {
      const rig = await rigWith();
      await writeFile(rig.at("local/a"), "a");
      const w = rig.at("write");
      const batch = `mkdir ${w}/d\nput ${rig.at("local/a")} ${w}/d/a\nrename ${w}/d/a ${w}/d/b\nsymlink b ${w}/d/l\nln ${w}/d/b ${w}/d/h\nchmod 600 ${w}/d/b\nrm ${w}/d/h\nrm ${w}/d/l\nrm ${w}/d/b\nrmdir ${w}/d\n`;
      const { code, stderr } = await sftp(rig, batch);
      expect([code, stderr, rig.failures]).toEqual([0, "", []]);
      expect(existsSync(rig.at("write/d"))).toBe(false);
      const verbs = rig.statements().map(({ text }) => text.split(" ")[0]);
      expect(verbs).toEqual([
        "mkdir",
        "write",
        "rename",
        "symlink",
        "link",
        "change",
        "remove",
        "remove",
        "remove",
        "rmdir",
      ]);
      expect(rig.statements().every(({ tag }) => tag === "ok")).toBe(true);
    });

    test("what the scope does not name is refused, recorded, and never seen by the server", async () => {
      const rig = await rigWith();
      await writeFile(rig.at("secret/key"), "secret");
      await writeFile(rig.at("read/file"), "file");
      await writeFile(rig.at("write/x"), "there, and not to be read");
      await writeFile(rig.at("local/a"), "a");
      for (const [command, refused] of [
        [`get ${rig.at("secret/key")} ${rig.at("local/key")}`, "secret/key"],
        [`get ${rig.at("read")}/../secret/key ${rig.at("local/key")}`, "secret/key"],
        [`get ${rig.at("write")}/x ${rig.at("local/key")}`, "write/x"],
        [`put ${rig.at("local/a")} ${rig.at("read/file")}`, "read/file"],
        [`put ${rig.at("local/a")} ${rig.at("write/.bashrc")}`, "write/.bashrc"],
        [`rm ${rig.at("read/file")}`, "read/file"],
        [`rename ${rig.at("write")}/a ${rig.at("secret")}/a`, "secret/a"],
        [`ln ${rig.at("secret/key")} ${rig.at("write/h")}`, "secret/key"],
        [`symlink ${rig.at("secret/key")} ${rig.at("write/l")}`, "secret/key"],
        [`mkdir ${rig.at("secret/d")}`, "secret/d"],
        [`chmod 777 ${rig.at("secret/key")}`, "secret/key"],
        [`ls ${rig.at("secret")}`, "secret"],
      ] as const) {
        const { code } = await sftp(rig, `${command}\n`);
        expect(code, command).not.toBe(0);
        expect(rig.stderr(), command).toContain(rig.at(refused));
      }
      expect(rig.failures).toEqual([]);
      expect(await readFile(rig.at("read/file"), "utf8")).toBe("file");
      expect(existsSync(rig.at("local/key"))).toBe(false);
      expect([existsSync(rig.at("write/.bashrc")), existsSync(rig.at("write/h"))]).toEqual([false, false]);
      expect(rig.statements().filter(({ via }) => via === "sftp")).toEqual([]);
    });

    test("a link on the host that leads out of the scope is not followed, for reading, writing, listing or making", async () => {
      const rig = await rigWith();
      await writeFile(rig.at("secret/key"), "secret");
      await writeFile(rig.at("local/a"), "a");
      await symlink(rig.at("secret/key"), rig.at("read/link"));
      await symlink(rig.at("secret"), rig.at("read/folder"));
      await symlink(rig.at("secret"), rig.at("write/folder"));
      await symlink(rig.at("secret/new"), rig.at("write/dangling"));
      for (const command of [
        `get ${rig.at("read/link")} ${rig.at("local/key")}`,
        `get ${rig.at("read/folder/key")} ${rig.at("local/key")}`,
        `put ${rig.at("local/a")} ${rig.at("write/folder/a")}`,
        `put ${rig.at("local/a")} ${rig.at("write/dangling")}`,
        `mkdir ${rig.at("write/folder/d")}`,
        `rename ${rig.at("write/dangling")} ${rig.at("write/folder/x")}`,
      ]) {
        const { code } = await sftp(rig, `${command}\n`);
        expect(code, command).not.toBe(0);
      }
      // sftp's own ls goes on after an error.
      expect((await sftp(rig, `ls ${rig.at("read/folder/")}\n`)).stdout).not.toContain("key\n");
      expect(rig.stderr()).toContain("a link leads there");
      for (const path of ["secret/a", "secret/new", "secret/d", "secret/x", "local/key"])
        expect([path, existsSync(rig.at(path))]).toEqual([path, false]);
      // A link may be removed itself.
      expect((await sftp(rig, `rm ${rig.at("write/dangling")}\n`)).code).toBe(0);
      expect(await readFile(rig.at("secret/key"), "utf8")).toBe("secret");
    });

    test("scp in its new mode copies both ways, with folders", async () => {
      const rig = await rigWith();
      await mkdir(rig.at("local/tree/sub"), { recursive: true });
      await writeFile(rig.at("local/tree/a"), randomBytes(70_000));
      await writeFile(rig.at("local/tree/sub/empty"), "");
      const up = await rig.run([
        "scp",
        "-q",
        "-s",
        "-r",
        "-p",
        "-S",
        rig.bridge,
        rig.at("local/tree"),
        `host:${rig.at("write/tree")}`,
      ]);
      expect([up.code, up.stderr, rig.failures]).toEqual([0, "", []]);
      expect(await readFile(rig.at("write/tree/a"))).toEqual(await readFile(rig.at("local/tree/a")));
      await writeFile(rig.at("read/deep/x"), "x");
      const down = await rig.run([
        "scp",
        "-q",
        "-s",
        "-r",
        "-S",
        rig.bridge,
        `host:${rig.at("read/deep")}`,
        rig.at("local/got"),
      ]);
      expect([down.code, down.stderr, rig.failures]).toEqual([0, "", []]);
      expect(await readFile(rig.at("local/got/x"), "utf8")).toBe("x");
      const empty = rig.statements().find(({ text }) => text.endsWith("tree/sub/empty") && text.startsWith("write"));
      expect(empty).toMatchObject({ bytes: 0, detail: { sha256: sha256(Buffer.alloc(0)) } });
    });

    test("contents are kept up to the bound where the playbook says so", async () => {
      const rig = await rigWith({ files: "keep" });
      const content = randomBytes(1_500_000);
      await writeFile(rig.at("local/up.bin"), content);
      await writeFile(rig.at("read/down.txt"), "what the host has");
      const batch = `put ${rig.at("local/up.bin")} ${rig.at("write/up.bin")}\nget ${rig.at("read/down.txt")} ${rig.at("local/d")}\n`;
      const { code, stderr } = await sftp(rig, batch);
      expect([code, stderr, rig.failures]).toEqual([0, "", []]);
      expect(await readFile(rig.at("write/up.bin"))).toEqual(content);
      const kept = Buffer.concat(rig.records.filter(({ kind }) => kind === 6).map(({ bytes }) => bytes.subarray(4)));
      // OpenSSH's sftp writes pieces in order, so what is kept is the file's beginning.
      expect(kept).toEqual(content.subarray(0, 1 << 20));
      const read = rig.records.filter(({ kind }) => kind === 21).map(({ bytes }) => bytes.subarray(5).toString());
      expect(read.join("")).toBe("what the host has");
    });

    test("where values are masked, a file has a keyed hash and no content", async () => {
      const rig = await rigWith({ files: "keep" }, { mask: true });
      await writeFile(rig.at("read/down.txt"), "4111 1111 1111 1111");
      expect((await sftp(rig, `get ${rig.at("read/down.txt")} ${rig.at("local/d")}\n`)).code).toBe(0);
      const [statement] = rig.statements().filter(({ text }) => text.startsWith("read "));
      expect(statement?.["detail"]).toHaveProperty("hmac");
      expect(JSON.stringify(rig.statements())).not.toContain(sha256(Buffer.from("4111 1111 1111 1111")));
      expect(rig.records.every(({ bytes }) => !bytes.includes("4111"))).toBe(true);
    });

    test("a folder's new name does not make readable, or writable, what is in it", async () => {
      const home = (path: string): string => rig.at(path);
      const rig = await rigWith({}, {}, (at) => ({
        read: [`${at}/write/pub/**`, `${at}/write/*/log/*`],
        write: [`${at}/write/**`],
      }));
      await mkdir(home("write/secret/log"), { recursive: true });
      await writeFile(home("write/secret/key"), "secret");
      for (const command of [
        `rename ${home("write/secret")} ${home("write/pub")}`,
        `rename ${home("write/secret")} ${home("write/pub/x")}`,
        `rename ${home("write/secret/log")} ${home("write/pub")}`,
      ]) {
        expect((await sftp(rig, `${command}\n`)).code, command).not.toBe(0);
        expect(existsSync(home("write/secret/key")), command).toBe(true);
      }
      // What is as readable before as after may be moved.
      await mkdir(home("write/pub/a"), { recursive: true });
      const moved = `rename ${home("write/pub/a")} ${home("write/pub/b")}\nrename ${home("write/secret")} ${home("write/hidden")}\n`;
      expect(await sftp(rig, moved)).toMatchObject({ code: 0 });
    });

    test("what is copied on the host is a statement with both paths, and has no digest", async () => {
      const rig = await rigWith({}, {}, (at) => ({ read: [`${at}/read/**`], write: [`${at}/write/**`] }));
      const content = randomBytes(100_000);
      await writeFile(rig.at("read/a"), content);
      const { code, stderr } = await sftp(rig, `cp ${rig.at("read/a")} ${rig.at("write/b")}\n`);
      expect([code, stderr]).toEqual([0, ""]);
      expect(await readFile(rig.at("write/b"))).toEqual(content);
      const told = rig.statements();
      expect(told.find(({ text: what }) => what.startsWith("copy "))).toMatchObject({
        text: `copy ${rig.at("read/a")} ${rig.at("write/b")}`,
        tag: "ok",
      });
      const written = told.find(({ text: what }) => what.startsWith("write "));
      expect(written).toMatchObject({ detail: { copiedOnTarget: true } });
      expect(JSON.stringify(written)).not.toContain("sha256");
    });

    test("a file does not become setuid", async () => {
      const rig = await rigWith();
      await writeFile(rig.at("write/tool"), "#!/bin/sh\n");
      const { code } = await sftp(rig, `chmod 4755 ${rig.at("write/tool")}\n`);
      expect(code).not.toBe(0);
      expect(rig.stderr()).toContain("setuid");
    });
  },
);

describe("attacks on the SFTP proxy", () => {
  const s32 = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    return bytes;
  };
  const text = (value: string): Buffer => Buffer.concat([s32(Buffer.byteLength(value)), Buffer.from(value)]);
  const packet = (type: number, id: number, ...body: Buffer[]): Buffer => {
    const all = Buffer.concat([Buffer.from([type]), s32(id), ...body]);
    return Buffer.concat([s32(all.length), all]);
  };
  const init = Buffer.concat([s32(5), Buffer.from([1]), s32(3)]);
  const turn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));

  /** A proxy that is ready, with both sides in the test's hands; REALPATH is answered with the path itself. */
  async function ready(
    options: {
      extensions?: string[];
      commit?: (committed: () => void) => void;
      /** Nothing that the client is sent is ever taken. */
      stuck?: boolean;
      real?: (path: string) => string;
      /** What comes in place of an answer to REALPATH, after its id. */
      damaged?: Buffer;
    } = {},
  ): Promise<{
    client: Buffer[];
    target: Buffer[];
    failures: string[];
    fed: { client: number; done: number };
    send: (...packets: Buffer[]) => Promise<void>;
    answer: (...packets: Buffer[]) => Promise<void>;
    proxy: FileProxy;
    statements: ReturnType<typeof createTestTape>["statements"];
  }> {
    const { commit = (committed: () => void) => queueMicrotask(committed) } = options;
    const { tape, mask, statements } = createTestTape({ commit });
    const [client, target, failures]: [Buffer[], Buffer[], string[]] = [[], [], []];
    const fed = { client: 0, done: 0 };
    const scope = scopeFor({ sftp: { read: ["/r/**"], write: ["/w/**"] } });
    const proxy = createSftpProxy({
      ...{ n: 1, scope, tape, mask, decide: (question) => authorize(question, scope) },
      ends: {
        toTarget(data, sent) {
          const bytes = Buffer.from(data);
          if (bytes[4] === 16) {
            const path = bytes.subarray(13).toString();
            if (options.damaged !== undefined) {
              const { damaged } = options;
              return queueMicrotask(() => proxy.fromTarget(packet(104, bytes.readUInt32BE(5), damaged), 0));
            }
            const name = text(path === "." ? "/home/app" : (options.real?.(path) ?? path));
            queueMicrotask(() => proxy.fromTarget(packet(104, bytes.readUInt32BE(5), s32(1), name, name, s32(0)), 0));
          } else target.push(bytes);
          sent?.();
        },
        toClient: (data, stream, sent) => {
          if (stream === 0) client.push(Buffer.from(data));
          if (options.stuck !== true) sent?.();
        },
        ...{ targetEof: () => {}, targetDone: () => {}, clientDone: (bytes: number) => void (fed.done += bytes) },
        refuse: (_via, _text, { reason }) => reason,
        fail: (why) => void failures.push(why),
        defect: (error) => {
          throw error;
        },
      },
    });
    const send = async (...packets: Buffer[]): Promise<void> => {
      for (const bytes of packets) {
        fed.client += bytes.length;
        proxy.fromClient(bytes);
      }
      await turn();
      await turn();
    };
    const answer = async (...packets: Buffer[]): Promise<void> => {
      for (const bytes of packets) proxy.fromTarget(bytes, 0);
      await turn();
    };
    await send(init);
    const extensions = (options.extensions ?? []).flatMap((name) => [text(name), text("1")]);
    await answer(packet(2, 3, ...extensions));
    target.length = 0;
    return { client, target, failures, fed, send, answer, proxy, statements };
  }
  const open = (id: number, path: string, flags = 1): Buffer => packet(3, id, text(path), s32(flags), s32(0));
  const read = (id: number, handle: string, offset = 0, length = 10): Buffer =>
    packet(5, id, text(handle), s32(0), s32(offset), s32(length));

  test("extensions that are not understood are not told to the client, and refused if they are asked for", async () => {
    const rig = await ready({ extensions: ["posix-rename@openssh.com", "evil@example.com", "home-directory"] });
    const version = Buffer.concat(rig.client).toString("latin1");
    expect([version.includes("posix-rename"), version.includes("evil"), version.includes("home-directory")]).toEqual([
      true,
      false,
      false,
    ]);
    await rig.send(packet(200, 7, text("evil@example.com"), text("/r/x")));
    expect(rig.client.at(-1)?.[4]).toBe(101);
    expect(rig.target).toEqual([]);
  });

  test.each([
    ["cut off", s32(1)],
    ["of a name that is longer than itself", Buffer.concat([s32(1), s32(1_000_000)])],
    ["empty", Buffer.alloc(0)],
  ])(
    "a server whose first answer is %s ends this channel with a reason, and takes nobody else with it",
    async (_, damaged) => {
      const rig = await ready({ damaged });
      await turn();
      expect(rig.failures).toEqual([expect.stringMatching(/^SFTP: /)]);
      expect(rig.client).toEqual([]);
    },
  );

  test("nothing is forwarded while its record is not committed", async () => {
    const waiting: (() => void)[] = [];
    const rig = await ready({ commit: (committed) => void waiting.push(committed) });
    await rig.send(open(1, "/r/x"));
    expect(rig.target).toEqual([]);
    for (const committed of waiting) committed();
    await turn();
    expect(rig.target.map((bytes) => bytes[4])).toEqual([3]);
  });

  test("handles that were never given, are closed, or were opened for less, reach nothing", async () => {
    const rig = await ready();
    await rig.send(open(1, "/r/x"));
    await rig.answer(packet(102, 1, text("h")));
    rig.target.length = 0;
    const write = packet(6, 3, text("h"), s32(0), s32(0), text("evil"));
    const size = packet(10, 4, text("h"), s32(1), s32(0), s32(0));
    await rig.send(read(2, "other"), write, size, packet(12, 5, text("h")));
    expect(rig.target).toEqual([]);
    await rig.send(packet(4, 6, text("h")));
    await rig.send(read(7, "h"));
    expect(rig.target.map((bytes) => bytes[4])).toEqual([4]);
    expect(rig.client.slice(-5).map((bytes) => bytes[4])).toEqual([101, 101, 101, 101, 101]);
  });

  test.each<[string, Buffer]>([
    ["that is longer than any", Buffer.concat([s32(1 << 20), Buffer.from([3])])],
    ["of no length", s32(0)],
    ["that ends in a value", packet(3, 1, s32(1000))],
    ["with bytes left over", packet(4, 1, text("h"), Buffer.from("x"))],
    ["with attributes that SFTP 3 has not", packet(9, 1, text("/w/x"), s32(0x8000_0000))],
    ["with a position beyond all files", packet(5, 1, text("h"), s32(0xffff_ffff), s32(0), s32(1))],
  ])("a packet %s ends the channel, and nothing of it is forwarded", async (_what, bytes) => {
    const rig = await ready();
    await rig.send(bytes);
    expect(rig.failures).toHaveLength(1);
    expect(rig.target).toEqual([]);
  });

  test("two requests with one number end the channel", async () => {
    const rig = await ready();
    await rig.send(open(1, "/r/x"));
    await rig.answer(packet(102, 1, text("h")));
    await rig.send(read(2, "h"), read(2, "h"));
    expect(rig.failures).toHaveLength(1);
  });

  test("two requests with one number end the channel also while the first one waits for its record", async () => {
    const waiting: (() => void)[] = [];
    const rig = await ready({ commit: (committed) => void waiting.push(committed) });
    await rig.send(packet(13, 5, text("/w/a")), packet(13, 5, text("/w/b")));
    expect(rig.failures).toHaveLength(1);
    for (const committed of waiting) committed();
    await turn();
    expect(rig.target).toEqual([]);
  });

  test("requests for one file reach the target in the order in which they were sent", async () => {
    const waiting: (() => void)[] = [];
    let held = false;
    const rig = await ready({
      commit: (committed) => (held ? void waiting.push(committed) : queueMicrotask(committed)),
    });
    await rig.send(open(1, "/w/x", 2 | 8));
    await rig.answer(packet(102, 1, text("h")));
    rig.target.length = 0;
    held = true;
    const truncate = packet(10, 2, text("h"), s32(1), s32(0), s32(0));
    const write = packet(6, 3, text("h"), s32(0), s32(0), text("new"));
    await rig.send(truncate, write, packet(4, 4, text("h")));
    expect(rig.target).toEqual([]);
    for (const committed of waiting) committed();
    await turn();
    expect(rig.target.map((bytes) => bytes[4])).toEqual([10, 6, 4]);
  });

  test("a target that sends more of a file after it has closed it is not believed: nothing passes that is counted in nothing", async () => {
    const rig = await ready();
    await rig.send(open(1, "/r/x"));
    await rig.answer(packet(102, 1, text("h")));
    await rig.send(read(2, "h"), packet(4, 3, text("h")));
    await rig.answer(packet(101, 3, s32(0), text(""), text("")));
    rig.client.length = 0;
    await rig.answer(packet(103, 2, text("late")));
    expect([rig.failures.length, rig.client]).toEqual([1, []]);
  });

  test.each<[string, number, Buffer]>([
    ["a change", 13, Buffer.concat([text("/w/x")])],
    ["a look", 17, Buffer.concat([text("/r/x")])],
  ])("a target cannot hide a file in the answer to %s", async (_what, type, body) => {
    const rig = await ready();
    await rig.send(packet(type, 1, body));
    rig.client.length = 0;
    await rig.answer(packet(103, 1, text("the whole file")));
    expect([rig.failures.length, rig.client]).toEqual([1, []]);
  });

  test("a client that asks and never reads the answers is not read either", async () => {
    const rig = await ready({ stuck: true });
    for (let i = 0; i < 20_000; i++) rig.proxy.fromClient(read(i, "none"));
    await turn();
    expect(rig.client.length).toBeLessThan(3_000);
    expect(rig.fed.done).toBeLessThan(100_000);
  });

  test("a link's target is judged from where the link really is, and as the host would follow it", async () => {
    const rig = await ready({ real: (path) => (path === "/w/d1/d2/l" ? "/w" : path) });
    for (const path2 of ["../../etc/passwd", "/w/d1/d2/l/../../etc/passwd", "l/../../etc/passwd", "./x/.."]) {
      await rig.send(packet(20, 1, text(path2), text("/w/d1/d2/l/evil")));
      expect(rig.target, path2).toEqual([]);
      expect(rig.client.at(-1)?.[4], path2).toBe(101);
    }
    await rig.send(packet(20, 2, text("../w/good"), text("/w/d1/d2/l/fine")));
    expect(rig.target).toHaveLength(1);
  });

  test("how a file was opened to be written is on record: a digest of what passed is not one of the file", async () => {
    const rig = await ready();
    await rig.send(open(1, "/w/x", 2 | 4));
    expect(rig.statements()[0]).toMatchObject({ detail: { flags: ["write", "append"] } });
  });

  test("a path that is no UTF-8 is refused", async () => {
    const rig = await ready();
    const raw = Buffer.from("/r/\xff", "latin1");
    await rig.send(packet(3, 1, s32(raw.length), raw, s32(1), s32(0)));
    expect(rig.client.at(-1)?.[4]).toBe(101);
    expect([rig.target, rig.failures]).toEqual([[], []]);
  });

  test("a target that answers what nobody asked, sends more than was asked for, or a name that is a path, is not believed", async () => {
    const stray = await ready();
    await stray.answer(packet(101, 99, s32(0), text(""), text("")));
    expect(stray.failures).toHaveLength(1);

    const greedy = await ready();
    await greedy.send(open(1, "/r/x"));
    await greedy.answer(packet(102, 1, text("h")));
    await greedy.send(read(2, "h", 0, 4));
    await greedy.answer(packet(103, 2, text("12345")));
    expect(greedy.failures).toHaveLength(1);

    const names = await ready();
    await names.send(packet(11, 1, text("/r")));
    await names.answer(packet(102, 1, text("d")));
    await names.send(packet(12, 2, text("d")));
    await names.answer(packet(104, 2, s32(1), text("../../.bashrc"), text(""), s32(0)));
    expect(names.client.at(-1)?.[4]).toBe(101);
    expect(Buffer.concat(names.client).includes("bashrc")).toBe(false);
  });

  test("a flood of requests is not read further than the bound, and goes on once answers come", async () => {
    const rig = await ready();
    await rig.send(open(1, "/r/x"));
    await rig.answer(packet(102, 1, text("h")));
    rig.target.length = 0;
    await rig.send(Buffer.concat(Array.from({ length: 3_000 }, (_, i) => read(10 + i, "h", i))));
    expect(rig.target.length).toBe(1_024);
    expect(rig.fed.done).toBeLessThan(rig.fed.client);
    for (let i = 0; i < 3_000; i++) rig.proxy.fromTarget(packet(103, 10 + i, text("x")), 0);
    expect([rig.target.length, rig.failures]).toEqual([3_000, []]);
    expect(rig.fed.done).toBe(rig.fed.client);
  });

  test("a channel that ends in the middle ends its open files in the recording", async () => {
    const rig = await ready();
    await rig.send(open(1, "/r/x"), open(2, "/r/y"));
    await rig.answer(packet(102, 1, text("h")));
    rig.proxy.over();
    expect(rig.statements().map(({ text: what, error }) => [what, (error as { code: string }).code])).toEqual([
      ["read /r/x", "cut"],
      ["read /r/y", "cut"],
    ]);
  });

  test("however the streams are cut, the same packets come out", async () => {
    const stream = Buffer.concat([open(1, "/r/x"), packet(17, 2, text("/r/y")), open(3, "/secret")]);
    const whole = await ready();
    await whole.send(stream);
    for (const size of [1, 2, 3, 5, 7, 11]) {
      const rig = await ready();
      for (let at = 0; at < stream.length; at += size) await rig.send(stream.subarray(at, at + size));
      expect([Buffer.concat(rig.target), rig.client.at(-1), rig.fed.done]).toEqual([
        Buffer.concat(whole.target),
        whole.client.at(-1),
        rig.fed.client,
      ]);
    }
  });

  test("reads out of order are told with their ranges", async () => {
    const rig = await ready();
    await rig.send(open(1, "/r/x"));
    await rig.answer(packet(102, 1, text("h")));
    await rig.send(read(2, "h", 100, 3), read(3, "h", 0, 3));
    await rig.answer(packet(103, 2, text("abc")), packet(103, 3, text("xyz")));
    await rig.send(packet(4, 4, text("h")));
    await rig.answer(packet(101, 4, s32(0), text(""), text("")));
    expect(rig.statements()[0]).toMatchObject({
      bytes: 6,
      detail: {
        ranges: [
          [100, 103],
          [0, 3],
        ],
        order: "as passed",
        sha256: sha256(Buffer.from("abcxyz")),
      },
    });
  });
});
