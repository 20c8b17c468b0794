import {
  issueCertificate,
  parseCertificate,
  verifyCertificate,
  type Wanted,
} from "../server/src/targets/ssh/certificate.ts";
import { parseAnswer } from "../server/src/targets/ssh/control.ts";
import { publicKeyLine, signerFromSeed } from "../server/src/targets/ssh/keys.ts";
import { clientCertificate } from "../server/src/targets/ssh/entry.ts";
import { SshError } from "../server/src/targets/ssh/types.ts";
import { GlassError } from "../server/src/core/errors.ts";
import { Secret } from "../server/src/core/secret.ts";

const authority = signerFromSeed(Buffer.alloc(32, 1));
const subject = signerFromSeed(Buffer.alloc(32, 2));
const now = new Date("2026-03-01T12:00:00Z");
const fields = {
  ...{
    key: subject.blob,
    serial: 1n,
    keyId: "gk_ab12cd_7kq2m9x4tbzc",
    principals: ["deploy"],
    nonce: Buffer.alloc(32, 3),
  },
  ...{ validAfter: new Date(now.getTime() - 60_000), validBefore: new Date(now.getTime() + 60_000) },
};
const options = { criticalOptions: { "source-address": "10.0.0.7" }, extensions: { "permit-pty": "" } };
const genuine = [
  issueCertificate({ ...fields, ...options, type: "user" }, authority),
  issueCertificate({ ...fields, type: "host", principals: ["deploy", "web-1.example.com"] }, authority),
];
const wanted: Omit<Wanted, "type"> = {
  authorities: [authority.blob],
  principal: "deploy",
  now,
  understood: ["source-address"],
};

export const seeds: readonly Uint8Array[] = [
  ...genuine,
  authority.blob,
  Buffer.from(publicKeyLine(subject.blob, "ann@laptop")),
  Buffer.from("glasskey-control 1\nnow 1795287453\nleft 12 sh\nrevoked yes\ndone confirm\n"),
];
export const words: readonly string[] = [
  ...["ssh-ed25519-cert-v01@openssh.com", "ssh-rsa-cert-v01@openssh.com", "ecdsa-sha2-nistp256-cert-v01@openssh.com"],
  ...[
    "permit-pty",
    "force-command",
    "source-address",
    "deploy",
    "\0\0\0\0",
    "\0\0\0\u0001",
    "\0\0\u0001\0",
    "glasskey-control 1\n",
    "done confirm\n",
  ],
];

/** Nothing but the declared errors, and no certificate passes except the bytes that were signed. */
export function one(input: Uint8Array): void {
  for (const type of ["user", "host"] as const) {
    const passed = attempt(() => {
      verifyCertificate(parseCertificate(input), { ...wanted, type });
      return true;
    });
    if (passed === true && !genuine.some((blob) => blob.equals(input)))
      throw new Error("a certificate that nobody signed was taken");
  }
  const text = Buffer.from(input).toString("latin1");
  const connectSecret = new Secret("a secret");
  attempt(() =>
    clientCertificate({
      connectSecret,
      grant: "gr_7kq2m9x4tbzc",
      publicKey: text,
      now,
      endsAt: new Date(now.getTime() + 1000),
    }),
  );
  const answer = attempt(() => parseAnswer("confirm", text, ""));
  if (answer !== undefined && !/(?:^|\n)done confirm(?:\n|$)/.test(text))
    throw new Error("an answer without its end was taken");
}

function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof SshError || error instanceof GlassError) return undefined;
    throw error;
  }
}
