import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ConnectAnswer } from "@glasskey/contract";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { remoteCommand, shellQuote } from "./clients.ts";
import { grantDir } from "./home.ts";
import { keepSsh, plainSsh, runDir, sweepSsh, writeSsh } from "./ssh-files.ts";
import { newSshKey } from "./ssh-key.ts";

const GRANT = "gr_7kq2m9x4tbzc";
const HOUR_MS = 3_600_000;
const ssh = existsSync("/usr/bin/ssh") && existsSync("/usr/bin/ssh-keygen");

let home: string;
const before = process.env["GLASSKEY_HOME"];
beforeEach(async () => {
  home = join(await mkdtemp(join(tmpdir(), "glasskey-ssh-")), "a home with 100% o'spaces");
  process.env["GLASSKEY_HOME"] = home;
});
afterEach(async () => {
  await rm(join(home, ".."), { recursive: true, force: true });
  if (before === undefined) delete process.env["GLASSKEY_HOME"];
  else process.env["GLASSKEY_HOME"] = before;
});

function answer(changes: Partial<ConnectAnswer> = {}): ConnectAnswer {
  return {
    ...{ grant: GRANT, kind: "ssh", host: "gate.example.com", port: 7422, user: GRANT, secret: "s", secretEnv: "" },
    ...{ env: {}, ca: "", argv: [], trust: "@cert-authority [gate.example.com]:7422 ssh-ed25519 AAAA", ...changes },
    certificate: changes.certificate ?? "ssh-ed25519-cert-v01@openssh.com AAAA x",
    certificateUntil: null,
    endsAt: changes.endsAt ?? new Date(Date.now() + HOUR_MS).toISOString(),
  };
}

const identity = { privateKey: newSshKey("x").privateKey };

test.skipIf(!ssh)("a fresh key is one that ssh-keygen reads, and each is another", async () => {
  const keys = [newSshKey("gr_a"), newSshKey("gr_a comment of any length")];
  for (const { privateKey, publicKey } of keys) {
    const file = join(home, "..", "key");
    await rm(file, { force: true });
    await writeFile(file, privateKey, { mode: 0o600 });
    expect(execFileSync("ssh-keygen", ["-y", "-P", "", "-f", file], { encoding: "utf8" }).trim()).toBe(publicKey);
  }
  expect(keys[0]?.publicKey.split(" ")[1]).not.toBe(keys[1]?.publicKey.split(" ")[1]);
});

test.skipIf(!ssh)(
  "the configuration is the whole of what ssh goes by: no agent, no key and no known_hosts of the person",
  () => {
    const { config, host, dir } = writeSsh(runDir(GRANT), answer(), identity);
    const said = execFileSync("ssh", ["-G", "-o", "RequestTTY=no", "-F", config, host], { encoding: "utf8" }).split(
      "\n",
    );
    expect(said).toEqual(
      expect.arrayContaining([
        "hostname gate.example.com",
        "port 7422",
        `user ${GRANT}`,
        "identitiesonly yes",
        "identityagent none",
        "stricthostkeychecking true",
        "forwardagent no",
        "updatehostkeys false",
        "preferredauthentications publickey",
      ]),
    );
    const paths = said.filter((line) =>
      /^(identityfile|certificatefile|userknownhostsfile|globalknownhostsfile) /.test(line),
    );
    expect(paths.map((line) => line.replaceAll('"', "").replaceAll("%%", "%")).toSorted()).toEqual([
      `certificatefile ${dir}/key-cert.pub`,
      "globalknownhostsfile /dev/null",
      `identityfile ${dir}/key`,
      `userknownhostsfile ${dir}/known_hosts`,
    ]);
  },
);

test("everything for one grant is readable by its owner alone", async () => {
  const { dir } = writeSsh(runDir(GRANT), answer(), identity);
  expect((await stat(dir)).mode & 0o777).toBe(0o700);
  for (const name of await readdir(dir)) expect((await stat(join(dir, name))).mode & 0o777, name).toBe(0o600);
  expect((await readdir(dir)).toSorted()).toEqual(["config", "key", "key-cert.pub", "known_hosts", "until"]);
});

test("the kept configuration stays as it is until the grant's end moves, and is then another", async () => {
  const endsAt = new Date(Date.now() + HOUR_MS).toISOString();
  const { config, dir } = keepSsh(answer({ endsAt }), identity);
  const first = await readFile(join(dir, "key"), "utf8");
  const other = { privateKey: newSshKey("y").privateKey };
  expect(keepSsh(answer({ endsAt }), other).config).toBe(config);
  expect(await readFile(join(dir, "key"), "utf8")).toBe(first);
  keepSsh(answer({ endsAt: new Date(Date.now() + 2 * HOUR_MS).toISOString() }), other);
  expect(await readFile(join(dir, "key"), "utf8")).toBe(other.privateKey);
  expect(await readFile(config, "utf8")).toContain(`CertificateFile "${dir.replaceAll("%", "%%")}/key-cert.pub"`);
  expect(await readdir(grantDir(GRANT))).toEqual(["ssh"]);
});

