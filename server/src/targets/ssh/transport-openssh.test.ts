import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CIPHERS, KEX_METHODS, MACS } from "./algorithms.ts";
import { authenticateToServer } from "./auth-client.ts";
import type { AuthPolicy } from "./auth-server.ts";
import { issueCertificate } from "./certificate.ts";
import { startExecServer } from "./fixtures/exec-server.ts";
import { missingSshd, startSshd, type TestSshd } from "./fixtures/sshd.ts";
import { certifiedSigner, fingerprint, parsePublicKeyLine, publicKeyLine, signerFromSeed } from "./keys.ts";
import { createClientTransport, createServerTransport } from "./transport.ts";
import type { ClientTransportOptions, Negotiated, SshError, Transport, TransportLimits } from "./types.ts";
import { MSG, Writer } from "./wire.ts";

const SERVICE = new Writer().byte(MSG.serviceRequest).string("ssh-userauth").done();
/** Debian 12's OpenSSH has no ML-KEM yet; from 9.9 on it is tried too. Own client and own server use it with each other. */
const kexOfOpenssh = (): readonly string[] => {
  const known = spawnSync("ssh", ["-Q", "kex"], { encoding: "utf8" }).stdout.split("\n");
  return KEX_METHODS.filter((name) => known.includes(name));
};

const authority = signerFromSeed(randomBytes(32));
const subject = signerFromSeed(randomBytes(32));
const certificate = issueCertificate(
  {
    ...{ key: subject.blob, type: "user", serial: 1n, keyId: "test", principals: ["root"] },
    ...{ validAfter: new Date(Date.now() - 60_000), validBefore: new Date(Date.now() + 3_600_000) },
  },
  authority,
);
const certified = certifiedSigner(subject, certificate);

/** The next packet; rejects when the connection ends first. */
function nextPacket(transport: Transport): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    transport.onPacket = (payload) => resolve(Buffer.from(payload));
    transport.onClose = (error) => reject(error ?? new Error("closed"));
  });
}

describe.skipIf(missingSshd() !== undefined)("as a client of a real sshd (skipped without one, or root)", () => {
  let sshd: TestSshd;
  beforeAll(async () => {
    sshd = await startSshd({ trustedUserCas: [] });
  });
  afterAll(() => sshd.dispose());

  async function dial(
    options: Partial<ClientTransportOptions> & { at?: TestSshd; limits?: Partial<TransportLimits> } = {},
  ): Promise<Transport> {
    const { at = sshd, ...rest } = options;
    return await createClientTransport({
      socket: connect(at.port, "127.0.0.1"),
      verifyHostKey: () => undefined,
      ...rest,
    });
  }

  test.each([
    ["ssh-ed25519", "ed25519"],
    ["ecdsa-sha2-nistp256", "ecdsa"],
    ["rsa-sha2-512", "rsa"],
    ["rsa-sha2-256", "rsa"],
  ] as const)("its host key is verified with %s", async (algorithm, file) => {
    const seen: string[] = [];
    const transport = await dial({
      hostKeyAlgorithms: [algorithm],
      verifyHostKey: ({ algorithm: name, blob }) => void seen.push(`${name} ${fingerprint(blob)}`),
    });
    const { key } = parsePublicKeyLine(sshd.hostKeys[file]);
    expect(seen).toEqual([`${algorithm} ${fingerprint(key.blob)}`]);
    expect(transport.negotiated).toMatchObject({ hostKey: algorithm, strict: true });
    expect(transport.peerVersion).toMatch(/^SSH-2\.0-OpenSSH_/);
    transport.send(SERVICE);
    expect(await nextPacket(transport)).toEqual(Buffer.concat([Buffer.of(MSG.serviceAccept), SERVICE.subarray(1)]));
    expect(transport.peerSignatureAlgorithms).toContain("rsa-sha2-512");
    transport.disconnect(11, "done");
  });

  test("every method, cipher and MAC that both know works, and keys change under load", async () => {
    const combinations = [
      ...kexOfOpenssh().map((kex) => ({
        kex,
        cipher: "aes128-gcm@openssh.com",
        mac: "hmac-sha2-256-etm@openssh.com",
      })),
      ...CIPHERS.flatMap((cipher) => MACS.map((mac) => ({ kex: "curve25519-sha256", cipher, mac }))),
    ];
    for (const { kex, cipher, mac } of combinations) {
      const config = [`KexAlgorithms ${kex}`, `Ciphers ${cipher}`, `MACs ${mac}`];
      const at = await startSshd({ trustedUserCas: [publicKeyLine(authority.blob)], config });
      try {
        const transport = await dial({ at, limits: { rekeyPackets: 3 } });
        expect(transport.negotiated).toMatchObject({ kex, cipher: { in: cipher, out: cipher }, strict: true });
        await authenticateToServer(transport, "root", certified, AbortSignal.timeout(60_000));
        const asked = new Writer().byte(80).string("keepalive@openssh.com").boolean(true).raw(randomBytes(900)).done();
        const answers = new Promise<number[]>((resolve, reject) => {
          const types: number[] = [];
          transport.onClose = reject;
          transport.onPacket = (payload) => {
            if ((payload[0] ?? 0) >= 81) types.push(payload[0] ?? 0);
            if (types.length === 20) resolve(types);
          };
        });
        transport.resume(); // it was held for the connection protocol
        for (let n = 0; n < 20; n += 1) transport.send(asked);
        expect(await answers).toEqual(Array.from({ length: 20 }, () => 82)); // REQUEST_FAILURE: it understood each
        transport.disconnect(11, "done");
      } finally {
        await at.dispose();
      }
    }
  }, 120_000);

  test("one that has nothing in common is left with both lists in the error", async () => {
    const at = await startSshd({ trustedUserCas: [], config: ["Ciphers chacha20-poly1305@openssh.com"] });
    try {
      await expect(dial({ at })).rejects.toThrow(
        /no common cipher: this side takes aes128-gcm.*; the other offers chacha20/,
      );
    } finally {
      await at.dispose();
    }
  });

  test("one that is killed in the middle is an error, soon", async () => {
    const at = await startSshd({ trustedUserCas: [] });
    try {
      const transport = await dial({ at });
      const end = new Promise<SshError | undefined>((resolve) => {
        transport.onPacket = () => undefined;
        transport.onClose = resolve;
      });
      await at.stop();
      expect(await end).toMatchObject({ reason: 10 });
      await expect(dial({ at })).rejects.toThrow(/ECONNREFUSED/);
    } finally {
      await at.dispose();
    }
  });
});

