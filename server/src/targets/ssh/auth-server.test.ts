import { generateKeyPairSync } from "node:crypto";
import { describe, expect, test, vi } from "vitest";
import { GlassError } from "../../core/errors.ts";
import { Secret } from "../../core/secret.ts";
import type { Gate } from "../target.ts";
import { authenticateClient, gatePolicy, signedData, type AuthPolicy, type Proof } from "./auth-server.ts";
import { createConnection } from "./connection.ts";
import { checkUserCertificate, clientCertificate } from "./entry.ts";
import { transportPair, type PairEnd } from "./fixtures/transport-pair.ts";
import { certifiedSigner, parseKeyLine, publicKeyLine, signerOf } from "./keys.ts";
import { DISCONNECT, type Signer } from "./types.ts";
import { MSG, Reader, Writer } from "./wire.ts";

const GRANT = "gr_7kq2m9x4tbzc";
const MINUTE_MS = 60_000;
const METHODS = ["publickey", "keyboard-interactive", "password"];

const secrets = new Map([[GRANT, new Secret("the-connect-secret")]]);
/** Answers for every name, as the real one: with a decoy for those that are no grant. */
function gate(failed: (user: string) => void = () => {}): Gate {
  return {
    challenge: (user) => Promise.resolve({ connectSecret: secrets.get(user) ?? new Secret(`decoy for ${user}`) }),
    failed: (user) => failed(user),
    open: () => Promise.reject(new Error("not in these tests")),
  };
}

interface Talk {
  readonly client: PairEnd;
  readonly server: PairEnd;
  readonly outcome: Promise<Proof | Error>;
  readonly failed: string[];
  say(payload: Buffer): void;
  /** What the server has answered since it was asked last, once it has nothing more to say. */
  hear(): Promise<Buffer[]>;
}

/** A client that says what a test wants, byte for byte, to a server with the gateway's own policy. */
function talk(change: Partial<AuthPolicy> = {}, loginMs?: number): Talk {
  const pair = transportPair();
  const failed: string[] = [];
  const policy = gatePolicy(
    gate((user) => void failed.push(user)),
    "192.0.2.1",
    checkUserCertificate,
    () => Promise.resolve(),
  );
  const outcome = authenticateClient(
    pair.server,
    { ...policy, ...change },
    loginMs === undefined ? {} : { loginMs },
  ).catch((error: unknown) => error as Error);
  let heard = 0;
  return {
    ...{ client: pair.client, server: pair.server, outcome, failed },
    say: (payload) => void pair.client.send(payload),
    async hear() {
      for (let quiet = 0; quiet < 5; quiet += 1) await new Promise(setImmediate);
      const said = pair.server.sent.slice(heard);
      heard = pair.server.sent.length;
      return said;
    },
  };
}

const service = new Writer().byte(MSG.serviceRequest).string("ssh-userauth").done();
function request(method: string, rest: Buffer = Buffer.alloc(0), user = GRANT, of = "ssh-connection"): Buffer {
  return new Writer().byte(50).string(user).string(of).string(method).raw(rest).done();
}
const none = (user?: string): Buffer => request("none", Buffer.alloc(0), user);
const password = (secret: string, user?: string): Buffer =>
  request("password", new Writer().boolean(false).string(secret).done(), user);
const interactive = (user?: string): Buffer =>
  request("keyboard-interactive", new Writer().string("").string("").done(), user);
const answers = (...all: string[]): Buffer => {
  const writer = new Writer().byte(61).uint32(all.length);
  for (const one of all) writer.string(one);
  return writer.done();
};
const offer = (algorithm: string, blob: Uint8Array, user?: string): Buffer =>
  request("publickey", new Writer().boolean(false).string(algorithm).string(blob).done(), user);
function signed(
  sessionId: Buffer,
  signer: Signer,
  user = GRANT,
  as: { algorithm?: string; blob?: Uint8Array; user?: string } = {},
): Buffer {
  const [algorithm, blob] = [as.algorithm ?? signer.algorithm, as.blob ?? signer.blob];
  const signature = signer.sign(signedData(sessionId, as.user ?? user, algorithm, Buffer.from(blob)));
  return request("publickey", new Writer().boolean(true).string(algorithm).string(blob).string(signature).done(), user);
}

