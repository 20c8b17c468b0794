import { randomBytes } from "node:crypto";
import { once } from "node:events";
import type { Socket } from "node:net";
import fc from "fast-check";
import { afterEach, describe, expect, test, vi } from "vitest";
import { RawPeer, socketPair } from "./fixtures/raw-peer.ts";
import { ownOffer } from "./kex.ts";
import { signerFromSeed, signerOf, SIGNATURE_ALGORITHMS } from "./keys.ts";
import { createClientTransport, createServerTransport } from "./transport.ts";
import { DISCONNECT, SshError, type Transport, type TransportLimits } from "./types.ts";
import { MSG } from "./wire.ts";

const sockets: Socket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

const signer = signerFromSeed(randomBytes(32));
const anyKey = (): void => undefined;

async function pair(): Promise<readonly [server: Socket, client: Socket]> {
  const both = await socketPair();
  sockets.push(...both);
  return both;
}

/** Both ends of a connection, with streams between them that a test may cut as it likes. */
async function connected(
  limits: Partial<TransportLimits> = {},
  chop?: () => number,
): Promise<readonly [Transport, Transport]> {
  let [server, client] = await pair();
  if (chop !== undefined) {
    const [outer, inner] = [client, await pair()];
    forward(outer, inner[0], chop);
    forward(inner[0], outer, chop);
    client = inner[1];
  }
  return await Promise.all([
    createServerTransport({ socket: server, hostKeys: [signer], limits }),
    createClientTransport({ socket: client, verifyHostKey: anyKey, limits }),
  ]);
}

function forward(from: Socket, to: Socket, chop: () => number): void {
  to.setNoDelay(true);
  from.on("data", (bytes: Buffer) => {
    for (let at = 0; at < bytes.length;) {
      const end = at + chop();
      to.write(bytes.subarray(at, end));
      at = end;
    }
  });
  from.on("close", () => to.destroy());
  from.on("error", () => to.destroy());
}

function message(bytes: Uint8Array): Buffer {
  return Buffer.concat([Buffer.of(94), bytes]);
}

/** Sends all, as fast as the other side takes it; resolves to what came in. */
function transfer(from: Transport, to: Transport, payloads: readonly Uint8Array[]): Promise<readonly string[]> {
  const { promise, resolve, reject } = Promise.withResolvers<readonly string[]>();
  const got: string[] = [];
  to.onPacket = (payload) => {
    got.push(payload.toString("hex"));
    if (got.length === payloads.length) resolve(got);
  };
  for (const end of [from, to]) end.onClose = (error) => reject(error ?? new Error("closed"));
  let sent = 0;
  const go = (): void => {
    while (sent < payloads.length) {
      sent += 1;
      if (!from.send(payloads[sent - 1] ?? Buffer.alloc(0))) return;
    }
  };
  from.onDrain = go;
  go();
  return promise;
}

const closed = (transport: Transport): Promise<SshError | undefined> =>
  new Promise((resolve) => {
    transport.onClose = resolve;
  });

