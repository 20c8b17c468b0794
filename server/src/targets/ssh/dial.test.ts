import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { GlassError } from "../../core/errors.ts";
import { issueCertificate } from "./certificate.ts";
import { dial, type DialTarget } from "./dial.ts";
import { missingSshd, startSshd, type TestSshd } from "./fixtures/sshd.ts";
import { certifiedSigner, parseKeyLine, publicKeyLine, signerOf } from "./keys.ts";
import {
  encodeExitSignal,
  encodePty,
  encodeString,
  encodeWindowChange,
  parseExitSignal,
  parseNumber,
} from "./requests.ts";
import { run } from "./run.ts";
import type { Channel, Connection, Request, Signer } from "./types.ts";

const NONE = Buffer.alloc(0);
const MINUTE_MS = 60_000;
const authority = signerOf(generateKeyPairSync("ed25519").privateKey);
const hostAuthority = signerOf(generateKeyPairSync("ed25519").privateKey);

function pass(principal = "root", from: Signer = authority): Signer {
  const key = signerOf(generateKeyPairSync("ed25519").privateKey);
  const now = Date.now();
  const certificate = issueCertificate(
    {
      ...{ key: key.blob, type: "user", serial: 7n, keyId: "gk_test", principals: [principal] },
      ...{ validAfter: new Date(now - MINUTE_MS), validBefore: new Date(now + 10 * MINUTE_MS) },
      extensions: { "permit-pty": "" },
    },
    from,
  );
  return certifiedSigner(key, certificate);
}

const soon = (): AbortSignal => AbortSignal.timeout(50_000);
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A channel on which everything that is heard is kept. */
async function session(connection: Connection, isRead = true) {
  const heard = { out: ["", ""] as [string, string], bytes: 0, requests: [] as Request[], events: [] as string[] };
  const closed = Promise.withResolvers<void>();
  const holder: { channel?: Channel } = {};
  const channel = await connection.open("session", NONE, {
    onData(data, stream) {
      heard.out[stream === 0 ? 0 : 1] += data.toString();
      heard.bytes += data.length;
      if (isRead) holder.channel?.consumed(data.length);
    },
    onRequest(request) {
      heard.requests.push(request);
      return Promise.resolve(false);
    },
    onEof: () => void heard.events.push("eof"),
    onClose: () => closed.resolve(),
  });
  holder.channel = channel;
  const until = async (what: RegExp | (() => boolean)): Promise<void> => {
    await expect
      .poll(() => (typeof what === "function" ? what() : what.test(heard.out[0])), { timeout: 50_000, interval: 5 })
      .toBe(true);
  };
  return { channel, heard, closed: closed.promise, until };
}

const why = missingSshd();

