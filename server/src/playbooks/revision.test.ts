import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readRevision } from "./revision.ts";

const run = promisify(execFile);
let home: string;
let folder: string;

/** git without the settings of whoever runs the tests. */
const git = async (...args: readonly string[]): Promise<string> => {
  const identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"];
  const env = { ...process.env, HOME: home, GIT_CONFIG_NOSYSTEM: "1", GIT_CONFIG_GLOBAL: "/dev/null" };
  return (await run("git", [...identity, ...args], { cwd: folder, env })).stdout;
};

const put = async (path: string, content: string | Uint8Array): Promise<void> => {
  await mkdir(dirname(join(folder, path)), { recursive: true });
  await writeFile(join(folder, path), content);
};

const commit = async (tag: string): Promise<void> => {
  await git("add", "--all");
  await git("commit", "--quiet", "--message", tag);
  await git("tag", tag);
};

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "glasskey-revision-"));
  folder = join(home, "repository");
  await mkdir(folder);
  await git("init", "--quiet", "--initial-branch", "main");
  await put("policy/policy.yaml", "reasons: { one: One }\n");
  await put("policy/playbooks/read.yaml", "playbook: read\n");
  await put("policy/targets/orders.yaml", "target: orders\nkind: x\nconfig: { tls: { ca: ../ca.pem } }\n");
  await put("policy/ca.pem", "-----BEGIN CERTIFICATE-----\n");
  await put("policy/README.md", "# Nothing to do with it\n");
  await put("policy/playbooks/.hidden.yaml", "x: 1\n");
  await put("src/large.yaml", "x".repeat(1_000));
  await commit("first");
  await put("policy/policy.yaml", "reasons: { two: Two }\n");
  await commit("second");
});
afterAll(async () => {
  await rm(home, { recursive: true, force: true });
});

describe("a revision", () => {
  test("is read as it was, with the files that its targets name, and nothing else", async () => {
    const files = await readRevision("first:policy", folder);
    expect([...files.keys()].toSorted()).toEqual([
      ...["ca.pem", "playbooks/read.yaml", "policy.yaml", "targets/orders.yaml"],
    ]);
    expect(files.get("policy.yaml")).toBe("reasons: { one: One }\n");
    expect((await readRevision("HEAD:policy", folder)).get("policy.yaml")).toBe("reasons: { two: Two }\n");
  });

  test("is not what lies in the folder", async () => {
    await put("policy/policy.yaml", "reasons: { three: Three }\n");
    expect((await readRevision("HEAD:policy/", folder)).get("policy.yaml")).toBe("reasons: { two: Two }\n");
    await git("checkout", "--quiet", "--", "policy");
  });

  test("may be named from within the folder", async () => {
    const inside = join(folder, "policy");
    expect((await readRevision("first:./", inside)).get("policy.yaml")).toBe("reasons: { one: One }\n");
    expect((await readRevision("first:.", inside)).get("policy.yaml")).toBe("reasons: { one: One }\n");
  });

  test.each([
    "nothing:policy",
    "first:missing",
    ":policy",
    "--help:policy",
    "-p:policy",
    "first:policy\n",
    "first:pol\0icy",
  ])("that git does not know is a mistake of the command: %j", async (revision) => {
    await expect(readRevision(revision, folder)).rejects.toMatchObject({ code: "usage" });
  });

  test("of a file is not a folder", async () => {
    await expect(readRevision("first:policy/policy.yaml", folder)).rejects.toMatchObject({
      message: "first:policy/policy.yaml is not a folder",
    });
  });

  test("outside of any repository is a mistake of the command", async () => {
    await expect(readRevision("HEAD:policy", home)).rejects.toMatchObject({ code: "usage" });
  });

  test("with a symbolic link in place of a file is refused: it could show any file of this machine", async () => {
    await symlink("/etc/passwd", join(folder, "policy/people.yaml"));
    await commit("link");
    await expect(readRevision("link:policy", folder)).rejects.toMatchObject({
      ...{ code: "config_invalid", message: "link:policy has people.yaml, which is not a plain file" },
    });
  });

  test("with a submodule in place of a file is refused", async () => {
    const id = (await git("rev-parse", "HEAD")).trim();
    await git("update-index", "--add", "--cacheinfo", `160000,${id},policy/oncall.yaml`);
    await git("commit", "--quiet", "--message", "submodule");
    await expect(readRevision("HEAD:policy", folder)).rejects.toMatchObject({ code: "config_invalid" });
    await git("reset", "--quiet", "--hard", "second");
  });

  test("is read without filters, whatever .gitattributes asks for", async () => {
    await git("config", "filter.evil.smudge", `touch ${join(home, "smudged")}`);
    await git("config", "diff.evil.textconv", `touch ${join(home, "converted")}`);
    await put(".gitattributes", "*.yaml filter=evil diff=evil text eol=crlf\n");
    await commit("filtered");
    const files = await readRevision("filtered:policy", folder);
    expect(files.get("policy.yaml")).toBe("reasons: { two: Two }\n");
    for (const name of ["smudged", "converted"]) await rm(join(home, name), { force: true });
    await readRevision("filtered:policy", folder);
    await expect(rm(join(home, "smudged"))).rejects.toThrow("ENOENT");
    await expect(rm(join(home, "converted"))).rejects.toThrow("ENOENT");
  });

  test("with hostile file names is read by them as they are", async () => {
    const name = "policy/playbooks/a\n100644 blob x\ty.yaml";
    await put(name, "playbook: odd\n");
    await commit("names");
    const files = await readRevision("names:policy", folder);
    expect(files.get("playbooks/a\n100644 blob x\ty.yaml")).toBe("playbook: odd\n");
    await git("reset", "--quiet", "--hard", "second");
  });

  test("with bytes that are no text is refused", async () => {
    await put("policy/people.yaml", new Uint8Array([0x2d, 0xff, 0xfe]));
    await commit("bytes");
    await expect(readRevision("bytes:policy", folder)).rejects.toMatchObject({
      message: "bytes:policy has people.yaml, which is not UTF-8 text",
    });
    await git("reset", "--quiet", "--hard", "second");
  });

  test("with too many files, or too large ones, is refused before they are read", async () => {
    for (let i = 0; i < 3; i++) await put(`policy/playbooks/big-${i}.yaml`, `# ${i}${"x".repeat(11 * 1024 * 1024)}\n`);
    await commit("large");
    await expect(readRevision("large:policy", folder)).rejects.toMatchObject({
      message: "large:policy is larger than 32 MiB",
    });
    await git("reset", "--quiet", "--hard", "second");
    const blob = (await git("rev-parse", "HEAD:policy/policy.yaml")).trim();
    const entries = Array.from({ length: 4_001 }, (_, i) => [
      "--cacheinfo",
      `100644,${blob},policy/playbooks/p${i}.yaml`,
    ]);
    for (let at = 0; at < entries.length; at += 500) {
      await git("update-index", "--add", ...entries.slice(at, at + 500).flat());
    }
    await git("commit", "--quiet", "--message", "many");
    await expect(readRevision("HEAD:policy", folder)).rejects.toMatchObject({ code: "config_invalid" });
    await git("reset", "--quiet", "--hard", "second");
  });
});
