import fc from "fast-check";
import pg from "pg";
import { expect, inject, test } from "vitest";
import { createAuthority } from "../../core/certificates.ts";
import * as scram from "./scram.ts";

const salt = Buffer.from("W22ZaJ0SNY7soEsUEjb6gQ==", "base64");
const serverNonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

test("the exchange of RFC 7677 section 3 comes out to the byte, on both sides", async () => {
  const client = scram.startClientExchange([scram.PLAIN], undefined, "rOprNGfwEbeRWgbNEkqO", "user");
  expect(client.clientFirst).toBe("n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
  const verifier = await scram.computeVerifier("pencil", salt, 4096);
  const server = scram.startServerExchange(scram.PLAIN, client.clientFirst, {
    ...{ salt, iterations: 4096, binding: undefined, nonce: serverNonce },
  });
  expect(server.serverFirst).toBe(
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
  );
  const final = await client.proceed(server.serverFirst, "pencil", scram.createSaltedPasswords());
  expect(final).toBe(
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
  );
  const serverFinal = server.finish(final, verifier);
  expect(serverFinal).toBe("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
  client.verify(serverFinal ?? "");
});

async function exchange(options: {
  password: string;
  proved?: string;
  clientBinding?: Buffer;
  serverBinding?: Buffer;
  offered?: string[];
}): Promise<string | undefined> {
  const client = scram.startClientExchange(options.offered ?? [scram.PLUS, scram.PLAIN], options.clientBinding);
  const server = scram.startServerExchange(client.mechanism, client.clientFirst, {
    ...{ salt, iterations: scram.SCRAM_ITERATIONS, binding: options.serverBinding },
  });
  const passwords = scram.createSaltedPasswords();
  const final = await client.proceed(server.serverFirst, options.proved ?? options.password, passwords);
  const answer = server.finish(final, await scram.computeVerifier(options.password, salt));
  if (answer !== undefined) client.verify(answer);
  return answer;
}

test("channel binding holds where both sides see the same certificate, and only there", async () => {
  const [mine, other] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)];
  expect(await exchange({ password: "a", clientBinding: mine, serverBinding: mine })).toBeDefined();
  await expect(exchange({ password: "a", clientBinding: other, serverBinding: mine })).rejects.toThrow(/binding check/);
});

test("somebody who takes the offer of channel binding away is noticed", async () => {
  const mine = Buffer.alloc(32, 1);
  const attempt = exchange({ password: "a", clientBinding: mine, serverBinding: mine, offered: [scram.PLAIN] });
  await expect(attempt).rejects.toThrow(/removed on the way/);
});

test("a wrong password gives no answer, and a server that does not know the verifier is not believed", async () => {
  expect(await exchange({ password: "right", proved: "wrong" })).toBeUndefined();
  const client = scram.startClientExchange([scram.PLAIN], undefined);
  const server = scram.startServerExchange(scram.PLAIN, client.clientFirst, {
    salt,
    iterations: scram.SCRAM_ITERATIONS,
    binding: undefined,
  });
  await client.proceed(server.serverFirst, "x", scram.createSaltedPasswords());
  expect(() => client.verify(`v=${Buffer.alloc(32).toString("base64")}`)).toThrow(/did not prove/);
  expect(() => scram.startClientExchange(["PLAIN"], undefined)).toThrow(/no SCRAM-SHA-256/);
});

test("arbitrary text in any step is an error of its own kind or a no, never a yes", async () => {
  const verifier = await scram.computeVerifier("right", salt, 10);
  const options = { salt, iterations: 10, binding: undefined };
  fc.assert(
    fc.property(fc.string({ maxLength: 300 }), fc.boolean(), (text, plausible) => {
      expect(outcome(() => scram.startServerExchange(scram.PLAIN, text, options))).not.toBe("another error");
      const server = scram.startServerExchange(scram.PLAIN, "n,,n=,r=abc", options);
      const nonce = /r=([^,]+)/.exec(server.serverFirst)?.[1] ?? "";
      const proof = Buffer.from(text.padEnd(32).slice(0, 32), "latin1").toString("base64");
      const final = plausible ? `c=biws,r=${nonce},p=${proof}` : text;
      expect(["no", "ScramError"]).toContain(outcome(() => server.finish(final, verifier)));
    }),
  );
});

test("a target may not choose the nonce or the work", async () => {
  const passwords = scram.createSaltedPasswords();
  for (const first of [
    "r=evil,s=AAAA,i=4096",
    "r=mine,s=AAAA,i=4096",
    "r=minex,s=AAAA,i=99999999",
    "r=minex,s=AAAA,i=1", // a password that can be guessed offline
    "e=no",
  ]) {
    const client = scram.startClientExchange([scram.PLAIN], undefined, "mine");
    await expect(client.proceed(first, "x", passwords), first).rejects.toThrow(scram.ScramError);
  }
});

test("salted passwords are computed once and the cache has an end", async () => {
  const cache = scram.createSaltedPasswords(2);
  const first = cache.get("a", salt, 10);
  expect(cache.get("a", salt, 10)).toBe(first);
  await Promise.all([cache.get("b", salt, 10), cache.get("c", salt, 10)]);
  expect(cache.get("a", salt, 10)).not.toBe(first);
  await expect(cache.get("pässword", salt, 10)).rejects.toThrow(/ASCII/);
});

test("the end-point binding of a certificate is its hash", async () => {
  const { cert } = await createAuthority("binding", 1);
  expect(scram.endPointBinding(cert)?.length).toBe(32);
});

test("a verifier made here opens a real PostgreSQL", async () => {
  const { port, superuser, password } = inject("pg18");
  const connect = async (user: string, secret: string): Promise<pg.Client> => {
    const client = new pg.Client({ host: "127.0.0.1", port, user, password: secret, database: "postgres" });
    await client.connect();
    return client;
  };
  const admin = await connect(superuser, password);
  const role = `scram_${Math.random().toString(36).slice(2)}`;
  try {
    await admin.query(
      `create role ${role} login password '${scram.formatVerifier(await scram.computeVerifier("s3cret"))}'`,
    );
    const client = await connect(role, "s3cret");
    await client.end();
    await expect(connect(role, "other")).rejects.toThrow(/password authentication failed/);
  } finally {
    await admin.query(`drop role if exists ${role}`);
    await admin.end();
  }
});

function outcome(work: () => unknown): "yes" | "no" | "ScramError" | "another error" {
  try {
    return work() === undefined ? "no" : "yes";
  } catch (error) {
    return error instanceof scram.ScramError ? "ScramError" : "another error";
  }
}
