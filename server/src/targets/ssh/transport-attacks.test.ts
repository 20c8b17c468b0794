import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { MARKS } from "./algorithms.ts";
import { RawPeer, socketPair } from "./fixtures/raw-peer.ts";
import { decodeOffer, encodeInit, encodeOffer, encodeReply, method, ownOffer, type Offer } from "./kex.ts";
import { signerFromSeed } from "./keys.ts";
import { createClientTransport, createServerTransport } from "./transport.ts";
import { DISCONNECT, SshError, type Signer, type Transport, type TransportLimits } from "./types.ts";
import { mpint, MSG, Writer } from "./wire.ts";

const sockets: Socket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

const signer = signerFromSeed(Buffer.alloc(32, 7));
const IGNORE = new Writer().byte(MSG.ignore).string("x").done();
const data = (text: string): Buffer => Buffer.from(`^${text}`);
const strictOffer = ownOffer("client", ["ssh-ed25519"], true);
const oldOffer: Offer = { ...strictOffer, kex: strictOffer.kex.filter((name) => !name.startsWith("kex-strict")) };

async function pair(): Promise<readonly [server: Socket, client: Socket]> {
  const both = await socketPair();
  sockets.push(...both);
  return both;
}

/** A server of ours, and a client that does what the test says. */
async function server(limits: Partial<TransportLimits> = {}): Promise<{ handshake: Promise<Transport>; raw: RawPeer }> {
  const [serverSocket, clientSocket] = await pair();
  const handshake = createServerTransport({ socket: serverSocket, hostKeys: [signer], limits });
  handshake.catch(() => undefined);
  return { handshake, raw: new RawPeer("client", clientSocket) };
}

/** A client of ours, and a server that does what the test says. */
async function client(
  verifyHostKey: (key: { algorithm: string; blob: Buffer }) => void | Promise<void> = () => undefined,
): Promise<{ handshake: Promise<Transport>; raw: RawPeer }> {
  const [serverSocket, clientSocket] = await pair();
  const handshake = createClientTransport({ socket: clientSocket, verifyHostKey, limits: {} });
  handshake.catch(() => undefined);
  return { handshake, raw: new RawPeer("server", serverSocket) };
}

const refused = (reason: number, message?: string | RegExp): unknown =>
  expect.objectContaining({
    ...{ name: "SshError", reason },
    ...(message === undefined
      ? {}
      : { message: typeof message === "string" ? message : expect.stringMatching(message) }),
  });

const closed = (transport: Transport): Promise<SshError | undefined> =>
  new Promise((resolve) => {
    transport.onPacket = () => undefined;
    transport.onClose = resolve;
  });