test("keys that a killed run left, and those of grants that are over, are swept; what is in use stays", async () => {
  writeSsh(runDir(GRANT), answer(), identity); // this process lives
  keepSsh(answer({ grant: "gr_000000000000", endsAt: new Date(Date.now() - 1_000).toISOString() }), identity);
  const kept = keepSsh(answer({ grant: "gr_111111111111" }), identity);
  const dead = join(grantDir(GRANT), "ssh-4194305"); // above the highest process id that Linux gives
  await mkdir(dead);
  writeSsh(runDir(GRANT), answer(), identity);
  sweepSsh();
  expect((await readdir(grantDir(GRANT))).toSorted()).toEqual([`ssh-${process.pid}`]);
  expect(await readdir(grantDir("gr_000000000000"))).toEqual([]);
  expect(await readdir(kept.dir)).toContain("key");
});

describe("a server's answer supplies values, and never a line of configuration", () => {
  const hostile: Record<string, Partial<ConnectAnswer>> = {
    "a host that is an option": { host: "-oProxyCommand=touch /tmp/x" },
    "a host with a line of its own": { host: "gate\n  ProxyCommand touch /tmp/x" },
    "a host with spaces": { host: "gate ProxyCommand" },
    "a port that is none": { port: 0 },
    "a second line of known_hosts": { trust: "@cert-authority * ssh-ed25519 AAAA\n* ssh-ed25519 BBBB" },
    "a key for every host": { trust: "@cert-authority * ssh-ed25519 AAAA" },
    "no line of known_hosts": { trust: "" },
    "a private key in place of a certificate": { certificate: "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA" },
    "a grant that is a path": { grant: "../../x" },
    "an end with a line of configuration": { endsAt: "2030-01-01T00:00:00Z\n  ProxyCommand touch /tmp/x\n#" },
    "an end that is none": { endsAt: "soon" },
  };
  test.each(Object.entries(hostile))("%s", async (_what, changes) => {
    expect(() => keepSsh(answer(changes), identity)).toThrow(expect.objectContaining({ code: "integrity" }));
    expect(existsSync(join(home, "grants", GRANT, "ssh"))).toBe(false);
  });
  test("not on the plain line either", () => {
    expect(() => plainSsh(answer({ host: "-oProxyCommand=x" }))).toThrow(/names no host/);
    expect(() => plainSsh(answer({ grant: "-oProxyCommand=touch${IFS}x" }))).toThrow(/names no grant/);
    expect(plainSsh(answer()).argv).toEqual(["ssh", "-p", "7422", `${GRANT}@gate.example.com`]);
    expect(plainSsh(answer({ port: 22 })).argv).toEqual(["ssh", `${GRANT}@gate.example.com`]);
  });
});

test("a person's own key: the private one beside it where it is a file, else the agent that has it", async () => {
  const pub = join(home, "..", "id_ed25519_sk.pub");
  await writeFile(pub, "ssh-ed25519 AAAA ann");
  const inAgent = await readFile(writeSsh(runDir(GRANT), answer(), { ownKey: pub }).config, "utf8");
  expect(inAgent).toContain("IdentityAgent SSH_AUTH_SOCK");
  expect(inAgent).toContain("id_ed25519_sk.pub");
  await writeFile(pub.replace(/\.pub$/, ""), "the key");
  const inFile = await readFile(writeSsh(runDir(GRANT), answer(), { ownKey: pub }).config, "utf8");
  expect(inFile).toContain("IdentityAgent none");
  expect(inFile).not.toContain("id_ed25519_sk.pub");
});

test("one word after -- is a command line; several arrive as the program's own arguments", () => {
  expect(remoteCommand([])).toEqual([]);
  expect(remoteCommand(["systemctl restart app"])).toEqual(["--", "systemctl restart app"]);
  expect(remoteCommand(["systemctl", "restart", "app"])).toEqual(["--", "systemctl restart app"]);
  expect(remoteCommand(["-t", "top"])).toEqual(["-t", "top"]);
  const odd = ["a b", "$HOME", "it's", "", "*", "`id`", String.raw`\\`, '"', "two\nlines"];
  const [, line = ""] = remoteCommand(["printf", String.raw`<%s>\n`, ...odd]);
  const seen = execFileSync("/bin/sh", ["-c", line], { encoding: "utf8" });
  expect(seen).toBe(odd.map((word) => `<${word}>\n`).join(""));
  expect(shellQuote("")).toBe("''");
});
