import { execFileSync } from "node:child_process";
import { parse } from "yaml";
import { afterEach, describe, expect, test } from "vitest";
import { Secret } from "../../core/secret.ts";
import { configOf, createPlan, parseConfig, type SshConfig } from "./config.ts";
import { credentialSigner, issuePass, targetAuthority, validity } from "./authority.ts";
import { controlCommand, CONTROL_SCRIPT } from "./control.ts";
import { missingHost, startHost, type TestHost } from "./fixtures/host.ts";
import { hostSetup } from "./host-setup.ts";
import { dial } from "./dial.ts";
import { offer } from "./login.ts";
import { run } from "./run.ts";
import { secretsFrom, testTools } from "../conformance-child.ts";
import type { JsonObject } from "../../core/json.ts";

const tools = testTools("ab12cd", () => ({}));
let host: TestHost | undefined;
afterEach(async () => {
  await host?.dispose();
  host = undefined;
});

function configFor(control: JsonObject | null): JsonObject {
  const parsed = parseConfig({
    ...{ host: "127.0.0.1", port: host?.port ?? 22, hostKeys: { pin: [host?.hostKey ?? KEY] }, control },
  });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return parsed.value;
}
const KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfx83hgNdoeqRTOKxZ11vdGS7NL7HamvaOjzvDfduBe";

function login(user: string, principal = user, keyId = "gk_ab12cd_probe"): Promise<readonly boolean[]> {
  const config = configFor(null);
  const pass = { keyId, principal, from: ["127.0.0.1"], extensions: [], ...validity(new Date()) };
  const target = { host: "127.0.0.1", port: host?.port ?? 22, hostKeys: config["hostKeys"] as { pin: string[] }, user };
  return offer(target, [issuePass(pass, targetAuthority(tools))], new AbortController().signal);
}

function planned(change: JsonObject): SshConfig {
  return configOf({ ...configFor(null), ...change });
}