describe.skipIf(why !== undefined)(`against a real sshd (skipped without openssh-server and root)`, () => {
  let sshd: TestSshd;
  let certified: TestSshd;
  let target: DialTarget;
  let connection: Connection;
  beforeAll(async () => {
    const trustedUserCas = [publicKeyLine(authority.blob)];
    const certifyHostKey = (file: string): string => {
      const key = keyIn(file);
      const now = Date.now();
      const fields = { keyId: "host", principals: ["127.0.0.1"], serial: 1n, validAfter: new Date(now - MINUTE_MS) };
      const validBefore = new Date(now + 60 * MINUTE_MS);
      return publicKeyLine(issueCertificate({ key, type: "host", ...fields, validBefore }, hostAuthority));
    };
    [sshd, certified] = await Promise.all([
      startSshd({
        trustedUserCas,
        config: [
          "Banner {dir}/sshd_config",
          "Match User daemon",
          "PasswordAuthentication yes",
          "AuthenticationMethods publickey,password",
        ],
      }),
      startSshd({ trustedUserCas, certifyHostKey }),
    ]);
    target = { host: "127.0.0.1", port: sshd.port, user: "root", hostKeys: { pin: [sshd.hostKeys.ed25519] } };
    ({ connection } = await dial(target, pass(), soon()));
  });
  afterAll(async () => {
    connection?.disconnect(11, "done");
    await Promise.all([sshd?.dispose(), certified?.dispose()]);
  });

  test("a command's output, complaint and status come back, as they were", async () => {
    const done = await run(connection, "echo out; echo complaint >&2; exit 3", { limitBytes: 1000, signal: soon() });
    expect({ ...done, stdout: String(done.stdout), stderr: String(done.stderr) }).toEqual({
      ...{ code: 3, signal: undefined, stdout: "out\n", stderr: "complaint\n" },
    });
  });

  test("what a signal ended is told with the signal's name", async () => {
    expect(await run(connection, "kill -KILL $$", { limitBytes: 1000, signal: soon() })).toMatchObject({
      code: undefined,
      signal: "KILL",
    });
    const { channel, heard, closed } = await session(connection);
    await channel.request("exec", true, encodeString("kill -TERM $$"));
    await closed;
    const [end] = heard.requests.filter(({ type }) => type === "exit-signal");
    expect(parseExitSignal(end?.data ?? NONE)).toMatchObject({ name: "TERM", coreDumped: false });
    expect(encodeExitSignal(parseExitSignal(end?.data ?? NONE))).toEqual(end?.data);
  });

  test("a half-closed stream ends what reads it, and its answer still comes, whole and through many windows", async () => {
    const stdin = Buffer.alloc(9_000_000, "0123456789");
    const done = await run(connection, "cat; echo end", { limitBytes: 1e8, signal: soon(), stdin });
    expect(done.stdout.length).toBe(stdin.length + 4);
    expect(done.stdout.subarray(0, stdin.length).equals(stdin)).toBe(true);
  });

  test("more output than the limit ends the command with an error", async () => {
    const endless = run(connection, "yes", { limitBytes: 100_000, signal: soon() });
    await expect(endless).rejects.toMatchObject({
      code: "target_unreachable",
      message: expect.stringContaining("100000 bytes"),
    });
    const stop = new AbortController();
    const stopped = run(connection, "sleep 1000", { limitBytes: 1000, signal: stop.signal });
    await settled();
    stop.abort(new Error("enough"));
    await expect(stopped).rejects.toThrow("enough");
  });

  test("a program in a terminal has its size, hears when it changes, and is interrupted by Ctrl-C", async () => {
    const { channel, heard, closed, until } = await session(connection);
    const pty = encodePty({
      term: "xterm",
      columns: 101,
      rows: 31,
      width: 0,
      height: 0,
      modes: [{ opcode: 53, value: 0 }],
    });
    expect(await channel.request("pty-req", true, pty)).toBe(true);
    const script =
      "stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done";
    expect(await channel.request("exec", true, encodeString(`exec sh -c ${JSON.stringify(script)}`))).toBe(true);
    await until(/31 101\s+ready/);
    await channel.request("window-change", false, encodeWindowChange({ columns: 77, rows: 22, width: 0, height: 0 }));
    await until(/ready\s+22 77/);
    channel.write(Buffer.from("\u0003"));
    await closed;
    expect(heard.out[0]).toContain("interrupted");
    expect(heard.out[0]).not.toContain("^C"); // the mode that says not to echo went along
    const [status] = heard.requests.filter(({ type }) => type === "exit-status");
    expect(parseNumber(status?.data ?? NONE)).toBe(5);
  });

  test("a shell ends with the status that it was told", async () => {
    const { channel, heard, closed } = await session(connection);
    expect(await channel.request("shell", true, NONE)).toBe(true);
    channel.write(Buffer.from("exit 4\n"));
    await closed;
    const [status] = heard.requests.filter(({ type }) => type === "exit-status");
    expect(parseNumber(status?.data ?? NONE)).toBe(4);
  });

  test("a hundred channels at once, and one that nobody reads beside them", async () => {
    const stuck = await session(connection, false);
    await stuck.channel.request("exec", true, encodeString("head -c 50000000 /dev/zero"));
    // sshd goes on until the window is full, and not a byte further.
    await stuck.until(() => stuck.heard.bytes === 2 * 1024 * 1024);
    const all = await Promise.all(
      Array.from({ length: 100 }, (_, n) =>
        run(connection, `cat; exit ${n}`, {
          limitBytes: 1e6,
          signal: AbortSignal.timeout(170_000),
          stdin: Buffer.alloc(20_000, n),
        }),
      ),
    );
    expect(all.map(({ code }) => code)).toEqual(all.map((_, n) => n));
    expect(all.every(({ stdout }, n) => stdout.equals(Buffer.alloc(20_000, n)))).toBe(true);
    expect(stuck.heard.bytes).toBe(2 * 1024 * 1024);
    stuck.channel.abort();
    await stuck.closed;
  }, 180_000); // two hundred processes on the host's side

  test("a keepalive is answered", async () => {
    expect(await connection.request("keepalive@openssh.com", true, NONE)).toMatchObject({ data: NONE });
  });

  test("an sshd that asks for a sign of life on a channel that it has closed loses nobody the connection", async () => {
    const own = await startSshd({
      trustedUserCas: [publicKeyLine(authority.blob)],
      config: ["ClientAliveInterval 1", "ClientAliveCountMax 100"],
    });
    try {
      const pin = [own.hostKeys.ed25519];
      const dialled = await dial({ ...target, port: own.port, hostKeys: { pin } }, pass(), soon());
      await settled(); // the connection has taken the transport over
      const packets: string[] = [];
      const { onPacket } = dialled.transport;
      dialled.transport.onPacket = (payload) => {
        packets.push(payload.toString("latin1"));
        onPacket(payload);
      };
      const closing = Promise.withResolvers<void>();
      const channel = await dialled.connection.open("session", NONE, {
        onData: () => {},
        onRequest: () => Promise.resolve(false),
        onEof: () => {},
        onClosing: () => closing.resolve(), // as an answer that is long on its way
        onClose: () => {},
      });
      await channel.request("exec", true, encodeString("true"));
      await closing.promise;
      packets.length = 0;
      await expect
        .poll(() => packets.some((packet) => packet[0] === "b" && packet.includes("keepalive@")), { timeout: 50_000 })
        .toBe(true);
      channel.close();
      expect(await run(dialled.connection, "exit 4", { limitBytes: 1000, signal: soon() })).toMatchObject({ code: 4 });
      dialled.connection.destroy();
    } finally {
      await own.dispose();
    }
  });

  test("sshd killed in the middle: whoever waits is told", async () => {
    const own = await startSshd({ trustedUserCas: [publicKeyLine(authority.blob)] });
    try {
      const pin = [own.hostKeys.ed25519];
      const ended = Promise.withResolvers<unknown>();
      const handlers = {
        onOpen: () => {},
        onRequest: () => Promise.resolve({ ok: false }),
        onClose: (error: unknown) => ended.resolve(error),
      };
      const dialled = await dial({ ...target, port: own.port, hostKeys: { pin } }, pass(), soon(), { handlers });
      const running = run(dialled.connection, "sleep 1000", { limitBytes: 1000, signal: soon() });
      const [, outcome] = await Promise.all([own.stop(), running.catch((error: unknown) => error)]);
      expect(outcome).toBeInstanceOf(Error);
      expect(await ended.promise).toBeInstanceOf(Error);
    } finally {
      await own.dispose();
    }
  });

  test("a host key other than the pinned one refuses, with both fingerprints; before anything else is said", async () => {
    const pinned = { pin: [publicKeyLine(authority.blob)] };
    const refused = dial({ ...target, hostKeys: pinned }, pass(), soon());
    await expect(refused).rejects.toMatchObject({ code: "target_untrusted" });
    await expect(refused).rejects.toThrow(/SHA256:\S+ .*SHA256:\S+/);
  });

  test("of several host keys the pinned one is asked for, of whatever type", async () => {
    for (const type of ["ecdsa", "rsa"] as const) {
      const dialled = await dial({ ...target, hostKeys: { pin: [sshd.hostKeys[type]] } }, pass(), soon());
      expect(dialled.hostKey).toMatchObject({
        algorithm: expect.stringContaining(type),
        fingerprint: expect.stringMatching(/^SHA256:/),
      });
      dialled.connection.destroy();
    }
  });

  test("a host certificate of the authority lets the host be believed; none, and another authority, do not", async () => {
    const hostKeys = { ca: [publicKeyLine(hostAuthority.blob)] };
    const dialled = await dial({ ...target, port: certified.port, hostKeys }, pass(), soon());
    expect(dialled.hostKey.algorithm).toBe("ssh-ed25519-cert-v01@openssh.com");
    dialled.connection.destroy();
    await expect(dial({ ...target, hostKeys }, pass(), soon())).rejects.toMatchObject({ code: "target_untrusted" });
    const other = { ca: [publicKeyLine(authority.blob)] };
    await expect(dial({ ...target, port: certified.port, hostKeys: other }, pass(), soon())).rejects.toMatchObject({
      code: "target_untrusted",
    });
    // The same host by a name that its certificate does not carry.
    await expect(
      dial({ ...target, host: "localhost", port: certified.port, hostKeys }, pass(), soon()),
    ).rejects.toMatchObject({
      code: "target_untrusted",
    });
  });

  test("a login that is refused says so, what the host said to it, and what to look at there", async () => {
    const stranger = signerOf(generateKeyPairSync("ed25519").privateKey);
    for (const signer of [pass("somebody-else"), pass("root", stranger)]) {
      const refused = dial(target, signer, soon());
      await expect(refused).rejects.toMatchObject({
        code: "target_unreachable",
        next: expect.stringContaining("TrustedUserCAKeys"),
      });
      await expect(refused).rejects.toThrow(/refused the certificate for root; it says: Port \d+/);
    }
    await expect(dial({ ...target, user: "daemon" }, pass("daemon"), soon())).rejects.toMatchObject({
      message: expect.stringContaining("wants another proof as well (password)"),
      next: expect.stringContaining("AuthenticationMethods"),
    });
  });
});

