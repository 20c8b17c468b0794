import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { createServer as createHttpsServer } from "node:https";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createAuthority, issueServerCertificate } from "../core/certificates.ts";
import { Secret } from "../core/secret.ts";
import type { GitSource } from "./config.ts";
import { openRepository, type Repository, type Verdict } from "./repository.ts";
import { startOrigin, type Origin } from "./testing/origin.ts";

const ANN = { ssh: "ann" };
const BOB = { ssh: "bob" };
const POLICY = { "policy/policy.yaml": "reasons: { outage: It is down }\n", "policy/people.yaml": "[]\n" };

let origin: Origin;
let repository: Repository;
let copies = 0;

beforeEach(async () => {
  origin = await startOrigin();
  repository = open();
});
afterEach(() => origin.dispose());

function open(change: Partial<GitSource> = {}, fetchMs?: number): Repository {
  copies += 1;
  return openRepository({
    dir: join(origin.folder, `copy-${copies}`),
    source: { ...origin.source, ...change },
    resolve: (reference) => new Secret(reference),
    ...(fetchMs === undefined ? {} : { fetchMs }),
  });
}

const never = new AbortController().signal;
const fetched = (which = repository): Promise<string> => which.fetch(never);
const judged = async (from?: string, accept?: string, which = repository): Promise<Verdict> =>
  which.judge(from, await fetched(which), accept);

test("a signed commit is taken with its files, its author and the key's fingerprint", async () => {
  const head = await origin.commit({ ...POLICY, "README.md": "hello", "policy/notes.txt": "no part of it" }, ANN);
  expect(await fetched()).toBe(head);
  const verdict = await repository.judge(undefined, head, undefined);
  const print = execFileSync("ssh-keygen", ["-l", "-f", await origin.key("ann")])
    .toString()
    .split(" ")[1];
  expect(verdict).toEqual({ ok: true, author: "Ann Author <ann@shop.example>", signer: print, accepted: false });
  const read = await repository.files(head);
  expect(read.ok && Object.fromEntries(read.files)).toEqual({
    "policy.yaml": POLICY["policy/policy.yaml"],
    "people.yaml": POLICY["policy/people.yaml"],
  });
});

test("a certificate that a target names comes with it, and a path out of the folder does not", async () => {
  const target = (ca: string): string => `target: t\nkind: postgres\nconfig: { tls: { ca: ${ca} } }\n`;
  const files = {
    ...{ ...POLICY, "policy/targets/a.yaml": target("./a-ca.pem"), "policy/targets/a-ca.pem": "PEM" },
    ...{ "policy/targets/b.yaml": target("../../secret.pem"), "secret.pem": "OUTSIDE" },
    "policy/targets/c.yaml": target("/etc/passwd"),
  };
  const head = await origin.commit(files, ANN);
  await fetched();
  const read = await repository.files(head);
  expect(read.ok && read.files.get("targets/a-ca.pem")).toBe("PEM");
  expect(read.ok && [...read.files.keys()].filter((path) => !path.endsWith(".yaml"))).toEqual(["targets/a-ca.pem"]);
});

test("every commit since the one in force must be signed: one that is not, below a signed head, is refused", async () => {
  const first = await origin.commit(POLICY, ANN);
  await origin.commit({ "policy/oncall.yaml": "{}\n" }, BOB);
  expect(await judged(first)).toMatchObject({ ok: true });
  const bad = await origin.commit({ "policy/oncall.yaml": "{ pay: [mallory] }\n" }, undefined);
  expect(await judged(first)).toMatchObject({
    ok: false,
    cause: "signature",
    why: expect.stringMatching(/not signed/),
  });
  await origin.commit({ "policy/oncall.yaml": "{ pay: [] }\n" }, ANN);
  expect(await judged(first)).toMatchObject({ ok: false, why: expect.stringContaining(bad.slice(0, 12)) });
});

test("a commit signed by a key that is not listed is refused, and an empty list lets nobody in", async () => {
  const first = await origin.commit(POLICY, ANN);
  await origin.commit({ "policy/people.yaml": "- mallory\n" }, { ssh: "mallory" });
  expect(await judged(first)).toMatchObject({
    ok: false,
    cause: "signature",
    why: expect.stringMatching(/not listed/),
  });
  expect(await judged(undefined)).toMatchObject({ ok: false });
  await writeFile(origin.signers, "");
  await origin.git("reset", "--quiet", "--hard", first);
  expect(await judged(undefined)).toMatchObject({ ok: false });
  const absent = open({ signers: { ssh: join(origin.folder, "nowhere") } });
  expect(await judged(undefined, undefined, absent)).toMatchObject({
    ok: false,
    why: expect.stringMatching(/signers/),
  });
});