interface Served {
  negotiated?: Negotiated;
  version?: string;
  error?: unknown;
  first?: Buffer;
}

/** Our server up to the service request; then it says goodbye. */
async function startServer(
  limits: Partial<TransportLimits> = {},
): Promise<{ port: number; served: Served[]; server: Server }> {
  const served: Served[] = [];
  const server = createServer((socket) => {
    createServerTransport({ socket, hostKeys: [hostKey], limits }).then(
      (transport) => {
        const one: Served = { negotiated: transport.negotiated, version: transport.peerVersion };
        served.push(one);
        transport.onPacket = (payload) => {
          one.first = Buffer.from(payload);
          transport.disconnect(2, "this is as far as it goes");
        };
      },
      (error: unknown) => served.push({ error }),
    );
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { port: (server.address() as AddressInfo).port, served, server };
}
const hostKey = signerFromSeed(randomBytes(32));

async function run(program: string, args: readonly string[]): Promise<string> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (bytes: Buffer) => (said += bytes.toString()));
  await once(child, "close");
  return said;
}

describe.skipIf(!existsSync("/usr/bin/ssh"))("as a server of the real ssh (skipped where it is not installed)", () => {
  let dir: string;
  let knownHosts: string;
  let at: Awaited<ReturnType<typeof startServer>>;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "glasskey-transport-"));
    at = await startServer();
    knownHosts = join(dir, "known_hosts");
    await writeFile(knownHosts, `[127.0.0.1]:${at.port} ${publicKeyLine(hostKey.blob)}\n`);
  });
  afterAll(async () => {
    at.server.close();
    await rm(dir, { recursive: true, force: true });
  });
  const ssh = async (...options: readonly string[]): Promise<string> => {
    const strict = ["-o", "StrictHostKeyChecking=yes", "-o", `UserKnownHostsFile=${knownHosts}`];
    const alone = [
      "-v",
      "-F",
      "none",
      "-o",
      "IdentityAgent=none",
      "-o",
      "GlobalKnownHostsFile=none",
      "-o",
      "BatchMode=yes",
    ];
    return await run("ssh", [...alone, ...options, ...strict, "-p", String(at.port), "x@127.0.0.1", "true"]);
  };

  test("it verifies the host key, gets the list of signatures and shows why it is sent away", async () => {
    const said = await ssh();
    expect(said).toContain(`Server host key: ssh-ed25519 ${fingerprint(hostKey.blob)}`);
    expect(said).toContain("server-sig-algs=<ssh-ed25519,");
    expect(said).toContain(":2: this is as far as it goes");
    expect(said).toMatch(/Remote protocol version 2\.0, remote software version Glasskey$/m);
    expect(at.served.at(-1)).toMatchObject({ first: SERVICE, negotiated: { strict: true } });
  });

  test("every key exchange method, cipher and MAC that it knows works", async () => {
    const options = [
      ...kexOfOpenssh().map((name) => [`KexAlgorithms=${name}`]),
      ...CIPHERS.map((name) => [`Ciphers=${name}`]),
      ...MACS.map((name) => ["Ciphers=aes128-ctr", `MACs=${name}`]),
    ];
    for (const option of options) {
      const said = await ssh(...option.flatMap((one) => ["-o", one]));
      expect(said, option.join()).toContain("this is as far as it goes");
      const { negotiated } = at.served.at(-1) ?? {};
      const agreed = [negotiated?.kex, negotiated?.cipher.in].map(String);
      if (option.length === 1)
        expect(option[0]).toMatch(new RegExp(`=(?:${agreed.map((name) => name.replaceAll(".", "\\.")).join("|")})$`));
    }
  });

  test("one that knows nothing of this is told so, and so is the log", async () => {
    const said = await ssh("-o", "Ciphers=chacha20-poly1305@openssh.com");
    expect(said).toMatch(/no matching cipher found\. Their offer: aes128-gcm@openssh\.com,/);
    await expect.poll(() => String(at.served.at(-1)?.error)).toMatch(/no common cipher|closed the connection/);
  });

  test("the wrong host key is refused by it", async () => {
    await writeFile(
      join(dir, "other"),
      `[127.0.0.1]:${at.port} ${publicKeyLine(signerFromSeed(randomBytes(32)).blob)}\n`,
    );
    expect(await ssh("-o", `UserKnownHostsFile=${join(dir, "other")}`)).toContain("Host key verification failed");
  });
});