/** The key in a public key file. */
function keyIn(file: string): Buffer {
  return parseKeyLine(readFileSync(file, "utf8").trim()).blob;
}

describe("a host that is none", () => {
  const servers: Server[] = [];
  const sockets = new Set<Socket>();
  afterAll(() => {
    for (const socket of sockets) socket.destroy();
    for (const server of servers) server.close();
  });
  const target = { host: "127.0.0.1", user: "root", hostKeys: { pin: [publicKeyLine(authority.blob)] } };

  async function listen(serve: (socket: Socket) => void): Promise<number> {
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("error", () => {});
      serve(socket);
    }).listen(0, "127.0.0.1");
    servers.push(server);
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  }

  test("a port that nobody listens on, and a name that nobody has", async () => {
    const port = await listen(() => {});
    servers[0]?.close();
    await expect(dial({ ...target, port }, pass(), soon())).rejects.toMatchObject({
      ...{
        code: "target_unreachable",
        message: `127.0.0.1:${port} cannot be reached: nothing listens there: the connection was refused`,
      },
    });
  });

  test.each([
    ["another protocol", (socket: Socket) => void socket.end("HTTP/1.1 400 Bad Request\r\n\r\n")],
    ["one that hangs up", (socket: Socket) => void socket.destroy()],
    ["an old SSH", (socket: Socket) => void socket.end("SSH-1.5-OpenSSH_3.0\r\n")],
  ])("%s is unreachable, and the words name the place", async (_what, serve) => {
    const port = await listen(serve);
    const failed = dial({ ...target, port }, pass(), soon());
    await expect(failed).rejects.toMatchObject({ code: "target_unreachable" });
    await expect(failed).rejects.toThrow(`127.0.0.1:${port} cannot be reached: `);
  });

  test("one that says nothing is given up when the caller says so, with the caller's reason", async () => {
    const port = await listen(() => {});
    const stop = new AbortController();
    const failed = dial({ ...target, port }, pass(), stop.signal);
    stop.abort(new GlassError("grant_over", "the grant has ended"));
    await expect(failed).rejects.toMatchObject({ code: "grant_over" });
    await expect(dial({ ...target, port }, pass(), AbortSignal.abort(new Error("too late")))).rejects.toThrow(
      /too late/,
    );
    const timed = dial({ ...target, port }, pass(), AbortSignal.timeout(50));
    await expect(timed).rejects.toThrow(`127.0.0.1:${port} cannot be reached: the login took too long`);
  });
});