function certificateFor(
  grant = GRANT,
  secret = secrets.get(grant) ?? new Secret("x"),
  endsInMs = 10 * MINUTE_MS,
  type: "ed25519" | "rsa" = "ed25519",
): Signer {
  const { privateKey } =
    type === "rsa" ? generateKeyPairSync("rsa", { modulusLength: 2048 }) : generateKeyPairSync("ed25519");
  const key = signerOf(privateKey);
  const now = new Date(endsInMs > 0 ? Date.now() : Date.now() - 2 * MINUTE_MS);
  const endsAt = new Date(Date.now() + endsInMs);
  const { certificate } = clientCertificate({
    connectSecret: secret,
    grant,
    publicKey: publicKeyLine(key.blob),
    now,
    endsAt,
  });
  return certifiedSigner(key, parseKeyLine(certificate).blob);
}

const isFailure = (payload: Buffer | undefined): boolean => payload?.[0] === 51;
const disconnectOf = ({ server }: Talk): number | undefined => server.disconnected?.reason;

describe("who proves what they must is let in", () => {
  test("by the grant's secret as a password, once the client has heard which ways there are", async () => {
    const { say, hear, outcome, failed } = talk();
    say(service);
    say(none());
    const [accepted, failure] = await hear();
    expect(new Reader(accepted ?? Buffer.alloc(0), 1).name()).toBe("ssh-userauth");
    const reader = new Reader(failure ?? Buffer.alloc(0), 1);
    expect([reader.nameList(), reader.boolean()]).toEqual([METHODS, false]);
    say(password("the-connect-secret"));
    expect(await hear()).toEqual([Buffer.of(52)]);
    expect(await outcome).toEqual({ user: GRANT, method: "password" });
    expect(failed).toEqual([]);
  });

  test("by the same secret as an answer, pasted with an end of line", async () => {
    const { say, hear, outcome } = talk();
    say(service);
    say(interactive());
    const [, prompt] = await hear();
    expect(prompt?.[0]).toBe(60);
    expect(prompt?.includes("Glasskey secret: ")).toBe(true);
    say(answers(" the-connect-secret\r\n"));
    expect(await outcome).toEqual({ user: GRANT, method: "keyboard-interactive" });
  });

  test.each(["ed25519", "rsa"] as const)(
    "by a certificate of the grant, offered first and then signed with: %s",
    async (type) => {
      const { say, hear, outcome, server } = talk();
      const signer = certificateFor(GRANT, undefined, undefined, type);
      say(service);
      say(offer(signer.algorithm, signer.blob));
      const [, ok] = await hear();
      expect(ok).toEqual(new Writer().byte(60).string(signer.algorithm).string(signer.blob).done());
      say(signed(server.sessionId, signer));
      expect(await outcome).toMatchObject({ user: GRANT, method: "publickey", key: { algorithm: signer.algorithm } });
    },
  );

  test("and what comes after the success in the same breath is the connection's; login requests among it are passed over", async () => {
    const { say, hear, outcome, server } = talk();
    for (const payload of [service, password("the-connect-secret"), none("root")]) say(payload);
    say(new Writer().byte(80).string("keepalive@openssh.com").boolean(true).done());
    await outcome;
    createConnection(server, {
      onOpen: () => {},
      onRequest: () => Promise.resolve({ ok: true }),
      onClose: () => {},
    });
    const said = await hear();
    expect(said.slice(1).every(([type]) => type === 52 || type === 82)).toBe(true);
    expect(server.disconnected).toBeUndefined();
  });

  test("the last word may be a no, which is told with what to do, in place of the success", async () => {
    const no = new GlassError("grant_over", "grant gr_x ended at 12:00.", { next: "Break the glass again." });
    const over = talk({ admit: () => Promise.reject(no) });
    over.say(service);
    over.say(password("the-connect-secret"));
    expect(await over.outcome).toBe(no);
    expect(over.server.disconnected).toEqual({
      reason: DISCONNECT.byApplication,
      text: "grant gr_x ended at 12:00. Break the glass again.",
    });
    expect((await over.hear()).some(([type]) => type === 52)).toBe(false);
    const defect = talk({ admit: () => Promise.reject(new Error("secret inside")) });
    defect.say(service);
    defect.say(password("the-connect-secret"));
    await defect.outcome;
    expect(defect.server.disconnected?.text).toBe("internal error");
  });

  test("unless they left meanwhile", async () => {
    const admitted = Promise.withResolvers<void>();
    const gone = talk({ admit: () => admitted.promise });
    gone.say(service);
    gone.say(password("the-connect-secret"));
    await gone.hear();
    gone.client.destroy();
    await gone.hear();
    admitted.resolve();
    expect(await gone.outcome).toBeInstanceOf(Error);
    expect((await gone.hear()).some(([type]) => type === 52)).toBe(false);
  });
});