describe("what an administrator pastes", () => {
  test("is public, the same each time, and names this installation's authority alone", () => {
    for (const config of [{}, configFor(null), configFor({ user: "root" }), configFor({ user: "glasskey" })]) {
      const setup = hostSetup(tools, config);
      expect(
        hostSetup(
          testTools("ab12cd", () => ({})),
          config,
        ),
      ).toEqual(setup);
      expect(Object.keys(setup.formats)).toEqual(["shell", "cloud-init", "ansible"]);
      const text = JSON.stringify(setup);
      expect(text).not.toContain(tools.derive("ca").reveal());
      for (const format of Object.values(setup.formats))
        expect(new Set(format.match(/ssh-ed25519 AAAA[^\s']*/g))).toEqual(
          new Set([setup.steps[0]?.text.trim().split(" ", 2).join(" ")]),
        );
    }
    const another = { install: "zz12cd", derive: secretsFrom("another").derive };
    expect(hostSetup(another, {}).steps[0]?.text).not.toBe(hostSetup(tools, {}).steps[0]?.text);
    expect(new Secret("x").toString()).toBe("[secret]");
  });

  test("two lines are enough to let leases in; the rest comes with a control login", () => {
    const settings = (config: JsonObject): string | undefined =>
      hostSetup(tools, config).steps.find(({ file }) => file?.endsWith("50-glasskey.conf"))?.text;
    expect(settings(configFor(null))).toBe("TrustedUserCAKeys /etc/ssh/glasskey_ca.pub\nAcceptEnv LC_GLASSKEY\n");
    expect(settings(configFor({ user: "root" }))).toContain("RevokedKeys /etc/ssh/glasskey_revoked_keys\n");
    expect(settings(configFor({ user: "root" }))).not.toContain("Match");
    expect(settings({})).toContain("Match User glasskey\n  AuthorizedPrincipalsFile /etc/ssh/glasskey_principals\n");
  });

  test("cloud-init and Ansible write the same files as the shell text", () => {
    const setup = hostSetup(tools, {});
    const files = setup.steps.filter(({ file }) => file !== undefined);
    const cloud = parse(setup.formats["cloud-init"] ?? "") as {
      write_files: { path: string; content: string }[];
      runcmd: string[][];
    };
    expect(cloud.write_files.map(({ content }) => content)).toEqual([setup.formats["shell"]]);
    expect(cloud.runcmd).toEqual([["sh", cloud.write_files[0]?.path]]);
    const [play] = parse(setup.formats["ansible"] ?? "") as { tasks: Record<string, unknown>[] }[];
    const copies = play?.tasks.flatMap((task) =>
      task["ansible.builtin.copy"] === undefined
        ? []
        : [task["ansible.builtin.copy"] as { dest: string; content: string }],
    );
    expect(copies?.map(({ dest, content }) => ({ file: dest, text: content }))).toEqual(
      files.map(({ file, text }) => ({ file, text })),
    );
    const scripts = play?.tasks.flatMap((task) => {
      const asked = task["ansible.builtin.shell"] as { cmd: string } | undefined;
      return asked === undefined ? [] : [asked.cmd];
    });
    for (const text of [...(scripts ?? []), setup.formats["shell"] ?? ""])
      execFileSync("/bin/sh", ["-n"], { input: text });
    expect(setup.formats["shell"]).toContain(scripts?.[0]);
    expect(setup.formats["shell"]).toContain("install -m 0644 /dev/null /etc/ssh/glasskey_revoked_keys");
    expect(setup.formats["ansible"]).toContain("install -m 0644 /dev/null /etc/ssh/glasskey_revoked_keys");
  });
});

test("nothing in the text for Ansible is a template to it", () => {
  // The script had "${#…}" once, whose "{#" begins a comment there: the playbook failed in the middle.
  for (const config of [{}, configFor(null), configFor({ user: "root" })])
    expect(hostSetup(tools, config).formats["ansible"]).not.toMatch(/\{[{%#]/);
});

describe.skipIf(missingHost() !== undefined)("the shell text, pasted on a host", () => {
  test("opens it to this installation's certificates, and to nobody else's; doing it again changes nothing", async () => {
    host = await startHost();
    await host.start();
    expect(await login("deploy")).toEqual([false]);
    await host.stop();
    const { shell = "" } = hostSetup(tools, configFor(null)).formats;
    host.shell(shell);
    const once = host.shell("cat /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config");
    host.shell(shell);
    expect(host.shell("cat /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config")).toBe(once);
    await host.start();
    expect(await login("deploy")).toEqual([true]);
    expect(await login("deploy", "somebody")).toEqual([false]);
  });

  test("with a control login: one script as root, whatever is asked, and nothing else", async () => {
    host = await startHost();
    const { shell = "" } = hostSetup(tools, configFor({ user: "glasskey" })).formats;
    host.shell(shell);
    host.shell(shell);
    await host.start();
    expect(await login("deploy")).toEqual([true]);
    expect(await login("glasskey")).toEqual([true]);
    expect(host.shell("su glasskey -c 'sudo -n -l' | tail -n 1").trim()).toBe(
      "(root) NOPASSWD: /usr/local/lib/glasskey/control",
    );
    expect(host.shell("cat /usr/local/lib/glasskey/control")).toBe(CONTROL_SCRIPT);
    // As sshd runs the forced command: by the user's shell, with what was asked in the environment.
    const forced = (asked: string): string => {
      const text =
        host?.shell("sed -n 's/^restrict,command=\"\\(.*\\)\" glasskey$/\\1/p' /etc/ssh/glasskey_principals") ?? "";
      const command = text.trim().replaceAll('\\"', '"');
      return (
        host?.shell(
          `su glasskey -s /bin/sh <<'END' || :\nSSH_ORIGINAL_COMMAND=${quoted(asked)} SSH_CONNECTION='10.0.0.9 1 10.0.0.1 22'\nexport SSH_ORIGINAL_COMMAND SSH_CONNECTION\n${command}\nEND`,
        ) ?? ""
      );
    };
    expect(forced(controlCommand(["hello", "deploy"]))).toMatch(
      /^glasskey-control 1\nnow \d+\nuid 0\nclient 10\.0\.0\.9\nuser yes\ndone hello\n$/,
    );
    for (const asked of ["id", "/bin/sh", "$(id)", "sh -s -- 'id'", ""]) expect(forced(asked)).toMatch(/\nerror /);
  });

  test("a command that the host forces upon a principal is all that it can run", async () => {
    host = await startHost({ config: ["AuthorizedPrincipalsFile=/etc/ssh/principals/%u"] });
    host.shell(hostSetup(tools, configFor(null)).formats["shell"] ?? "false");
    host.shell(
      `mkdir /etc/ssh/principals; echo 'restrict,command="echo restarted" gk-restart' >/etc/ssh/principals/deploy`,
    );
    await host.start();
    expect(await login("deploy")).toEqual([false]);
    const target = { ...planned({ principal: "gk-restart" }), user: "deploy" };
    const pass = {
      keyId: "gk_ab12cd_probe",
      principal: "gk-restart",
      from: ["127.0.0.1"],
      extensions: ["permit-pty"],
      ...validity(new Date()),
    };
    const { signal } = new AbortController();
    const { connection } = await dial(target, credentialSigner(issuePass(pass, targetAuthority(tools))), signal);
    try {
      const { stdout } = await run(connection, "id; cat /etc/shadow", { limitBytes: 10_000, signal });
      expect(stdout.toString()).toBe("restarted\n");
    } finally {
      connection.destroy();
    }
  });

  test("a host that has an authority or a list of revoked keys already is not changed in silence", async () => {
    const { shell = "", ansible = "" } = hostSetup(tools, {}).formats;
    const [play] = parse(ansible) as { tasks: Record<string, { cmd: string }>[] }[];
    const first = play?.tasks[0]?.["ansible.builtin.shell"]?.cmd ?? "";
    host = await startHost();
    const before = host.shell("find /etc/ssh /etc/sudoers.d /usr/local/lib | sort");
    for (const line of ["TrustedUserCAKeys /etc/ssh/theirs.pub", "RevokedKeys /etc/ssh/theirs.krl", "NoSuchSetting"]) {
      host.shell(`echo '${line}' >/etc/ssh/sshd_config.d/00-theirs.conf; ssh-keygen -A`);
      for (const text of [shell, first])
        expect(() => host?.shell(text), line).toThrow(line.startsWith("No") ? "does not say" : "has");
      expect(
        host.shell("rm /etc/ssh/sshd_config.d/00-theirs.conf; find /etc/ssh /etc/sudoers.d /usr/local/lib | sort"),
      ).toBe(before);
    }
    host.shell(first);
  });

  test("one Glasskey takes nothing away from another one on the same host, nor from itself", async () => {
    const other = { install: "zz12cd", derive: secretsFrom("another").derive };
    const files = "cat /etc/ssh/glasskey_* /etc/ssh/sshd_config.d/50-glasskey.conf /etc/sudoers.d/glasskey";
    host = await startHost();
    host.shell(hostSetup(other, configFor({ user: "glasskey" })).formats["shell"] ?? "false");
    const theirs = host.shell(files);
    const ours = hostSetup(tools, configFor({ user: "glasskey" }));
    expect(() => host?.shell(ours.formats["shell"] ?? "")).toThrow("another Glasskey's line");
    expect(host.shell(files)).toBe(theirs);
    // As the message says.
    host.shell(`echo '${ours.steps[0]?.text.trim()}' >>/etc/ssh/glasskey_ca.pub`);
    const both = host.shell(files);
    host.shell(ours.formats["shell"] ?? "false");
    expect(host.shell(files)).toBe(both);
    for (const less of [null, { user: "another" }]) {
      expect(() => host?.shell(hostSetup(tools, configFor(less)).formats["shell"] ?? "")).toThrow("would take away");
      expect(host.shell(files)).toBe(both);
    }
    await host.start();
    expect(await login("deploy")).toEqual([true]);
  });
});

test("a plan and a set-up agree on where the list of revoked keys is", () => {
  const config = configFor({ user: "glasskey", revokedKeys: "/etc/ssh/revoked" });
  const plan = createPlan({
    install: "ab12cd",
    lease: "ls_7kq2m9x4tbzc",
    target: "t",
    config,
    scope: { user: "deploy" },
    endsAt: new Date(),
  });
  expect(plan["control"]).toMatchObject({ revokedKeys: "/etc/ssh/revoked" });
  expect(hostSetup(tools, config).formats["shell"]).toContain("RevokedKeys /etc/ssh/revoked\n");
});

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
