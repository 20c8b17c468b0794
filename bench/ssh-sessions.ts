import { generateKeyPairSync } from "node:crypto";
import { connect } from "node:net";
import type { ConnectAnswer } from "@glasskey/contract";
import { Secret } from "../server/src/core/secret.ts";
import { authenticateToServer } from "../server/src/targets/ssh/auth-client.ts";
import { parseCertificate } from "../server/src/targets/ssh/certificate.ts";
import { createConnection } from "../server/src/targets/ssh/connection.ts";
import { clientCertificate } from "../server/src/targets/ssh/entry.ts";
import { certifiedSigner, publicKeyLine, signerOf } from "../server/src/targets/ssh/keys.ts";
import { encodePty, encodeString } from "../server/src/targets/ssh/requests.ts";
import { createClientTransport } from "../server/src/targets/ssh/transport.ts";
import { OPEN_FAILURE, type Channel, type Connection } from "../server/src/targets/ssh/types.ts";

/** Sessions on connections of their own, each with a program in a terminal. */
export interface Sessions extends AsyncDisposable {
  /** Sends a byte on each and waits until it came back: all of them live. */
  echo(): Promise<void>;
}

const AT_ONCE = 8;
const PTY = { term: "xterm", columns: 80, rows: 24, width: 0, height: 0, modes: [] };

export async function openSessions(answer: ConnectAnswer, count: number, signal: AbortSignal): Promise<Sessions> {
  const open: Session[] = [];
  const dispose = (): Promise<void> => {
    for (const { connection } of open) connection.destroy();
    return Promise.resolve();
  };
  try {
    for (let n = 0; n < count; n += AT_ONCE) {
      signal.throwIfAborted();
      const some = Array.from({ length: Math.min(AT_ONCE, count - n) }, () => openSession(answer, signal));
      open.push(...(await Promise.all(some)));
    }
  } catch (error) {
    await dispose();
    throw error;
  }
  return {
    async echo() {
      await Promise.all(open.map((one) => one.echo()));
    },
    [Symbol.asyncDispose]: dispose,
  };
}

interface Session {
  readonly connection: Connection;
  echo(): Promise<void>;
}

async function openSession(
  { grant, secret, host, port, endsAt }: ConnectAnswer,
  signal: AbortSignal,
): Promise<Session> {
  const signer = signerOf(generateKeyPairSync("ed25519").privateKey);
  const { certificate } = clientCertificate({
    ...{ connectSecret: new Secret(secret), grant, publicKey: publicKeyLine(signer.blob) },
    ...{ now: new Date(), endsAt: new Date(endsAt) },
  });
  const { blob } = parseCertificate(Buffer.from(certificate.split(" ")[1] ?? "", "base64"));
  // Loopback, and our own Glasskey: there is nobody to mistake it for.
  const transport = await createClientTransport({ socket: connect(port, host), verifyHostKey: () => {} });
  await authenticateToServer(transport, grant, certifiedSigner(signer, blob), signal);
  let heard = Promise.withResolvers<void>();
  heard.promise.catch(() => {}); // of a session that ends before anything is asked of it, the opening says why
  const connection = createConnection(transport, {
    onOpen: (_open, accept) => accept.refuse(OPEN_FAILURE.administrativelyProhibited, "no"),
    onRequest: () => Promise.resolve({ ok: false }),
    onClose: (error) => heard.reject(error ?? new Error("the session ended")),
  });
  let channel: Channel | undefined;
  let ready = "";
  const started = Promise.withResolvers<void>();
  channel = await connection.open("session", Buffer.alloc(0), {
    onData(data) {
      channel?.consumed(data.length);
      if (ready.includes("ready")) heard.resolve();
      else if ((ready += data.toString()).includes("ready")) started.resolve();
    },
    onRequest: () => Promise.resolve(true),
    onEof: () => {},
    onClose: () => started.reject(new Error(`the program ended: ${ready}`)),
  });
  if (!(await channel.request("pty-req", true, encodePty(PTY)))) throw new Error("no terminal");
  await channel.request("exec", true, encodeString("stty raw -echo; echo ready; exec cat"));
  await started.promise;
  return {
    connection,
    echo() {
      heard = Promise.withResolvers();
      heard.promise.catch(() => {});
      channel?.write(Buffer.from("x"));
      return heard.promise;
    },
  };
}