describe("nobody else is", () => {
  const stranger = signerOf(generateKeyPairSync("ed25519").privateKey);

  test("a wrong secret is counted, an empty one is not; both end after six", async () => {
    const wrong = talk();
    wrong.say(service);
    for (let n = 0; n < 5; n += 1) wrong.say(password(`guess ${n}`));
    expect((await wrong.hear()).filter(isFailure)).toHaveLength(5);
    expect(disconnectOf(wrong)).toBeUndefined();
    wrong.say(password("guess 6"));
    await wrong.outcome;
    expect(disconnectOf(wrong)).toBe(DISCONNECT.noMoreAuthMethods);
    expect(wrong.failed).toEqual(Array.from({ length: 6 }, () => GRANT));

    const empty = talk();
    empty.say(service);
    for (let n = 0; n < 6; n += 1) empty.say(password(""));
    await empty.outcome;
    expect(disconnectOf(empty)).toBe(DISCONNECT.noMoreAuthMethods);
    expect(empty.failed).toEqual([]);
  });

  test("nobody gets further by repeating `none`, or by methods that there are not", async () => {
    for (const payload of [
      none(),
      request("hostbased", Buffer.alloc(40)),
      request("gssapi-with-mic", Buffer.alloc(40)),
    ]) {
      const attack = talk();
      attack.say(service);
      attack.say(none());
      for (let n = 0; n < 6; n += 1) attack.say(payload);
      await attack.outcome;
      expect(disconnectOf(attack)).toBe(DISCONNECT.noMoreAuthMethods);
    }
  });

  test("keys that are only offered are no failures, but bounded", async () => {
    const attack = talk();
    attack.say(service);
    for (let n = 0; n < 32; n += 1) attack.say(offer("ssh-ed25519", stranger.blob));
    expect((await attack.hear()).filter(isFailure)).toHaveLength(32);
    expect([disconnectOf(attack), attack.failed]).toEqual([undefined, []]);
    attack.say(offer("ssh-ed25519", stranger.blob));
    await attack.outcome;
    expect(disconnectOf(attack)).toBe(DISCONNECT.noMoreAuthMethods);

    const taken = talk();
    const { algorithm, blob } = certificateFor();
    taken.say(service);
    for (let n = 0; n < 33; n += 1) {
      taken.say(offer(algorithm, blob));
      await taken.hear();
    }
    await taken.outcome;
    expect(disconnectOf(taken)).toBe(DISCONNECT.noMoreAuthMethods);
  });

  test.each<[string, (sessionId: Buffer) => Buffer]>([
    ["a plain key", (id) => signed(id, stranger)],
    ["a certificate of another grant", (id) => signed(id, certificateFor("gr_aaaaaaaaaaaa"))],
    [
      "a certificate of an authority of the attacker's",
      (id) => signed(id, certificateFor(GRANT, new Secret("guessed"))),
    ],
    ["a certificate that has ended", (id) => signed(id, certificateFor(GRANT, undefined, -1000))],
    ["a signature of another connection", () => signed(Buffer.alloc(32, 8), certificateFor())],
    ["a signature for another user", (id) => signed(id, certificateFor(), GRANT, { user: "root" })],
    [
      "somebody's certificate, signed with another key",
      (id) => signed(id, { ...certificateFor(), sign: (data) => stranger.sign(data) }),
    ],
    [
      "an algorithm that does not fit the blob",
      (id) => signed(id, certificateFor(), GRANT, { algorithm: "ssh-ed25519" }),
    ],
    [
      "a certificate's algorithm for a plain key",
      (id) => signed(id, stranger, GRANT, { algorithm: "ssh-ed25519-cert-v01@openssh.com" }),
    ],
    [
      "RSA with SHA-1",
      (id) =>
        signed(id, certificateFor(GRANT, undefined, undefined, "rsa"), GRANT, {
          algorithm: "ssh-rsa-cert-v01@openssh.com",
        }),
    ],
    [
      "an algorithm of another key type",
      (id) => signed(id, certificateFor(), GRANT, { algorithm: "ecdsa-sha2-nistp256-cert-v01@openssh.com" }),
    ],
    ["a blob that is none", (id) => signed(id, stranger, GRANT, { blob: Buffer.from("nonsense") })],
    ["an empty blob", (id) => signed(id, stranger, GRANT, { blob: Buffer.alloc(0) })],
    [
      "a password that is to be changed",
      () => request("password", new Writer().boolean(true).string("the-connect-secret").string("new").done()),
    ],
  ])("not by %s", async (_what, payload) => {
    const attack = talk();
    attack.say(service);
    attack.say(payload(attack.server.sessionId));
    const said = await attack.hear();
    expect(said.filter(isFailure)).toHaveLength(1);
    expect(said.some(([type]) => type === 52 || type === 60)).toBe(false);
  });

  test("a dialogue that is begun again and again without an answer ends as well", async () => {
    const attack = talk();
    attack.say(service);
    for (let n = 0; n < 33; n += 1) {
      attack.say(interactive());
      await attack.hear();
    }
    await attack.outcome;
    expect(disconnectOf(attack)).toBe(DISCONNECT.noMoreAuthMethods);
  });

  test("a wrong signature counts as a guess, where an offer did not", async () => {
    const { say, hear, failed, server } = talk();
    say(service);
    say(offer("ssh-ed25519", stranger.blob));
    await hear();
    expect(failed).toEqual([]);
    say(signed(server.sessionId, stranger));
    await hear();
    expect(failed).toEqual([GRANT]);
  });

  test("advice is given once, to whoever's certificate or secret is not taken, and not for a key of their own", async () => {
    const { say, hear } = talk({ advice: "first\u001b[31m line\nsecond" });
    const banner = new Writer().byte(53).string("first [31m line\r\nsecond\r\n").string("").done();
    say(service);
    say(none());
    say(offer("ssh-ed25519", stranger.blob));
    expect((await hear()).filter(([type]) => type === 53)).toEqual([]);
    const expired = certificateFor(GRANT, undefined, -1000);
    say(offer(expired.algorithm, expired.blob));
    say(password("x"));
    expect((await hear()).filter(([type]) => type === 53)).toEqual([banner]);
  });

  test("the dialogue is over when another request comes, and an answer to no question is not understood", async () => {
    const attack = talk();
    attack.say(service);
    attack.say(answers("the-connect-secret"));
    attack.say(interactive());
    attack.say(none());
    attack.say(answers("the-connect-secret"));
    const said = await attack.hear();
    expect(said.some(([type]) => type === 52)).toBe(false);
    expect(attack.server.unimplementedCount).toBe(2);
    expect(attack.failed).toEqual([]);
  });
});