describe("strict key exchange", () => {
  test.each(["share", "newKeys"] as const)(
    "a message put in before the client's %s ends the connection",
    async (at) => {
      for (const extra of [
        IGNORE,
        Buffer.of(MSG.debug, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        Buffer.of(MSG.unimplemented, 0, 0, 0, 0),
      ]) {
        const { handshake, raw } = await server();
        await raw.identify();
        const step = (before: string): void => void (before === at && raw.send(extra));
        await raw.exchange(strictOffer, { strict: true, step }).catch(() => undefined);
        await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError, /out of place \(strict/));
      }
    },
  );

  test("a message put in before the first offer ends the connection", async () => {
    const { handshake, raw } = await server();
    await raw.identify();
    const step = (before: string): void => void (before === "offer" && raw.send(IGNORE));
    await raw.exchange(strictOffer, { strict: true, step }).catch(() => undefined);
    await expect(handshake).rejects.toEqual(
      refused(DISCONNECT.protocolError, "a message before the first offer of keys"),
    );
  });

  test.each(["offer", "share", "newKeys"] as const)(
    "holds against a server too: a message put in before its %s",
    async (at) => {
      const { handshake, raw } = await client();
      await raw.identify();
      const step = (before: string): void => void (before === at && raw.send(IGNORE));
      await raw
        .exchange(ownOffer("server", ["ssh-ed25519"], true), { strict: true, step, signer })
        .catch(() => undefined);
      await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError));
    },
  );

  test("a man in the middle who takes the mark out is found by the signature", async () => {
    const { handshake, raw } = await client();
    await raw.identify();
    const theirs = await raw.expect(MSG.kexInit);
    const offer = decodeOffer(theirs);
    const seen = encodeOffer({ ...offer, kex: offer.kex.filter((name) => name !== MARKS.strict.client) });
    await raw.exchange(ownOffer("server", ["ssh-ed25519"], true), { signer, theirs: seen }).catch(() => undefined);
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.keyExchangeFailed, "the host key's signature is wrong"));
  });

  test.each(["aes128-gcm@openssh.com", "aes128-ctr"])(
    "Terrapin: with %s a packet that is taken out is never passed over",
    async (cipher) => {
      // The middle puts a message in before the keys so that the numbers fit, and takes the first packet after them out.
      for (const [offer, strict] of [
        [strictOffer, true],
        [oldOffer, false],
      ] as const) {
        const { handshake, raw } = await server();
        await raw.identify();
        const both = { toServer: [cipher], toClient: [cipher] };
        const step = (before: string): void => void (before === "newKeys" && !strict && raw.send(IGNORE));
        await raw.exchange({ ...offer, ciphers: both }, { strict, step });
        const transport = await handshake;
        const seen: string[] = [];
        const end = closed(transport);
        transport.onPacket = (payload) => void seen.push(payload.toString("latin1"));
        const { write } = raw.socket;
        raw.socket.write = () => true; // lost on the way
        raw.send(data("first"));
        raw.socket.write = write;
        for (let n = 0; n < 40; n += 1) raw.send(data(`then ${n}`));
        raw.socket.end();
        // GCM and strict numbering find it at once; counter mode without it gives noise, which is never the client's words.
        const error = await end;
        expect(seen.filter((text) => text.includes("then"))).toEqual([]);
        if (strict || cipher.includes("gcm")) expect(error).toEqual(refused(DISCONNECT.macError));
      }
    },
  );

  test("is asked of nobody who does not know it: counter mode with encrypt-then-MAC and GCM work without", async () => {
    for (const cipher of ["aes256-ctr", "aes256-gcm@openssh.com"]) {
      const { handshake, raw } = await server();
      await raw.identify();
      await raw.exchange({ ...oldOffer, ciphers: { toServer: [cipher], toClient: [cipher] } });
      const transport = await handshake;
      expect(transport.negotiated).toMatchObject({ strict: false, cipher: { in: cipher } });
      transport.onPacket = (payload) => void transport.send(payload);
      raw.send(IGNORE);
      raw.send(data("echo"));
      expect((await raw.expect(94)).toString()).toBe("^echo");
    }
  });
});