test("an unsigned side branch that is merged with a signed merge is refused", async () => {
  const first = await origin.commit(POLICY, ANN);
  await origin.git("checkout", "--quiet", "-b", "side");
  const bad = await origin.commit({ "policy/oncall.yaml": "{ pay: [mallory] }\n" }, undefined);
  await origin.git("checkout", "--quiet", "main");
  await origin.commit({ "README.md": "main goes on" }, ANN);
  const sign = ["-c", "gpg.format=ssh", "-c", `user.signingKey=${await origin.key("ann")}`];
  await origin.git(...sign, "merge", "--quiet", "-S", "--no-ff", "-m", "Merge", "side");
  expect(await judged(first)).toMatchObject({
    ok: false,
    cause: "signature",
    why: expect.stringContaining(bad.slice(0, 12)),
  });
});

test("an older signed commit, a force-push and a foreign history are refused, unless `accept` names that very commit", async () => {
  const first = await origin.commit(POLICY, ANN);
  const second = await origin.commit({ "policy/oncall.yaml": "{}\n" }, ANN);
  expect(await judged(first)).toMatchObject({ ok: true });
  await origin.git("reset", "--quiet", "--hard", first);
  expect(await judged(second)).toMatchObject({ ok: false, cause: "history" });
  const forked = await origin.commit({ "policy/oncall.yaml": "{ pay: [] }\n" }, ANN);
  expect(await judged(second)).toMatchObject({ ok: false, cause: "history" });
  expect(await judged(second, first)).toMatchObject({ ok: false, cause: "history" });
  expect(await judged(second, forked)).toMatchObject({ ok: true, accepted: true });
  await origin.git("checkout", "--quiet", "--orphan", "other");
  await origin.commit(POLICY, ANN);
  await origin.git("branch", "--force", "main", "other");
  expect(await judged(second)).toMatchObject({ ok: false, cause: "history" });
  const unsigned = await origin.commit({}, undefined);
  await origin.git("branch", "--force", "main", "other");
  expect(await judged(second, unsigned)).toMatchObject({ ok: false, cause: "signature" });
});

test("a revoked key, a key that has expired, and an expired key with the date set back are refused", async () => {
  const first = await origin.commit(POLICY, ANN);
  const revoked = join(origin.folder, "revoked");
  await writeFile(revoked, `${await origin.publicKey("ann")}\n`);
  const strict = open({ signers: { ssh: origin.signers, revoked } });
  expect(await judged(undefined, undefined, strict)).toMatchObject({ ok: false, cause: "signature" });

  const lines = await readFile(origin.signers, "utf8");
  await writeFile(origin.signers, lines.replace("bob@shop.example ", 'bob@shop.example valid-before="20260101" '));
  await origin.commit({ "policy/oncall.yaml": "{}\n" }, BOB);
  expect(await judged(first)).toMatchObject({ ok: false, cause: "signature" });
  await origin.git("reset", "--quiet", "--hard", first);
  await origin.commit({ "policy/oncall.yaml": "{}\n" }, BOB, "2025-06-01T12:00:00Z");
  expect(await judged(first)).toMatchObject({ ok: false, why: expect.stringMatching(/not valid any more/) });
});

test("PGP: a listed key's commits are taken; another key's, an expired key's, and SSH signatures are not", async () => {
  const home = { ...process.env, GNUPGHOME: join(origin.folder, "gnupg"), HOME: origin.folder };
  const gpg = (...args: string[]): string =>
    execFileSync(
      "gpg",
      ["--batch", "--quiet", "--no-tty", "--passphrase", "", "--pinentry-mode", "loopback", ...args],
      {
        ...{ env: home, stdio: ["ignore", "pipe", "ignore"] },
      },
    ).toString();
  gpg("--quick-gen-key", "ann <ann@shop.example>", "ed25519", "sign", "never");
  gpg("--quick-gen-key", "mal <mal@shop.example>", "ed25519", "sign", "never");
  gpg("--faked-system-time", "20250101T000000", "--quick-gen-key", "old <old@shop.example>", "ed25519", "sign", "30d");
  const list = join(origin.folder, "keys.asc");
  await writeFile(list, gpg("--armor", "--export", "ann@shop.example", "old@shop.example"));
  const pgp = open({ signers: { gpg: list } });
  const first = await origin.commit(POLICY, { gpg: "ann@shop.example" });
  expect(await judged(undefined, undefined, pgp)).toMatchObject({
    ok: true,
    signer: expect.stringMatching(/^[0-9A-F]{40}$/),
  });
  expect(await judged(undefined)).toMatchObject({ ok: false }); // an installation that lists SSH keys
  await origin.commit({ "policy/oncall.yaml": "{}\n" }, { gpg: "mal@shop.example" });
  expect(await judged(first, undefined, pgp)).toMatchObject({ ok: false, cause: "signature" });
  await origin.git("reset", "--quiet", "--hard", first);
  await origin.commit({ "policy/oncall.yaml": "{}\n" }, ANN);
  expect(await judged(first, undefined, pgp)).toMatchObject({ ok: false, cause: "signature" });
  await origin.git("reset", "--quiet", "--hard", first);
  await writeFile(join(origin.folder, "gnupg/gpg.conf"), "faked-system-time 20250110T000000\nignore-time-conflict\n");
  await origin.commit({ "policy/oncall.yaml": "{}\n" }, { gpg: "old@shop.example" }, "2025-01-10T00:00:00Z");
  expect(await judged(first, undefined, pgp)).toMatchObject({ ok: false, why: expect.stringMatching(/expired/) });
  // A key that is taken off the list counts no more.
  await origin.git("reset", "--quiet", "--hard", first);
  await writeFile(list, gpg("--armor", "--export", "mal@shop.example"));
  expect(await judged(undefined, undefined, pgp)).toMatchObject({ ok: false, cause: "signature" });
});