describe("a connection", () => {
  test("is agreed on by both sides: session, algorithms, signature algorithms", async () => {
    const [server, client] = await connected();
    expect(server.sessionId).toEqual(client.sessionId);
    expect(server.peerVersion).toBe("SSH-2.0-Glasskey");
    const cipher = { in: "aes128-gcm@openssh.com", out: "aes128-gcm@openssh.com" };
    expect(client.negotiated).toEqual({ kex: "mlkem768x25519-sha256", hostKey: "ssh-ed25519", strict: true, cipher });
    const got = transfer(server, client, [message(Buffer.from("hello"))]);
    await got;
    expect(client.peerSignatureAlgorithms).toEqual(SIGNATURE_ALGORITHMS);
  });

  test("keeps every packet in order, both ways, through key exchanges, however the streams are cut", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 40, maxLength: 80 }),
        async (cuts, sizes) => {
          let i = 0;
          const chop = (): number => cuts[(i += 1) % cuts.length] ?? 1;
          const [server, client] = await connected({ rekeyBytes: 5_000 }, chop);
          const up = sizes.map((size) => message(randomBytes(size)));
          const down = sizes.toReversed().map((size) => message(randomBytes(size)));
          const both = await Promise.all([transfer(client, server, up), transfer(server, client, down)]);
          expect(both).toEqual([up, down].map((all) => all.map((bytes) => bytes.toString("hex"))));
          client.destroy();
          server.destroy();
        },
      ),
      { numRuns: 12 },
    );
  });

  test("gets new keys after so many packets and after a time, without anybody noticing", async () => {
    const seen: string[] = [];
    const [serverSocket, clientSocket] = await pair();
    const limits = { rekeyPackets: 10 };
    const [server, client] = await Promise.all([
      createServerTransport({ socket: serverSocket, hostKeys: [signer], limits: { rekeyMs: 50 } }),
      createClientTransport({
        socket: clientSocket,
        verifyHostKey: ({ algorithm }) => void seen.push(algorithm),
        limits,
      }),
    ]);
    const id = client.sessionId;
    client.onPacket = () => undefined; // nothing is read where nobody listens
    const all = Array.from({ length: 100 }, (_, n) => message(Buffer.of(n)));
    expect(await transfer(client, server, all)).toEqual(all.map((bytes) => bytes.toString("hex")));
    await vi.waitFor(() => expect(seen.length).toBeGreaterThan(3), { timeout: 20_000 });
    expect(await transfer(server, client, all)).toHaveLength(100);
    expect(client.sessionId).toEqual(id);
  });

  test("lets both sides ask for new keys at the same moment, with data under way", async () => {
    const [server, client] = await connected({ rekeyPackets: 1 });
    const all = Array.from({ length: 30 }, (_, n) => message(Buffer.of(n)));
    const wanted = all.map((bytes) => bytes.toString("hex"));
    expect(await Promise.all([transfer(client, server, all), transfer(server, client, all)])).toEqual([wanted, wanted]);
  });

  test("works with every key exchange method, cipher, MAC and host key", async () => {
    const { generateKeyPairSync } = await import("node:crypto");
    const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
    const ec = generateKeyPairSync("ec", { namedCurve: "P-384" }).privateKey;
    const hostKeys = [signer, signerOf(ec), signerOf(rsa), signerOf(rsa, { algorithm: "rsa-sha2-256" })];
    const all = ownOffer("client", [], true);
    const offers = [
      ...all.kex.filter((name) => !name.includes("-c")).map((kex) => ({ ...all, kex: [kex, ...all.kex.slice(-2)] })),
      ...["aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"].flatMap((cipher) =>
        all.macs.toServer.map((mac) => ({
          ...{
            ...all,
            ciphers: { toServer: [cipher], toClient: [cipher] },
            macs: { toServer: [mac], toClient: [mac] },
          },
        })),
      ),
      all,
    ];
    expect(offers.length).toBeGreaterThan(10);
    for (const [i, offer] of offers.entries()) {
      const [serverSocket, clientSocket] = await pair();
      const raw = new RawPeer("client", clientSocket);
      const hostKey = hostKeys[i % hostKeys.length]?.algorithm ?? "";
      const handshake = createServerTransport({ socket: serverSocket, hostKeys });
      await raw.identify();
      await raw.exchange({ ...offer, hostKeys: [hostKey] }, { strict: true });
      const server = await handshake;
      expect(server.negotiated.kex).toBe(offer.kex[0]);
      expect(server.negotiated.hostKey).toBe(hostKey);
      server.onPacket = (payload) => void server.send(payload);
      raw.send(message(Buffer.from("echo")));
      expect((await raw.expect(94)).toString()).toBe("^echo");
      server.destroy();
    }
  });

  test("agrees on GCM with a client that has it, also where it likes counter mode better", async () => {
    const [serverSocket, clientSocket] = await pair();
    const raw = new RawPeer("client", clientSocket);
    const handshake = createServerTransport({ socket: serverSocket, hostKeys: [signer], limits: {} });
    await raw.identify();
    const names = ["aes128-ctr", "aes256-gcm@openssh.com"];
    const own = ownOffer("client", ["ssh-ed25519"], true);
    await raw.exchange({ ...own, ciphers: { toServer: names, toClient: names } }, { strict: true });
    const { cipher } = (await handshake).negotiated;
    // On a machine that is too busy for it, the server's offer may have gone out before the client's came.
    expect(["aes256-gcm@openssh.com", "aes128-ctr"]).toContain(cipher.in);
    expect(cipher.out).toBe(cipher.in);
  });
});