describe("the first key exchange", () => {
  test.each<[string, Buffer]>([
    ["a service request", new Writer().byte(MSG.serviceRequest).string("ssh-userauth").done()],
    ["a login", new Writer().byte(50).string("root").string("ssh-connection").string("none").done()],
    ["channel data", Buffer.of(94, 0, 0, 0, 0, 0, 0, 0, 0)],
    ["a change of keys", Buffer.of(MSG.newKeys)],
    ["a message without a number", Buffer.of(0)],
  ])("does not let %s through before it", async (_what, payload) => {
    for (const when of ["before", "after"] as const) {
      const { handshake, raw } = await server();
      await raw.identify();
      if (when === "after") raw.send(encodeOffer(oldOffer));
      raw.send(payload);
      await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError, /out of place/));
    }
  });

  test("ends when the keys change without a share", async () => {
    const { handshake, raw } = await server();
    await raw.identify();
    raw.send(encodeOffer(strictOffer));
    raw.send(Buffer.of(MSG.newKeys));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError));
  });

  const zeros = Buffer.alloc(32);
  const offCurve = Buffer.concat([Buffer.of(4), Buffer.alloc(64, 5)]);
  const kemKey = method("mlkem768x25519-sha256").start().share;
  test.each<[string, string, Buffer]>([
    ["zeros", "curve25519-sha256", zeros],
    ["a point of small order", "curve25519-sha256", Buffer.concat([Buffer.of(1), Buffer.alloc(31)])],
    ["31 bytes", "curve25519-sha256", zeros.subarray(1)],
    ["a point off the curve", "ecdh-sha2-nistp256", offCurve],
    ["a compressed point", "ecdh-sha2-nistp256", Buffer.concat([Buffer.of(2), Buffer.alloc(32, 5)])],
    ["the point at infinity", "ecdh-sha2-nistp384", Buffer.of(0)],
    ["an ML-KEM key of the wrong length", "mlkem768x25519-sha256", kemKey.subarray(1)],
    ["a damaged ML-KEM key", "mlkem768x25519-sha256", Buffer.concat([Buffer.alloc(1184, 255), kemKey.subarray(1184)])],
    ["zeros behind a good ML-KEM key", "mlkem768x25519-sha256", Buffer.concat([kemKey.subarray(0, 1184), zeros])],
  ])("takes no %s as a share of %s", async (_what, kex, share) => {
    const { handshake, raw } = await server();
    await raw.identify();
    raw.send(encodeOffer({ ...strictOffer, kex: [kex, ...strictOffer.kex] }));
    raw.send(encodeInit(share));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.keyExchangeFailed));
    expect(await raw.goodbye()).not.toBe("internal error");
  });

  test("throws a wrong guess away, of whatever method it is, and takes a right one", async () => {
    for (const guess of [Buffer.of(30, 1, 2, 3), Buffer.of(34, 0, 0, 8, 0)]) {
      const { handshake, raw } = await server();
      await raw.identify();
      const wrong: Offer = { ...strictOffer, kex: ["sntrup761x25519-sha512", ...strictOffer.kex], firstFollows: true };
      await raw.exchange(wrong, { strict: true, step: (before) => void (before === "share" && raw.send(guess)) });
      expect((await handshake).negotiated.kex).toBe("mlkem768x25519-sha256");
    }
    const { handshake, raw } = await server();
    await raw.identify();
    await raw.exchange({ ...strictOffer, firstFollows: true }, { strict: true });
    await handshake;
  });

  test("says which algorithms there are when none is common", async () => {
    const { handshake, raw } = await server();
    await raw.identify();
    raw.send(encodeOffer({ ...strictOffer, kex: ["diffie-hellman-group1-sha1"] }));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.keyExchangeFailed));
    expect(await raw.goodbye()).toMatch(
      /^no common key exchange method: this side takes mlkem768.*; the other offers diffie-hellman-group1-sha1$/,
    );
  });

  test.each<[string, (offer: Buffer) => Buffer]>([
    ["is cut short", (offer) => offer.subarray(0, 40)],
    ["has bytes behind it", (offer) => Buffer.concat([offer, Buffer.of(0)])],
    ["has a list of 4 GiB", (offer) => Buffer.concat([offer.subarray(0, 17), Buffer.of(255, 255, 255, 255)])],
  ])("refuses an offer that %s", async (_what, damage) => {
    const { handshake, raw } = await server();
    await raw.identify();
    raw.send(damage(encodeOffer(strictOffer)));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError));
  });

  test("refuses a second offer in the middle", async () => {
    const { handshake, raw } = await server();
    await raw.identify();
    raw.send(encodeOffer(strictOffer));
    raw.send(encodeOffer(strictOffer));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError));
  });
});

