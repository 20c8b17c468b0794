import { execFileSync, spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { newId, randomBase32 } from "../../core/ids.ts";
import { issueCertificate } from "./certificate.ts";
import { leaseName } from "./config.ts";
import { controlCommand, CONTROL_SCRIPT, parseAnswer, valuesOf, type Answer } from "./control.ts";
import { missingSshd } from "./fixtures/sshd.ts";
import { publicKeyLine, signerFromSeed } from "./keys.ts";

const SHELLS = ["/bin/dash", "/bin/bash", "/bin/busybox"].filter((shell) => existsSync(shell));
const authority = signerFromSeed(Buffer.alloc(32, 5));
const other = signerFromSeed(Buffer.alloc(32, 6));

let dir = "";
const started: ChildProcess[] = [];
const install = randomBase32(6);

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "glasskey-control-"));
});
afterEach(() => {
  for (const child of started.splice(0)) {
    try {
      process.kill(-(child.pid ?? 0), "SIGKILL"); // each is the leader of a group of its own
    } catch {
      // ended by the test, with all that was in it
    }
  }
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** As sshd runs it: the login shell gets the line, and the script comes as input. */
function ask(
  request: readonly [string, ...string[]],
  shell = "/bin/sh",
  environment: Record<string, string> = {},
): Answer {
  const command = shell.endsWith("busybox")
    ? controlCommand(request).replace(/^sh/, "/bin/busybox sh")
    : controlCommand(request);
  const child = raw(command, shell, environment);
  return parseAnswer(request[0], child.stdout, child.stderr);
}

function raw(
  command: string,
  shell = "/bin/sh",
  environment: Record<string, string> = {},
): { stdout: string; stderr: string } {
  const args = shell.endsWith("busybox") ? ["sh", "-c", command] : ["-c", command];
  const env = { PATH: "/usr/bin:/bin", ...environment };
  const stderr = join(dir, "stderr");
  let stdout = "";
  try {
    stdout = execFileSync(shell, args, {
      input: CONTROL_SCRIPT,
      env,
      encoding: "latin1",
      stdio: ["pipe", "pipe", "pipe"],
    });
  } catch (error) {
    stdout = (error as { stdout: string }).stdout;
    writeFileSync(stderr, (error as { stderr: string }).stderr);
  }
  return { stdout, stderr: existsSync(stderr) ? readFileSync(stderr, "latin1") : "" };
}

function refusal(command: string, environment: Record<string, string> = {}): unknown {
  try {
    const { stdout, stderr } = raw(command, "/bin/sh", environment);
    return parseAnswer("fence", stdout, stderr);
  } catch (error) {
    return error;
  }
}

function words(blob: Uint8Array): [string, string] {
  const [type = "", key = ""] = publicKeyLine(blob).split(" ");
  return [type, key];
}

function certificateOf(lease: string, by = authority): [string, string] {
  const validity = { validAfter: new Date(Date.now() - 60_000), validBefore: new Date(Date.now() + 60_000) };
  const key = signerFromSeed(Buffer.alloc(32, 7)).blob;
  return words(issueCertificate({ ...validity, key, type: "user", serial: 1n, keyId: lease, principals: ["x"] }, by));
}

/** A program with a lease's mark; resolves when it runs. */
async function start(lease: string, script: string): Promise<ChildProcess> {
  const child = spawn("/bin/sh", ["-c", `echo up; ${script}`], {
    env: { PATH: "/usr/bin:/bin", LC_GLASSKEY: lease },
    stdio: ["ignore", "pipe", "ignore"],
    detached: true,
  });
  started.push(child);
  await once(child.stdout ?? child, "data");
  return child;
}

const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

async function eventually(condition: () => boolean): Promise<void> {
  for (let n = 0; n < 600 && !condition(); n += 1) await pause(50);
  expect(condition()).toBe(true);
}

const skip = missingSshd() !== undefined;

describe.skipIf(skip).for(SHELLS)("the control script, run by %s", (shell) => {
  const lease = leaseName(install, newId("lease"));
  const krl = (): string => join(dir, `krl-${shell.replaceAll("/", "_")}`);

  test("a revoked key id is refused by ssh-keygen's reading of the file, and no other", () => {
    writeFileSync(krl(), "");
    const [a, b] = [leaseName(install, newId("lease")), leaseName(install, newId("lease"))];
    ask(["fence", a, krl(), ...words(authority.blob)], shell);
    ask(["fence", a, krl(), ...words(authority.blob)], shell);
    expect(valuesOf(ask(["confirm", a, krl(), ...certificateOf(a)], shell), "revoked")).toEqual(["yes"]);
    expect(valuesOf(ask(["confirm", b, krl(), ...certificateOf(b)], shell), "revoked")).toEqual(["no"]);
    // The same name of another installation's authority is another one.
    expect(valuesOf(ask(["confirm", a, krl(), ...certificateOf(a, other)], shell), "revoked")).toEqual(["no"]);
    ask(["fence", b, krl(), ...words(other.blob)], shell);
    expect(valuesOf(ask(["confirm", b, krl(), ...certificateOf(b, other)], shell), "revoked")).toEqual(["yes"]);
    expect(valuesOf(ask(["confirm", a, krl(), ...certificateOf(a)], shell), "revoked")).toEqual(["yes"]);
    expect(readFileSync(`${krl()}.list`, "utf8").trim().split("\n")).toHaveLength(2);
  });

  test("what a lease left running is found and ended: by its mark, and by whom it descends from", async () => {
    writeFileSync(krl(), "", { flag: "a" });
    const child = await start(lease, "setsid sleep 1001 & trap '' TERM HUP; env -i sleep 1002 & sleep 1003 & wait");
    const pid = child.pid ?? 0;
    const another = await start(leaseName(install, newId("lease")), "sleep 1004 & wait");
    await eventually(
      () => valuesOf(ask(["confirm", lease, krl(), ...certificateOf(lease)], shell), "left").length >= 4,
    );
    expect(valuesOf(ask(["list", install], shell), "lease")).toContain(lease);
    expect(valuesOf(ask(["revoke", lease, krl(), ...words(authority.blob)], shell), "left")).toEqual([]);
    expect(alive(pid)).toBe(false);
    expect(alive(another.pid ?? 0)).toBe(true);
    expect(valuesOf(ask(["confirm", lease, krl(), ...certificateOf(lease)], shell), "left")).toEqual([]);
    expect(valuesOf(ask(["list", install], shell), "lease")).not.toContain(lease);
  });

  test("a program that forks away as fast as it can is caught", async () => {
    writeFileSync(krl(), "", { flag: "a" });
    const child = await start(
      lease,
      'f() { sleep 0.01; sh -c "$0" "$0" & exit; }; while :; do (sleep 0.02 & exec sleep 0.02); done',
    );
    expect(valuesOf(ask(["revoke", lease, krl(), ...words(authority.blob)], shell), "left")).toEqual([]);
    expect(alive(child.pid ?? 0)).toBe(false);
  });

  test("facts about the host: one in each line, and none of them a password", () => {
    const lines = valuesOf(ask(["fingerprint", "/etc/passwd", join(dir, "absent")], shell), "fact");
    expect(lines).toContain(
      "user root uid 0 gid 0 home /root shell /bin/bash".replace(
        "/bin/bash",
        lines
          .find((line) => line.startsWith("user root "))
          ?.split(" ")
          .at(-1) ?? "",
      ),
    );
    expect(lines.some((line) => /^file \/etc\/passwd mode \d+ root:root sha256 [0-9a-f]{16}$/.test(line))).toBe(true);
    expect(lines).toContain(`file ${join(dir, "absent")} absent`);
    for (const line of readFileSync("/etc/shadow", "utf8").split("\n")) {
      const hash = line.split(":")[1] ?? "";
      if (hash.length > 4) expect(lines.join("\n")).not.toContain(hash);
    }
    expect(ask(["fingerprint"], shell).lines).toEqual(ask(["fingerprint"], shell).lines);
  });
});

describe.skipIf(skip)("fences on one host", () => {
  test("many at once, of several installations, all hold", async () => {
    const krl = join(dir, "krl-busy");
    writeFileSync(krl, "");
    const leases = Array.from(
      { length: 20 },
      (_, n) => [leaseName(randomBase32(6), newId("lease")), n % 2 === 0 ? authority : other] as const,
    );
    const run = async (lease: string, by: typeof authority): Promise<void> => {
      const child = spawn("/bin/sh", ["-c", controlCommand(["fence", lease, krl, ...words(by.blob)])], {
        stdio: ["pipe", "ignore", "ignore"],
      });
      child.stdin.end(CONTROL_SCRIPT);
      await once(child, "close");
    };
    await Promise.all(leases.map(([lease, by]) => run(lease, by)));
    for (const [lease, by] of leases) {
      expect(valuesOf(ask(["confirm", lease, krl, ...certificateOf(lease, by)]), "revoked"), lease).toEqual(["yes"]);
    }
  });

  test("an entry goes a day after it was last asked for, so the list does not grow for ever", () => {
    const krl = join(dir, "krl-old");
    const [old, fresh] = [leaseName(install, newId("lease")), leaseName(install, newId("lease"))];
    writeFileSync(krl, "");
    writeFileSync(
      `${krl}.list`,
      `${old} ${Math.floor(Date.now() / 1000) - 86_500} ${words(authority.blob).join(" ")}\n`,
    );
    ask(["fence", fresh, krl, ...words(authority.blob)]);
    expect(readFileSync(`${krl}.list`, "utf8")).not.toContain(old);
    expect(valuesOf(ask(["confirm", old, krl, ...certificateOf(old)]), "revoked")).toEqual(["no"]);
    expect(valuesOf(ask(["confirm", fresh, krl, ...certificateOf(fresh)]), "revoked")).toEqual(["yes"]);
  });

  test("what an administrator had revoked before stays revoked, as a list of keys or as a KRL", () => {
    const lease = leaseName(install, newId("lease"));
    const theirs = certificateOf("somebody");
    for (const form of ["keys", "krl"] as const) {
      const file = join(dir, `revoked-${form}`);
      writeFileSync(`${file}.pub`, `${publicKeyLine(signerFromSeed(Buffer.alloc(32, 7)).blob)}\n`);
      if (form === "keys") writeFileSync(file, readFileSync(`${file}.pub`));
      else execFileSync("ssh-keygen", ["-q", "-k", "-f", file, `${file}.pub`]);
      ask(["fence", lease, file, ...words(authority.blob)]);
      ask(["fence", leaseName(install, newId("lease")), file, ...words(authority.blob)]);
      expect(valuesOf(ask(["confirm", lease, file, ...theirs]), "revoked"), form).toEqual(["yes"]);
    }
  });

  test("a list that is not there is an error, for sshd would let nobody in", () => {
    expect(() =>
      ask(["fence", leaseName(install, newId("lease")), join(dir, "krl-none"), ...words(authority.blob)]),
    ).toThrow("there is no file");
  });
});

describe.skipIf(skip)("the control script against hostile hosts and hostile requests", () => {
  const lease = leaseName(install, newId("lease"));
  const spare = (): string => {
    writeFileSync(join(dir, "krl-spare"), "", { flag: "a" });
    return join(dir, "krl-spare");
  };

  test("lesson 21: nothing in a request is evaluated, and nothing but the known verbs is done", () => {
    const flag = join(dir, "flag");
    for (const text of [
      `fence gk_$(touch ${flag})`,
      `fence \`touch ${flag}\``,
      `fence x; touch ${flag}`,
      "fence x\ntouch y",
      "fence 'x'",
      "fence *",
      "fence ~",
      "fence $HOME",
    ]) {
      expect(() => controlCommand(text.split(" "))).toThrow("words that are none");
      // And where somebody with the control login's certificate sends it all the same, to the forced command.
      const answer = refusal(`sh -s`, { SSH_ORIGINAL_COMMAND: `glasskey-control 1 ${text}` });
      expect(String(answer), text).toMatch(/characters|no lease/);
      expect(existsSync(flag)).toBe(false);
    }
    for (const text of [
      "",
      "id",
      "glasskey-control",
      "glasskey-control 1",
      "glasskey-control 2 list abcdef",
      "glasskey-control 1 shell",
      "glasskey-control 1 hello a b",
      "glasskey-control 1 fence ../../x /etc/x a b",
      `glasskey-control 1 fence ${lease} relative/krl a b`,
      `glasskey-control 1 fence ${lease} /etc/shadow a b`,
      `glasskey-control 1 fence ${lease} /etc/../krl a b`,
      "glasskey-control 1 list ab%",
    ]) {
      expect(refusal("sh -s", { SSH_ORIGINAL_COMMAND: text }), text).toBeInstanceOf(Error);
    }
  });

  test("a process whose name looks like an answer is no answer", async () => {
    const program = join(dir, "x\ndone confirm");
    symlinkSync("/bin/sleep", program);
    const child = spawn(program, ["1005"], { env: { LC_GLASSKEY: lease }, stdio: "ignore", detached: true });
    started.push(child);
    await once(child, "spawn");
    writeFileSync(join(dir, "krl-hostile"), "");
    await eventually(() => {
      const left = valuesOf(ask(["confirm", lease, join(dir, "krl-hostile"), ...certificateOf(lease)]), "left");
      return left.some((line) => line.startsWith(`${child.pid} `) && /^\d+ [A-Za-z0-9_.-]+$/.test(line));
    });
    ask(["revoke", lease, spare(), ...words(authority.blob)]);
    expect(alive(child.pid ?? 0)).toBe(false);
  });

  test("the script spares its own line of ancestors, whatever mark they have", () => {
    const environment = { LC_GLASSKEY: lease };
    expect(valuesOf(ask(["revoke", lease, spare(), ...words(authority.blob)], "/bin/sh", environment), "left")).toEqual(
      [],
    );
    expect(
      valuesOf(ask(["confirm", lease, "/none/krl", ...certificateOf(lease)], "/bin/sh", environment), "left"),
    ).toEqual([]);
  });

  test("an sshd that a session started is an ancestor of the script: whoever else is logged in by it is left alone", async () => {
    const [asked, out] = [join(dir, "asked"), join(dir, "answered")];
    writeFileSync(asked, CONTROL_SCRIPT);
    const command = controlCommand(["revoke", lease, spare(), ...words(authority.blob)]);
    const child = await start(
      lease,
      `env -i sleep 1011 & echo $! >${out}.other; ${command} <${asked} >${out}; mv ${out} ${out}.whole; exec sleep 1012`,
    );
    await eventually(() => existsSync(`${out}.whole`));
    expect(parseAnswer("revoke", readFileSync(`${out}.whole`, "latin1"), "").lines).toEqual([]);
    expect(alive(child.pid ?? 0)).toBe(true);
    expect(alive(Number(readFileSync(`${out}.other`, "utf8")))).toBe(true);
  });

  test("where processes of others cannot be looked into, as in a container without ptrace, nothing is proved", () => {
    const blind = (request: readonly string[]): string => {
      const args = ["--bounding-set=-all", "--", "/bin/sh", "-c", controlCommand(request)];
      const env = { PATH: "/usr/bin:/bin" };
      return spawnSync("setpriv", args, { input: CONTROL_SCRIPT, env, encoding: "latin1" }).stdout;
    };
    const nobody = spawn("/bin/sleep", ["1013"], { uid: 65_534, env: { LC_GLASSKEY: lease }, detached: true });
    started.push(nobody);
    expect(() => parseAnswer("confirm", blind(["confirm", lease, spare(), ...certificateOf(lease)]), "")).toThrow(
      "cannot be looked into",
    );
    expect(() => parseAnswer("revoke", blind(["revoke", lease, spare(), ...words(authority.blob)]), "")).toThrow(
      "cannot be looked into",
    );
    expect(() => parseAnswer("list", blind(["list", install]), "")).toThrow("cannot be looked into");
    expect(valuesOf(parseAnswer("hello", blind(["hello", "-"]), ""), "missing")).toEqual([
      "CAP_SYS_PTRACE, to look into all processes",
    ]);
    // The fence holds all the same.
    expect(valuesOf(ask(["confirm", lease, spare(), ...certificateOf(lease)]), "revoked")).toEqual(["yes"]);
  });

  test("a list that somebody else than root could put a link in the place of is not written", () => {
    const theirs = join(dir, "theirs");
    mkdirSync(theirs, { mode: 0o755 });
    const [krl, prey] = [join(theirs, "krl"), join(dir, "prey")];
    writeFileSync(krl, "something\n");
    symlinkSync(prey, `${krl}.base`);
    chownSync(theirs, 65_534, 65_534);
    expect(() => ask(["fence", lease, krl, ...words(authority.blob)])).toThrow("somebody else than root");
    expect(existsSync(prey)).toBe(false);
    chownSync(theirs, 0, 0);
    chmodSync(theirs, 0o777);
    expect(() => ask(["fence", lease, krl, ...words(authority.blob)])).toThrow("somebody else than root");
    mkdirSync(join(theirs, "below"), { mode: 0o755 });
    writeFileSync(join(theirs, "below", "krl"), "");
    expect(() => ask(["fence", lease, join(theirs, "below", "krl"), ...words(authority.blob)])).toThrow(
      "somebody else than root",
    );
  });

  test("a process that took off its mark and left its parents is not found", async () => {
    // The limit, as docs/ssh-target.md tells it: if this test fails, the page has to say something better.
    const child = await start(lease, "env -i sh -c 'sleep 1007 & echo $!'; sleep 1008 & wait");
    const table = (): string => execFileSync("ps", ["-eo", "pid=,ppid=,args="], { encoding: "utf8" });
    await eventually(() => / sleep 1007$/m.test(table()) && !/ sh -c sleep 1007 /.test(table()));
    const [, pid = "0"] = /^ *(\d+) +\d+ +sleep 1007$/m.exec(table()) ?? [];
    ask(["revoke", lease, spare(), ...words(authority.blob)]);
    expect(alive(child.pid ?? 0)).toBe(false);
    expect(alive(Number(pid))).toBe(true);
    process.kill(Number(pid), "SIGKILL");
  });

  test("a mark with more behind it, or a part of one, is another mark", async () => {
    const child = await start(lease.slice(0, -1), "sleep 1006 & wait");
    ask(["revoke", lease, spare(), ...words(authority.blob)]);
    expect(alive(child.pid ?? 0)).toBe(true);
  });

  test("answers that are cut short, of another version, or of no script at all are errors", () => {
    const good = "motd\nglasskey-control 1\nnow 1795287453\nleft 1 x\ndone confirm\n";
    expect(parseAnswer("confirm", good, "").lines).toEqual([{ word: "left", value: "1 x" }]);
    expect(() => parseAnswer("revoke", good, "")).toThrow("ended early");
    expect(() => parseAnswer("confirm", good.replace("done confirm\n", ""), "killed")).toThrow("ended early: killed");
    expect(() => parseAnswer("confirm", good.replace("now 1795287453\n", ""), "")).toThrow("ended early");
    expect(() => parseAnswer("confirm", good.replace("control 1", "control 2"), "")).toThrow("another version");
    expect(() => parseAnswer("confirm", "done confirm\n", "sh: not found")).toThrow(
      "did not run Glasskey's control script: sh: not found",
    );
    expect(() => parseAnswer("confirm", "glasskey-control 1\nnow 1795287453\nerror no such verb\n", "")).toThrow(
      "no such verb",
    );
  });

  test("it is a program too, so that it can be installed", () => {
    const file = join(dir, "control");
    writeFileSync(file, CONTROL_SCRIPT);
    chmodSync(file, 0o755);
    const answer = execFileSync(file, [controlCommand(["list", install]), "10.0.0.9 1 10.0.0.1 22"], {
      encoding: "utf8",
    });
    expect(parseAnswer("list", answer, "").lines).toEqual([]);
  });
});