test("symbolic links and submodules in the policy's folder are refused, whatever they point to", async () => {
  await mkdir(join(origin.url, "policy/targets"), { recursive: true });
  await symlink("/etc/passwd", join(origin.url, "policy/targets/prod.yaml"));
  const linked = await origin.commit(POLICY, ANN);
  await fetched();
  expect(await repository.files(linked)).toMatchObject({ ok: false, why: expect.stringMatching(/symbolic link/) });
  await origin.commit({ "policy/targets/prod.yaml": undefined }, ANN);
  await origin.git("update-index", "--add", "--cacheinfo", `160000,${linked},policy/sub`);
  const sign = ["-c", "gpg.format=ssh", "-c", `user.signingKey=${await origin.key("ann")}`];
  await origin.git(...sign, "commit", "--quiet", "-S", "-m", "sub");
  expect(await repository.files(await fetched())).toMatchObject({ ok: false, why: expect.stringMatching(/submodule/) });
  const asFolder = open({ path: "policy/policy.yaml" });
  expect(await asFolder.files(await fetched(asFolder))).toMatchObject({
    ok: false,
    why: expect.stringMatching(/no folder/),
  });
});

test("large files, binary files and hostile names are refused", async () => {
  const refusedFor = async (name: string, content: string | Buffer, why: RegExp): Promise<void> => {
    await origin.commit({ ...POLICY, [name]: content }, ANN);
    expect(await repository.files(await fetched())).toMatchObject({ ok: false, why: expect.stringMatching(why) });
    await origin.commit({ [name]: undefined }, ANN);
  };
  await refusedFor("policy/playbooks/big.yaml", Buffer.alloc(10 * 1024 * 1024, "#"), /larger than/);
  await refusedFor("policy/playbooks/bytes.yaml", Buffer.from([0xff, 0xfe, 0x00]), /not UTF-8/);
  await refusedFor("policy/playbooks/a\nb.yaml", "x", /not a plain file name/);
  await refusedFor("policy/playbooks/a\u202Eb.yaml", "x", /not a plain file name/);
  await refusedFor("policy/playbooks/--upload-pack=x.yaml", "x", /not a plain file name/);
});

test("hooks, filters and attributes of the repository do nothing here", async () => {
  const proof = join(origin.folder, "ran");
  const script = `#!/bin/sh\ntouch ${proof}\ncat\n`;
  await writeFile(join(origin.folder, "evil"), script, { mode: 0o755 });
  for (const hook of ["post-checkout", "reference-transaction", "post-merge", "pre-auto-gc"]) {
    await writeFile(join(origin.url, ".git/hooks", hook), script, { mode: 0o755 });
  }
  const head = await (async () => {
    await origin.git("config", "core.hooksPath", "/dev/null"); // of the origin itself; ours are in the tree as well
    return origin.commit(
      {
        ...{
          ...POLICY,
          ".gitattributes": "* filter=evil diff=evil\n",
          "policy/.gitattributes": "* filter=evil text=auto\n",
        },
        ...{
          ".gitconfig": `[filter "evil"]\nsmudge = ${join(origin.folder, "evil")}\n`,
          "hooks/post-checkout": script,
        },
      },
      ANN,
    );
  })();
  await origin.git("config", "--unset", "core.hooksPath");
  await writeFile(join(origin.folder, "global"), `[filter "evil"]\n smudge = ${join(origin.folder, "evil")}\n`);
  process.env["GIT_CONFIG_GLOBAL"] = join(origin.folder, "global");
  process.env["GIT_DIR"] = "/nowhere";
  try {
    expect(await judged(undefined)).toMatchObject({ ok: true });
    const read = await repository.files(head);
    expect(read.ok && read.files.get("policy.yaml")).toBe(POLICY["policy/policy.yaml"]);
  } finally {
    delete process.env["GIT_CONFIG_GLOBAL"];
    delete process.env["GIT_DIR"];
  }
  expect(existsSync(proof)).toBe(false);
});