describe("a server's proof", () => {
  const serverOffer = ownOffer("server", ["ssh-ed25519"], true);
  const forged = (change: (signer: Signer) => Signer, asked: string[] = []) =>
    (async () => {
      const { handshake, raw } = await client(({ algorithm }) => void asked.push(algorithm));
      await raw.identify();
      await raw.exchange(serverOffer, { strict: true, signer: change(signer) }).catch(() => undefined);
      return { handshake, asked };
    })();

  test("with a signature by another key is refused before anybody is asked about the key", async () => {
    const other = signerFromSeed(randomBytes(32));
    const { handshake, asked } = await forged((own) => ({ ...own, sign: (bytes) => other.sign(bytes) }));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.keyExchangeFailed, "the host key's signature is wrong"));
    expect(asked).toEqual([]);
  });

  test("over something else is refused", async () => {
    const { handshake } = await forged((own) => ({ ...own, sign: () => own.sign(Buffer.from("else")) }));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.keyExchangeFailed));
  });

  test("with a key of another type than was agreed on is refused", async () => {
    const certificate = new Writer()
      .string("ssh-ed25519-cert-v01@openssh.com")
      .string("n")
      .string(signer.blob.subarray(-32));
    for (const blob of [certificate.done(), new Writer().string("ssh-dss").string("x").done(), Buffer.alloc(0)]) {
      const { handshake, asked } = await forged((own) => ({ ...own, blob }));
      await expect(handshake).rejects.toBeInstanceOf(SshError);
      expect(asked).toEqual([]);
    }
  });

  test("with a key that is not the right one is refused with the verifier's own words, and nothing is sent to it", async () => {
    class HostKeyChanged extends Error {}
    const { handshake, raw } = await client(async () => {
      throw new HostKeyChanged("the host key of web-1 changed");
    });
    await raw.identify();
    raw.exchange(serverOffer, { strict: true, signer }).catch(() => undefined);
    await expect(handshake).rejects.toBeInstanceOf(HostKeyChanged);
  });

  test("is asked for again with new keys: a server that becomes another one is left", async () => {
    const seen: string[] = [];
    const { handshake, raw } = await client(({ blob }) => {
      seen.push(blob.toString("hex"));
      if (seen[0] !== seen.at(-1)) throw new Error("another host");
    });
    await raw.identify();
    await raw.exchange(serverOffer, { strict: true, signer });
    const transport = await handshake;
    const end = closed(transport);
    const thief = signerFromSeed(randomBytes(32));
    await raw
      .exchange(ownOffer("server", ["ssh-ed25519"], false), { strict: true, signer: thief })
      .catch(() => undefined);
    expect((await end)?.message).toBe("another host");
  });

  test("does not make what comes behind it count before it is accepted", async () => {
    const gate = Promise.withResolvers<void>();
    const { handshake, raw } = await client(() => gate.promise);
    await raw.identify();
    const exchanged = raw.exchange(serverOffer, { strict: true, signer });
    let done = false;
    handshake.then(() => (done = true)).catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, 30)); // it must not be done, however long one waits
    expect(done).toBe(false);
    gate.resolve();
    await exchanged;
    await handshake;
  });
});