describe("a client that does not keep to RFC 4252 is cut", () => {
  test.each<[string, number, readonly Buffer[]]>([
    ["a login before the service was asked for", DISCONNECT.protocolError, [password("the-connect-secret")]],
    ["a channel before the login", DISCONNECT.protocolError, [new Writer().byte(90).string("session").done()]],
    [
      "the connection service without a login",
      DISCONNECT.serviceNotAvailable,
      [new Writer().byte(5).string("ssh-connection").done()],
    ],
    ["a service that there is not", DISCONNECT.serviceNotAvailable, [new Writer().byte(5).string("shell").done()]],
    ["a second service request", DISCONNECT.protocolError, [service, service]],
    [
      "a login for another service",
      DISCONNECT.serviceNotAvailable,
      [service, request("none", Buffer.alloc(0), GRANT, "ssh-userauth")],
    ],
    [
      "another service after a failure",
      DISCONNECT.serviceNotAvailable,
      [service, none(), request("password", Buffer.alloc(0), GRANT, "x")],
    ],
    ["another user after `none`", DISCONNECT.protocolError, [service, none(), password("decoy for root", "root")]],
    [
      "another user between question and answer",
      DISCONNECT.protocolError,
      [service, interactive(), interactive("root")],
    ],
    [
      "two answers to one question",
      DISCONNECT.protocolError,
      [service, interactive(), answers("the-connect-secret", "")],
    ],
    ["no answer to one question", DISCONNECT.protocolError, [service, interactive(), answers()]],
    ["a user name as long as a book", DISCONNECT.protocolError, [service, none("x".repeat(257))]],
    ["a user name that is no text", DISCONNECT.protocolError, [service, Buffer.from([50, 0, 0, 0, 1, 0xff])]],
    ["a secret as long as a book", DISCONNECT.protocolError, [service, password("x".repeat(2000))]],
    ["a request that ends in its middle", DISCONNECT.protocolError, [service, password("x").subarray(0, -1)]],
    ["bytes after a request", DISCONNECT.protocolError, [service, Buffer.concat([password("x"), Buffer.of(0)])]],
  ])("%s", async (_what, reason, payloads) => {
    const attack = talk();
    for (const payload of payloads) {
      attack.say(payload);
      await attack.hear();
    }
    expect(disconnectOf(attack)).toBe(reason);
    expect(await attack.outcome).toMatchObject({ reason });
    expect(attack.server.sent.some(([type]) => type === 52)).toBe(false);
  });

  test("another user between a certificate's offer and its signature", async () => {
    const attack = talk();
    const signer = certificateFor();
    attack.say(service);
    attack.say(offer(signer.algorithm, signer.blob));
    await attack.hear();
    attack.say(signed(attack.server.sessionId, signer, "root"));
    await attack.outcome;
    expect(disconnectOf(attack)).toBe(DISCONNECT.protocolError);
  });

  test("more requests than are answered, at once", async () => {
    const challenge = Promise.withResolvers<boolean>();
    const attack = talk({ verifySecret: () => challenge.promise });
    attack.say(service);
    // The pair hands a thrown violation to whoever carries the packet, as a transport would end the connection over it.
    expect(() => {
      for (let n = 0; n < 100; n += 1) attack.server.onPacket(password("x"));
    }).toThrow("more login messages");
    challenge.resolve(false);
    attack.client.destroy();
    await attack.outcome;
  });

  test("one that takes too long, or leaves", async () => {
    const slow = talk({}, 20);
    slow.say(service);
    expect(await slow.outcome).toMatchObject({ message: expect.stringContaining("nobody proved who they are") });
    expect(slow.server.disconnected).toBeDefined();
    const gone = talk();
    gone.say(service);
    await gone.hear();
    gone.client.destroy();
    expect(await gone.outcome).toBeInstanceOf(Error);
  });
});

