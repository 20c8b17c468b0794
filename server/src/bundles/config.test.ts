import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { readConfig } from "../config.ts";
import type { GitSource } from "./config.ts";

const folder = mkdtempSync(join(tmpdir(), "glasskey-source-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function read(policy: string): ReturnType<typeof readConfig> {
  const file = join(folder, "glasskey.yaml");
  writeFileSync(file, `policy: ${policy}\n`);
  return readConfig(file);
}
const git = (keys: string): GitSource | undefined => read(`{ git: { ${keys} } }`).policyGit;
const SIGNERS = "signers: { ssh: allowed_signers }";

test("a plain text is a folder; git has its defaults, and paths and references relative to glasskey.yaml", () => {
  expect(read("rules")).toMatchObject({ policyDir: join(folder, "rules"), policyGit: undefined });
  const keys = `url: "https://git.shop.example/policy.git", ${SIGNERS}, hook_secret: "\${file:secrets/hook}"`;
  expect(git(keys)).toMatchObject({
    ...{ kind: "git", url: "https://git.shop.example/policy.git", branch: "main", path: "", pollMs: 60_000 },
    ...{ signers: { ssh: join(folder, "allowed_signers") }, hookSecret: `\${file:${join(folder, "secrets/hook")}}` },
    accept: undefined,
  });
});

test("https, ssh and file addresses are taken; whatever git or ssh could take for an option, a command or a password is not", () => {
  const ssh = ", ssh: { key: k, known_hosts: h }";
  const good = [
    ['"https://git.shop.example/a/policy.git"', ""],
    ['"https://git.shop.example:8443/policy"', ""],
    ['"ssh://git@git.shop.example/policy.git"', ssh],
    ['"git@git.shop.example:shop/policy.git"', ssh],
    ['"file:///srv/policy.git"', ""],
    ['"/srv/policy.git"', ""],
  ] as const;
  for (const [url, more] of good) expect(git(`url: ${url}, ${SIGNERS}${more}`)?.kind, url).toBe("git");
  const bad = [
    ...["--upload-pack=touch /tmp/x", "-oProxyCommand=x", "ext::sh -c touch% /tmp/x", "http://git.shop.example/p"],
    ...["git://git.shop.example/p", "policy", "../policy", "https://ann:pass@git.shop.example/p", "https://-x/p"],
    ...["ssh://-oProxyCommand=touch/p", "ssh://git@-x/p", "git@host:-x", "-x@host:p", "git@-host:p", "file://host/p"],
    ...["https://git.shop.example/p\\n", "https://git.shop.example/$(x)", "//host/p", "fd::17", "", "https://"],
  ];
  for (const url of bad) expect(() => git(`url: "${url}", ${SIGNERS}`), url).toThrow(/url/);
});

test("without signers nobody is believed, so it does not start; mistakes are placed and suggested", () => {
  const url = 'url: "https://git.shop.example/policy.git"';
  expect(() => git(url)).toThrow(/signers/);
  expect(() => git(`${url}, signers: {}`)).toThrow(/nobody is believed/);
  expect(() => git(`${url}, ${SIGNERS}, brnach: main`)).toThrow(/brnach[^]*Did you mean "branch"/);
  expect(() => git(`${url}, ${SIGNERS}, hook_secret: geheim`)).toThrow(/literal secret/);
  expect(() => git(`${url}, ${SIGNERS}, accept: main`)).toThrow(/40 hexadecimal/);
  expect(() => git(`${url}, ${SIGNERS}, poll: 1s`)).toThrow(/5s to 1d/);
  for (const branch of ["--all", "a..b", "a.lock", "@{-1}", "a b", "/a", "a/"]) {
    expect(() => git(`${url}, ${SIGNERS}, branch: "${branch}"`), branch).toThrow(/branch name/);
  }
  for (const path of ["../x", "/etc", "a/../b", "--x\\n", ":x"]) {
    expect(() => git(`${url}, ${SIGNERS}, path: "${path}"`), path).toThrow(/path/);
  }
  expect(() => git(`url: "ssh://git@host/p", ${SIGNERS}`)).toThrow(/known_hosts/);
  expect(() => read("[a]")).toThrow(/must be a folder/);
});