describe("after the first key exchange", () => {
  async function opened(limits: Partial<TransportLimits> = {}): Promise<{ transport: Transport; raw: RawPeer }> {
    const { handshake, raw } = await server(limits);
    await raw.identify();
    await raw.exchange(strictOffer, { strict: true });
    return { transport: await handshake, raw };
  }

  test("nothing but the exchange is taken between the peer's offer of new keys and their use", async () => {
    const { transport, raw } = await opened();
    const end = closed(transport);
    raw.send(encodeOffer(ownOffer("client", ["ssh-ed25519"], false)));
    raw.send(data("smuggled"));
    expect(await end).toEqual(refused(DISCONNECT.protocolError, "message 94 is out of place"));
  });

  test("a change of keys out of nothing ends the connection", async () => {
    const { transport, raw } = await opened();
    const end = closed(transport);
    raw.send(Buffer.of(MSG.newKeys));
    expect(await end).toEqual(refused(DISCONNECT.protocolError));
  });

  test("new keys again and again with nothing in between end the connection; with work in between they do not", async () => {
    const { transport, raw } = await opened();
    transport.onPacket = () => undefined;
    const again = async (): Promise<void> => raw.exchange(ownOffer("client", ["ssh-ed25519"], false), { strict: true });
    for (let n = 0; n < 25; n += 1) {
      raw.send(data("x".repeat(5000)));
      await again();
    }
    const end = new Promise((resolve) => {
      transport.onClose = resolve;
    });
    const flood = (async () => {
      for (let n = 0; n < 500; n += 1) await again();
    })();
    await expect(flood).rejects.toThrow("keys were exchanged again and again");
    expect(await end).toEqual(refused(DISCONNECT.protocolError));
  });

  test("a peer that never finishes an exchange of new keys is left in the end", async () => {
    const { transport, raw } = await opened({ rekeyWithinMs: 300 });
    const end = closed(transport);
    raw.send(encodeOffer(ownOffer("client", ["ssh-ed25519"], false)));
    expect(await end).toEqual(refused(DISCONNECT.connectionLost, /no end of the key exchange/));
  });

  test("messages that nobody knows are answered with their number; extensions again and again end the connection", async () => {
    const { transport, raw } = await opened();
    transport.onPacket = () => undefined;
    raw.send(Buffer.of(15, 1, 2, 3)); // number 0 after the new keys
    raw.send(Buffer.of(45));
    expect(await raw.expect(MSG.unimplemented)).toEqual(Buffer.of(MSG.unimplemented, 0, 0, 0, 0));
    expect(await raw.expect(MSG.unimplemented)).toEqual(Buffer.of(MSG.unimplemented, 0, 0, 0, 1));
    const end = closed(transport);
    for (let n = 0; n < 6; n += 1) raw.send(new Writer().byte(MSG.extInfo).uint32(0).done());
    expect(await end).toEqual(refused(DISCONNECT.protocolError));
  });

  test("an announcement of a thousand extensions is refused", async () => {
    const { transport, raw } = await opened();
    const end = closed(transport);
    raw.send(new Writer().byte(MSG.extInfo).uint32(1000).done());
    expect(await end).toEqual(refused(DISCONNECT.protocolError));
  });
});

describe("strangers", () => {
  test.each<[string, string | Buffer, RegExp]>([
    ["HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", /does not speak SSH; it began with "GET \/ HTTP\/1\.1"/],
    ["TLS", Buffer.from("16030100c8010000c4", "hex"), /does not speak SSH/],
    ["a line without an end", `SSH-2.0-${"x".repeat(300)}`, /more than 255 bytes/],
    ["SSH 1", "SSH-1.5-old\r\n", /"SSH-1\.5-old"; SSH 2\.0 is wanted/],
    ["a server's half-old version", "SSH-1.99-x\r\n", /SSH 2\.0 is wanted/],
    ["control characters", "SSH-2.0-a\u0000b\r\n", /do not belong/],
    ["noise", randomBytes(4000), /SSH|255/],
  ])("that speak %s are sent away at once", async (_what, bytes, message) => {
    const { handshake, raw } = await server();
    raw.socket.write(bytes);
    await expect(handshake).rejects.toMatchObject({ name: "SshError", message: expect.stringMatching(message) });
  });

  test("that send noise after their name are sent away", async () => {
    const { handshake, raw } = await server();
    await raw.identify();
    raw.socket.write(Buffer.alloc(64, 0xee));
    await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError));
  });

  test("that say nothing, or a byte now and then, are left after the handshake's time", async () => {
    const silent = await server({ handshakeMs: 300 });
    await expect(silent.handshake).rejects.toEqual(
      refused(DISCONNECT.connectionLost, "no identification within 300 ms"),
    );
    const slow = await server({ handshakeMs: 500 });
    await slow.raw.identify();
    const drip = setInterval(() => slow.raw.socket.write(Buffer.of(0)), 20);
    await expect(slow.handshake).rejects.toBeInstanceOf(SshError);
    clearInterval(drip);
  });

  test("that go before it is over are an error, not a hang", async () => {
    for (const leave of [(s: Socket) => void s.end(), (s: Socket) => void s.destroy()]) {
      const { handshake, raw } = await server();
      await raw.identify();
      leave(raw.socket);
      await expect(handshake).rejects.toEqual(refused(DISCONNECT.connectionLost));
    }
  });

  test("a server may say lines before its name, and the refusal in them is told", async () => {
    const good = await client();
    good.raw.socket.write("Welcome\r\nto this host\r\n");
    await good.raw.identify("SSH-1.99-Raw");
    await good.raw.exchange(ownOffer("server", ["ssh-ed25519"], true), { strict: true, signer });
    expect((await good.handshake).peerVersion).toBe("SSH-1.99-Raw");

    const bad = await client();
    bad.raw.socket.end("Exceeded MaxStartups\r\n");
    await expect(bad.handshake).rejects.toEqual(
      refused(DISCONNECT.connectionLost, "the other side closed the connection; it said: Exceeded MaxStartups"),
    );
    const endless = await client();
    endless.raw.socket.write("line\r\n".repeat(5000));
    await expect(endless.handshake).rejects.toEqual(refused(DISCONNECT.protocolError, /without an identification/));
  });
});