describe("back-pressure", () => {
  test("says when more waits than should, and when to go on; nothing is lost or grows without bound", async () => {
    const [server, client] = await connected();
    server.onPacket = () => undefined;
    server.pause();
    const big = message(randomBytes(32 * 1024));
    let sent = 0;
    while (client.send(big)) sent += 1;
    // The kernel's buffers took the first ones.
    expect(client.pendingBytes).toBeGreaterThan(256 * 1024);
    expect(client.pendingBytes).toBeLessThan(512 * 1024);
    let received = 0;
    const drained = new Promise<void>((resolve) => {
      client.onDrain = resolve;
    });
    server.onPacket = () => {
      received += 1;
    };
    await new Promise((resolve) => setImmediate(resolve));
    expect(received).toBe(0);
    server.resume();
    await drained;
    expect(client.pendingBytes).toBeLessThanOrEqual(128 * 1024);
    await vi.waitFor(() => expect(received).toBe(sent + 1), { timeout: 20_000 });
    expect(client.pendingBytes).toBe(0);
  });

  test("stops in the middle of what was read, and goes on from there", async () => {
    const [server, client] = await connected();
    const got: number[] = [];
    server.onPacket = (payload) => {
      got.push(payload[1] ?? 0);
      if (got.length === 3) server.pause();
    };
    for (let n = 0; n < 10; n += 1) client.send(message(Buffer.of(n)));
    await vi.waitFor(() => expect(got).toHaveLength(3), { timeout: 20_000 });
    await new Promise((resolve) => setImmediate(resolve));
    expect(got).toEqual([0, 1, 2]);
    server.resume();
    await vi.waitFor(() => expect(got).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), { timeout: 20_000 });
  });

  test("a peer that makes this side answer and never reads is cut", async () => {
    const [serverSocket, clientSocket] = await pair();
    const raw = new RawPeer("client", clientSocket);
    const handshake = createServerTransport({ socket: serverSocket, hostKeys: [signer] });
    await raw.identify();
    await raw.exchange(ownOffer("client", ["ssh-ed25519"], true), { strict: true });
    const server = await handshake;
    server.onPacket = () => void server.send(message(Buffer.alloc(30_000)));
    const end = closed(server);
    // It reads nothing from here on.
    for (let n = 0; n < 1500; n += 1) raw.send(message(Buffer.of(n & 255)));
    await expect(end).resolves.toMatchObject({ message: "the other side does not read what it is sent" });
  });

  test("thousands of small packets that wait take the room of their bytes, not a buffer each", async () => {
    const [server, client] = await connected();
    client.onPacket = () => undefined;
    client.pause();
    const big = message(randomBytes(32 * 1024));
    while (server.send(big));
    const before = process.memoryUsage().arrayBuffers;
    for (let n = 0; n < 2000; n += 1) {
      server.send(message(Buffer.of(n & 255)));
      await new Promise((resolve) => setImmediate(resolve)); // a turn of the event loop each, as keystrokes have
    }
    // A buffer of 128 KiB each would be 250 MiB.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * 1024 * 1024);
    let received = 0;
    client.onPacket = () => {
      received += 1;
    };
    client.resume();
    await vi.waitFor(() => expect(server.pendingBytes).toBe(0), { timeout: 20_000 });
    await vi.waitFor(() => expect(received).toBeGreaterThan(2000), { timeout: 20_000 });
  });

  test("packets that come before somebody listens wait for it", async () => {
    const [server, client] = await connected();
    client.send(message(Buffer.from("early")));
    await new Promise((resolve) => setTimeout(resolve, 20)); // the wrong order would show without it, sooner or later
    const got = new Promise<string>((resolve) => {
      server.onPacket = (payload) => resolve(payload.toString());
    });
    expect(await got).toBe("^early");
  });
});