test("a server that is down, one that never answers, and a branch that is not there are errors within the time", async () => {
  const sockets = new Set<Socket>();
  const silent = createServer((socket) => void sockets.add(socket.on("error", () => {})));
  await new Promise<void>((done) => silent.listen(0, "127.0.0.1", done));
  const { port } = silent.address() as AddressInfo;
  try {
    const hanging = open({ url: `https://127.0.0.1:${port}/policy.git` }, 1_500);
    await expect(hanging.fetch(never)).rejects.toThrow(/no end after/);
  } finally {
    for (const socket of sockets) socket.destroy();
    await new Promise((done) => silent.close(done));
  }
  await expect(open({ url: `https://127.0.0.1:${port}/policy.git` }).fetch(never)).rejects.toThrow(/git fetch/);
  await origin.commit(POLICY, ANN);
  await expect(open({ branch: "nowhere" }).fetch(never)).rejects.toThrow(/git fetch/);
  const stopping = AbortSignal.abort();
  await expect(repository.fetch(stopping)).rejects.toThrow(/stopping/);
});

test("over https: the configured CA and token are used, a certificate of another CA is not believed, a redirect is not followed, and a token that comes back is not told", async () => {
  const head = await origin.commit(POLICY, ANN);
  await origin.git("update-server-info");
  const authority = await createAuthority("Test CA", 2);
  const identity = await issueServerCertificate(authority, ["127.0.0.1"], 2);
  const [ca, other] = [join(origin.folder, "ca.pem"), join(origin.folder, "other.pem")];
  await writeFile(ca, authority.cert);
  await writeFile(other, (await createAuthority("Other CA", 2)).cert);
  const seen = new Set<string>();
  // The plain files of a repository, as the "dumb" protocol of gitprotocol-http(5) has them.
  const server = createHttpsServer({ key: identity.key, cert: identity.cert }, (request, response) => {
    seen.add(request.headers.authorization ?? "none");
    const { pathname } = new URL(request.url ?? "/", "https://127.0.0.1");
    if (pathname.startsWith("/echo/")) {
      const sent = String(request.headers.authorization);
      const plain = Buffer.from(sent.replace("Basic ", ""), "base64").toString();
      response.writeHead(403, { "content-type": "text/plain" }).end(`refused: ${sent} (${plain})\n`);
      return;
    }
    if (pathname.startsWith("/moved/")) {
      response.writeHead(302, { location: pathname.replace("/moved/", "/policy.git/") }).end();
      return;
    }
    const file = join(origin.url, ".git", pathname.replace("/policy.git/", ""));
    readFile(file).then(
      (bytes) => response.end(bytes),
      () => response.writeHead(404).end(),
    );
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  try {
    const base = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const https = { url: `${base}/policy.git`, ca, token: "the token" };
    expect(await open(https).fetch(never)).toBe(head);
    expect([...seen]).toEqual([`Basic ${Buffer.from("x-access-token:the token").toString("base64")}`]);
    await expect(open({ ...https, url: `${base}/moved/` }).fetch(never)).rejects.toThrow(/git fetch/);
    const echoed = await open({ ...https, url: `${base}/echo/` })
      .fetch(never)
      .catch(String);
    expect(echoed).toMatch(/remote: refused: Basic \*\*\* \(x-access-token:\*\*\*\)/);
    const strange = await open({ ...https, ca: other })
      .fetch(never)
      .catch(String);
    expect(strange).toMatch(/certificate/);
    expect(strange).not.toMatch(/the token|eC1hY2Nlc3M/);
  } finally {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  }
});

test("what a killed git left behind, and a copy that is damaged, do not stop the next fetch for ever", async () => {
  const head = await origin.commit(POLICY, ANN);
  await fetched();
  const dir = join(origin.folder, `copy-${copies}`, "repository");
  await writeFile(join(dir, "refs/glasskey/head.lock"), "");
  await writeFile(join(dir, "packed-refs.lock"), "");
  const next = await origin.commit({ "policy/oncall.yaml": "{}\n" }, ANN);
  expect(await fetched()).toBe(next);
  expect(await repository.judge(head, next, undefined)).toMatchObject({ ok: true });
  await writeFile(join(dir, "config"), "[core\n");
  const tries: string[] = [];
  for (let i = 0; i < 6; i += 1) tries.push(await fetched().catch(() => "failed"));
  expect(tries.at(0)).toBe("failed");
  expect(tries.at(-1)).toBe(next);
});