test("any messages in any order, before and after the first keys, end in an error of the peer's or in nothing", async () => {
  const some = [
    encodeOffer(strictOffer),
    encodeOffer({ ...oldOffer, firstFollows: true }),
    encodeInit(method("mlkem768x25519-sha256").start().share),
    encodeInit(method("curve25519-sha256").start().share),
    encodeReply(signer.blob, Buffer.alloc(32, 9), Buffer.alloc(83)),
    ...[Buffer.of(MSG.newKeys), IGNORE, new Writer().byte(MSG.serviceRequest).string("ssh-userauth").done()],
  ];
  const payload = fc.oneof(
    fc.constantFrom(...some),
    fc
      .tuple(fc.integer({ min: 0, max: 101 }), fc.uint8Array({ maxLength: 40 }))
      .map(([type, rest]) => Buffer.of(type, ...rest)),
  );
  const property = fc.asyncProperty(
    fc.boolean(),
    fc.array(payload, { minLength: 1, maxLength: 8 }),
    async (keyed, payloads) => {
      const { handshake, raw } = await server();
      await raw.identify();
      if (keyed) await raw.exchange(strictOffer, { strict: true });
      const end = handshake.then(closed, (error: unknown) => error);
      for (const one of payloads) raw.send(one);
      raw.socket.end();
      const error = await end;
      if (error !== undefined) expect(error).toBeInstanceOf(SshError);
      expect(String(error)).not.toMatch(/internal error|undefined|is not a function|was negotiated/);
      expect((error as SshError | undefined)?.cause ?? new SshError(2, "")).not.toBeInstanceOf(TypeError);
    },
  );
  await fc.assert(property, { numRuns: 150 });
});

test("a secret of the exchange that begins with zeros or a high bit is hashed as RFC 4253 says", () => {
  expect(mpint(Buffer.of(0, 0, 1))).toEqual(Buffer.of(0, 0, 0, 1, 1));
  expect(mpint(Buffer.of(0, 200))).toEqual(Buffer.of(0, 0, 0, 2, 0, 200));
});

test("a reply that is not asked for does not make a client of a server", async () => {
  const { handshake, raw } = await server();
  await raw.identify();
  raw.send(encodeOffer(strictOffer));
  raw.send(encodeReply(signer.blob, Buffer.alloc(32), Buffer.alloc(64)));
  await expect(handshake).rejects.toEqual(refused(DISCONNECT.protocolError));
});