describe("the end", () => {
  test("in good order is no error on either side, and everything sent before arrives", async () => {
    const [server, client] = await connected();
    const got: string[] = [];
    client.onPacket = (payload) => void got.push(payload.toString());
    const ends = Promise.all([closed(server), closed(client)]);
    for (let n = 0; n < 50; n += 1) server.send(message(Buffer.from(`line ${n}`)));
    server.disconnect(DISCONNECT.byApplication, "the grant is over");
    expect(await ends).toEqual([undefined, undefined]);
    expect(got.at(-1)).toBe("^line 49");
    expect(server.send(message(Buffer.of(1)))).toBe(true); // and does nothing
  });

  test("for another reason is told with the peer's words, without what a terminal would obey", async () => {
    const [serverSocket, clientSocket] = await pair();
    const raw = new RawPeer("client", clientSocket);
    const handshake = createServerTransport({ socket: serverSocket, hostKeys: [signer] });
    await raw.identify();
    await raw.exchange(ownOffer("client", ["ssh-ed25519"], true), { strict: true });
    const server = await handshake;
    server.onPacket = () => undefined;
    const end = closed(server);
    const text = "go\u001b[2J away";
    raw.send(
      Buffer.concat([Buffer.of(MSG.disconnect, 0, 0, 0, 7, 0, 0, 0, text.length), Buffer.from(text), Buffer.alloc(4)]),
    );
    await expect(end).resolves.toMatchObject({ reason: 7, message: "the other side disconnected: go [2J away" });
  });

  test("by a broken connection is an error", async () => {
    for (const leave of [(s: Socket) => void s.end(), (s: Socket) => void s.resetAndDestroy()]) {
      const [serverSocket, clientSocket] = await pair();
      const [server] = await Promise.all([
        createServerTransport({ socket: serverSocket, hostKeys: [signer] }),
        createClientTransport({ socket: clientSocket, verifyHostKey: anyKey }),
      ]);
      server.onPacket = () => undefined;
      const end = closed(server);
      leave(clientSocket);
      await expect(end).resolves.toMatchObject({ reason: DISCONNECT.connectionLost });
    }
  });

  test("is heard of by whoever asks only afterwards, and once", async () => {
    const [server, client] = await connected();
    client.disconnect(DISCONNECT.byApplication, "bye");
    server.onPacket = () => undefined;
    await vi.waitFor(() => expect(server.send(message(Buffer.of(1)))).toBe(true));
    const end = vi.fn<(error: SshError | undefined) => void>();
    await once(sockets[0] as Socket, "close");
    server.onClose = end;
    await vi.waitFor(() => expect(end).toHaveBeenCalledTimes(1));
    server.destroy();
    expect(end).toHaveBeenCalledTimes(1);
  });

  test("comes with what was wrong when a layer above finds a mistake of the peer, or makes one itself", async () => {
    for (const [thrown, told] of [
      [new SshError(DISCONNECT.protocolError, "no such channel"), "no such channel"],
      [new TypeError("x is not a function"), "internal error"],
    ] as const) {
      const [server, client] = await connected();
      server.onPacket = () => {
        throw thrown;
      };
      client.onPacket = () => undefined;
      const ends = Promise.all([closed(server), closed(client)]);
      client.send(message(Buffer.of(1)));
      const [own, other] = await ends;
      if (thrown instanceof SshError) expect(own).toBe(thrown);
      else expect(own?.cause).toBe(thrown);
      // The peer is told, and not more than it should know.
      if (thrown instanceof SshError) expect(other?.message).toBe(`the other side disconnected: ${told}`);
    }
  });

  test("leaves no timer and no socket open", async () => {
    const [server, client] = await connected();
    const ends = Promise.all(sockets.map((socket) => once(socket, "close")));
    server.onPacket = client.onPacket = () => undefined;
    server.disconnect(DISCONNECT.byApplication, "bye");
    await ends;
    expect(sockets.every((socket) => socket.destroyed)).toBe(true);
  });
});
