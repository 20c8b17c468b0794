import { generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { authenticateToServer } from "./auth-client.ts";
import { signedData } from "./auth-server.ts";
import { issueCertificate } from "./certificate.ts";
import { transportPair, type PairEnd } from "./fixtures/transport-pair.ts";
import { certifiedSigner, signerOf, subjectKey, verifySignature } from "./keys.ts";
import { DISCONNECT } from "./types.ts";
import { MSG, Reader, Writer } from "./wire.ts";

const key = signerOf(generateKeyPairSync("ed25519").privateKey);
const certificate = issueCertificate(
  {
    ...{ key: key.blob, type: "user", serial: 1n, keyId: "gk_test", principals: ["deploy"] },
    ...{ validAfter: new Date(0), validBefore: new Date(2 ** 31 * 1000) },
  },
  signerOf(generateKeyPairSync("ed25519").privateKey),
);
const signer = certifiedSigner(key, certificate);

const accepted = new Writer().byte(MSG.serviceAccept).string("ssh-userauth").done();
const banner = (text: string | Buffer): Buffer => new Writer().byte(53).string(text).string("").done();
const failure = (methods: string[], isPartial = false): Buffer =>
  new Writer().byte(51).nameList(methods).boolean(isPartial).done();

/** A host that answers with these, whatever it is sent. */
function logIn(
  answers: readonly Buffer[],
  algorithms: readonly string[] = [],
): { outcome: Promise<unknown>; client: PairEnd } {
  const { server, client } = transportPair();
  Object.assign(client, { peerSignatureAlgorithms: algorithms });
  const outcome = authenticateToServer(client, "deploy", signer, new AbortController().signal);
  outcome.catch(() => {});
  for (const answer of answers) server.send(answer);
  return { outcome, client };
}

describe("the login on a target", () => {
  test("is one certificate with one signature, bound to this connection, and nothing else", async () => {
    const { outcome, client } = logIn([accepted, Buffer.of(52)]);
    await outcome;
    expect(client.sent.map(([type]) => type)).toEqual([MSG.serviceRequest, 50]);
    const reader = new Reader(client.sent[1] ?? Buffer.alloc(0), 1);
    expect([reader.text(), reader.name(), reader.name(), reader.boolean(), reader.name()]).toEqual([
      ...["deploy", "ssh-connection", "publickey", true, "ssh-ed25519-cert-v01@openssh.com"],
    ]);
    expect(reader.string().equals(certificate)).toBe(true);
    const data = signedData(client.sessionId, "deploy", signer.algorithm, certificate);
    expect(verifySignature(signer.algorithm, subjectKey(certificate), data, reader.string())).toBe(true);
    reader.end();
  });

  test.each<[string, Buffer, RegExp, RegExp, string[]?]>([
    ["a plain refusal", failure(["publickey", "password"]), /refused the certificate for deploy/, /TrustedUserCAKeys/],
    [
      "a second proof",
      failure(["password"], true),
      /wants another proof as well \(password\)/,
      /AuthenticationMethods/,
    ],
    ["no keys at all", failure(["password"]), /by no key or certificate/, /PubkeyAuthentication/],
    [
      "an algorithm that it does not take",
      failure(["publickey"]),
      /takes no ssh-ed25519 keys/,
      /PubkeyAcceptedAlgorithms/,
      ["rsa-sha2-512"],
    ],
  ])("that is refused by %s says so and what to do", async (_what, answer, message, next, algorithms = []) => {
    const { outcome } = logIn([accepted, answer], algorithms);
    await expect(outcome).rejects.toMatchObject({ code: "target_unreachable", next: expect.stringMatching(next) });
    await expect(outcome).rejects.toThrow(message);
  });

  test("quotes what the host said, made printable and short", async () => {
    const { outcome } = logIn([
      accepted,
      banner("closed\u001b[2J\r\nfor\u202e today"),
      banner("x".repeat(5000)),
      failure(["publickey"]),
    ]);
    const error = await outcome.catch((thrown: Error) => thrown);
    expect((error as Error).message).toMatch(/it says: closed \[2J for +today xxx/);
    expect((error as Error).message.length).toBeLessThan(500);
    expect((error as Error).message).not.toMatch(/\p{C}/u);
  });

  test.each<[string, readonly Buffer[]]>([
    ["talks without end", [accepted, ...Array.from({ length: 30 }, () => banner("wait"))]],
    [
      "wants the key to be signed again",
      [accepted, new Writer().byte(60).string(signer.algorithm).string(signer.blob).done()],
    ],
    [
      "asks for a password in a dialogue",
      [accepted, new Writer().byte(60).string("").string("").string("").uint32(1).done()],
    ],
    ["opens a channel before the login", [accepted, new Writer().byte(90).string("session").done()]],
    ["answers with half a message", [accepted, Buffer.of(51, 0, 0)]],
  ])("is given up when the host %s, and nothing more is sent", async (_what, answers) => {
    const { outcome, client } = logIn(answers);
    await expect(outcome).rejects.toMatchObject({ reason: DISCONNECT.protocolError });
    expect(client.sent.filter(([type]) => type === 50)).toHaveLength(1);
  });

  test("fails with the host's last word when it hangs up, and at once when the caller says so", async () => {
    const { server, client } = transportPair();
    const outcome = authenticateToServer(client, "deploy", signer, new AbortController().signal);
    server.destroy();
    await expect(outcome).rejects.toMatchObject({ reason: DISCONNECT.connectionLost });
    const stop = new AbortController();
    const stopped = authenticateToServer(transportPair().client, "deploy", signer, stop.signal);
    stop.abort(new Error("enough"));
    await expect(stopped).rejects.toThrow("enough");
    const { client: third } = transportPair();
    await expect(authenticateToServer(third, "deploy", signer, AbortSignal.abort(new Error("before")))).rejects.toThrow(
      "before",
    );
    expect(third.sent).toEqual([]);
  });
});