describe("who asks for a grant that is none", () => {
  const script = (user: string, sessionId: Buffer): Buffer[] => {
    const own = certificateFor(user, new Secret("guessed"));
    return [
      ...[service, none(user), offer("ssh-ed25519", signerOf(generateKeyPairSync("ed25519").privateKey).blob, user)],
      ...[offer(own.algorithm, own.blob, user), signed(sessionId, own, user), interactive(user), answers("guess")],
      ...[password("guess", user), password("", user), password("x", user), password("y", user), password("z", user)],
    ];
  };

  test("hears the same, byte for byte, and causes the same work, as who asks for one that is", async () => {
    const heard: { said: Buffer[]; end: unknown; failed: number; asked: number }[] = [];
    for (const user of [GRANT, "gr_000000000000", "root"]) {
      const asked = vi.fn<(user: string) => void>();
      const counting: Gate = { ...gate(), challenge: (name) => (asked(name), gate().challenge(name)) };
      const failed: string[] = [];
      counting.failed = (name) => void failed.push(name);
      const attack = talk(gatePolicy(counting, "192.0.2.1", checkUserCertificate, () => Promise.resolve()));
      for (const payload of script(user, attack.server.sessionId)) {
        attack.say(payload);
        await attack.hear();
      }
      heard.push({
        said: [...attack.server.sent],
        end: attack.server.disconnected,
        failed: failed.length,
        asked: asked.mock.calls.length,
      });
    }
    const [real, ...others] = heard;
    expect(real?.end).toBeDefined();
    expect(real?.failed).toBe(5);
    for (const other of others) expect(other).toEqual(real);
  });
});