describe.skipIf(!existsSync("/usr/bin/ssh"))(
  "under the load of the real ssh (skipped where it is not installed)",
  () => {
    let dir: string;
    beforeAll(async () => {
      dir = await mkdtemp(join(tmpdir(), "glasskey-rekey-"));
    });
    afterAll(() => rm(dir, { recursive: true, force: true }));

    test.each(["aes128-gcm@openssh.com", "aes128-ctr"])(
      "keys change many times in 3 MB each way with %s, and no byte is lost",
      async (cipher) => {
        const policy: AuthPolicy = {
          verifyKey: () => Promise.resolve(false),
          verifySecret: (_user, secret) => Promise.resolve(secret.reveal() === "sesame"),
          failed: () => undefined,
          admit: () => Promise.resolve(),
        };
        const server = await startExecServer(policy);
        const sent = randomBytes(3_000_000);
        try {
          await writeFile(join(dir, "ask"), "#!/bin/sh\necho sesame\n", { mode: 0o700 });
          await writeFile(join(dir, "known"), `[127.0.0.1]:${server.port} ${server.hostKey}\n`);
          const own = [
            "-vv",
            "-F",
            "none",
            "-o",
            "IdentityAgent=none",
            "-o",
            "GlobalKnownHostsFile=none",
            "-o",
            `Ciphers=${cipher}`,
          ];
          const known = ["-o", "StrictHostKeyChecking=yes", "-o", `UserKnownHostsFile=${join(dir, "known")}`];
          const limit = ["-o", "RekeyLimit=128K", "-o", "PreferredAuthentications=password"];
          const args = [...own, ...known, ...limit, "-p", String(server.port), "ann@127.0.0.1", "cat"];
          const env = { PATH: process.env["PATH"], SSH_ASKPASS: join(dir, "ask"), SSH_ASKPASS_REQUIRE: "force" };
          const child = spawn("ssh", args, { env });
          const back: Buffer[] = [];
          let said = "";
          child.stdout.on("data", (bytes: Buffer) => back.push(bytes));
          child.stderr.on("data", (bytes: Buffer) => (said += bytes.toString()));
          child.stdin.on("error", () => undefined);
          child.stdin.end(sent);
          const [code] = (await once(child, "close")) as [number | null];
          expect(said).not.toContain("Connection closed");
          expect(code).toBe(0);
          expect(Buffer.concat(back).equals(sent)).toBe(true);
          expect(said.split("SSH2_MSG_NEWKEYS received").length).toBeGreaterThan(10);
        } finally {
          await server.stop();
        }
      },
    );
  },
);

const PARAMIKO = "import socket, sys, paramiko\n";
const hasParamiko = spawnSync("/usr/bin/python3", ["-c", "import paramiko"]).status === 0;

describe.skipIf(!hasParamiko)("as a server of paramiko (skipped where it is not installed)", () => {
  test("it gets through, with new keys in the middle; without strict key exchange only what Terrapin does not break is used", async () => {
    const { port, served, server } = await startServer();
    const script = `${PARAMIKO}
t = paramiko.Transport(socket.create_connection(("127.0.0.1", ${port})))
t.start_client(timeout=60)
print(t.get_remote_server_key().get_name(), t.remote_cipher, t.remote_mac)
t.renegotiate_keys()
print("renewed")
try:
    t.auth_password("x", "y")
except Exception as e:
    print("sent away")
t.close()
`;
    const said = await run("/usr/bin/python3", ["-c", script]);
    server.close();
    expect(said).toMatch(/^ssh-ed25519 aes\d+-(?:ctr|gcm@openssh\.com) [\w@.-]*\nrenewed\nsent away\n/);
    expect(served[0]).toMatchObject({ first: SERVICE });
    const { strict, cipher } = served[0]?.negotiated ?? { strict: false, cipher: { in: "", out: "" } };
    if (!strict) expect(CIPHERS).toContain(cipher.in);
  });
});
