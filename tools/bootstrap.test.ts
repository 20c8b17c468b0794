import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const tools = import.meta.dirname;
let folder: string;
let started: ChildProcess[];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "glasskey bootstrap "));
  started = [];
});
afterEach(async () => {
  for (const child of started) if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
  await rm(folder, { recursive: true, force: true });
});

/** Runs a script in a process group of its own; `said` resolves once it has printed that text. */
function start(
  args: readonly string[],
  env: Record<string, string> = {},
): { child: ChildProcess; output: () => string; said: (text: string) => Promise<void>; exit: Promise<number | null> } {
  const child = spawn(process.execPath, args, {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  started.push(child);
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const exit = once(child, "close").then(([code]) => code as number | null);
  const said = async (text: string): Promise<void> => {
    while (!output.includes(text)) {
      if (child.exitCode !== null) throw new Error(`it ended before it said ${text}: ${output}`);
      await new Promise((done) => setTimeout(done, 10));
    }
  };
  return { child, output: () => output, said, exit };
}

describe("a supervised child", () => {
  /** Counts signals, and takes a while to clean up after the first, as a server does. */
  const COUNTS = `
    let count = 0;
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => {
      count += 1;
      if (count === 1) setTimeout(() => { console.log("cleaned up after " + count); process.exit(7); }, 400);
    });
    setInterval(() => {}, 1000);
    console.log("ready");`;

  async function supervised(script: string): Promise<ReturnType<typeof start>> {
    await writeFile(join(folder, "child.mjs"), script);
    await writeFile(
      join(folder, "parent.mjs"),
      `import { supervise } from ${JSON.stringify(join(tools, "supervise.mjs"))};
       process.exitCode = await supervise(process.execPath, [${JSON.stringify(join(folder, "child.mjs"))}], { stdio: "inherit" });`,
    );
    return start([join(folder, "parent.mjs")]);
  }

  test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "gets one %s that was sent to its parent alone",
    async (signal) => {
      const run = await supervised(COUNTS);
      await run.said("ready");
      run.child.kill(signal);
      expect(await run.exit).toBe(7);
      expect(run.output()).toContain("cleaned up after 1\n");
    },
  );

  test.each(["SIGINT", "SIGTERM"] as const)("gets one %s that was sent to the whole group", async (signal) => {
    const run = await supervised(COUNTS);
    await run.said("ready");
    process.kill(-(run.child.pid ?? 0), signal);
    expect(await run.exit).toBe(7);
    expect(run.output()).toContain("cleaned up after 1\n");
  });

  test("gets one Ctrl-C although npm passes it on a second time", async () => {
    const run = await supervised(COUNTS);
    await run.said("ready");
    process.kill(-(run.child.pid ?? 0), "SIGINT");
    await new Promise((done) => setTimeout(done, 30));
    run.child.kill("SIGINT");
    expect(await run.exit).toBe(7);
    expect(run.output()).toContain("cleaned up after 1\n");
  });

  test("passes on its exit code, and 128 + n for a signal", async () => {
    expect(await (await supervised("process.exit(3);")).exit).toBe(3);
    expect(await (await supervised('process.kill(process.pid, "SIGKILL");')).exit).toBe(137);
  });
});

describe("the bootstrap", () => {
  /**
   * A project whose npm is a script: it logs its arguments, waits `seconds`, and "installs" a Node that prints what it is
   * asked to run.
   */
  async function project(npm: { seconds?: number; fail?: string; version?: string } = {}): Promise<string> {
    const root = join(folder, "a project");
    await mkdir(join(root, "tools"), { recursive: true });
    for (const file of ["bootstrap.mjs", "install.mjs", "supervise.mjs"]) {
      await copyFile(join(tools, file), join(root, "tools", file));
    }
    await writeFile(join(root, "package-lock.json"), "{}");
    await mkdir(join(folder, "bin"), { recursive: true });
    const node = `#!/bin/sh\nif [ "$1" = --version ]; then echo ${npm.version ?? "v26.0.0"}; else echo "ran $*"; exit 5; fi\n`;
    await writeFile(join(folder, "node"), node);
    await writeFile(
      join(folder, "bin", "npm"),
      [
        "#!/bin/sh",
        `echo "$*" >>"${folder}/calls"`,
        "rm -rf node_modules",
        "mkdir -p node_modules/.bin",
        "trap 'exit 1' INT", // as npm does, instead of dying of the signal
        `sleep ${npm.seconds ?? 0}`,
        npm.fail === undefined ? "" : `echo "${npm.fail}" >&2; exit 1`,
        `cp "${folder}/node" node_modules/.bin/node`,
        "chmod +x node_modules/.bin/node",
      ].join("\n"),
    );
    await chmod(join(folder, "bin", "npm"), 0o755);
    return root;
  }
  const run = (root: string, args: readonly string[], env: Record<string, string> = {}): ReturnType<typeof start> =>
    start([join(root, "tools", "bootstrap.mjs"), ...args], {
      ...{ PATH: `${join(folder, "bin")}:${process.env["PATH"] ?? ""}`, npm_execpath: "", npm_node_execpath: "" },
      ...env,
    });
  const calls = async (): Promise<number> =>
    (await readFile(join(folder, "calls"), "utf8").catch(() => "")).split("\n").length - 1;

  test("installs once, runs the script with the project's own Node, and passes its exit code on", async () => {
    const root = await project();
    const first = run(root, ["test", "a filter", "--flag"]);
    expect(await first.exit).toBe(5);
    expect(first.output()).toContain(`ran ${join(root, "tools/test.ts")} a filter --flag`);
    expect(await run(root, ["demo"]).exit).toBe(5);
    expect(await calls()).toBe(1);
    expect(await readdir(root)).toEqual(["node_modules", "package-lock.json", "tools"]);
  });

  test("installs again when package-lock.json has changed", async () => {
    const root = await project();
    await run(root, ["demo"]).exit;
    await writeFile(join(root, "package-lock.json"), '{ "changed": true }');
    await run(root, ["demo"]).exit;
    expect(await calls()).toBe(2);
  });

  test("two at once install one time", async () => {
    const root = await project({ seconds: 1 });
    const runs = [run(root, ["demo"]), run(root, ["demo"]), run(root, ["demo"])];
    expect(await Promise.all(runs.map((one) => one.exit))).toEqual([5, 5, 5]);
    expect(await calls()).toBe(1);
  });

  test("an installation that was interrupted is done again", async () => {
    const root = await project({ seconds: 30 });
    const interrupted = run(root, ["demo"]);
    while ((await calls()) === 0) await new Promise((done) => setTimeout(done, 10));
    process.kill(-(interrupted.child.pid ?? 0), "SIGINT");
    expect(await interrupted.exit).toBe(130);
    expect(interrupted.output()).toContain("the next command starts it again");
    await project();
    expect(await run(root, ["demo"]).exit).toBe(5);
    expect(await readdir(root)).not.toContain(".install.lock");
  });

  test("a lock that a killed process left is taken over", async () => {
    const root = await project();
    const { stdout } = await promisify(execFile)("sh", ["-c", "echo $$"]);
    await writeFile(join(root, ".install.lock"), stdout); // a process that is gone
    expect(await run(root, ["demo"]).exit).toBe(5);
    await writeFile(join(root, "package-lock.json"), "[]");
    await writeFile(join(root, ".install.lock"), `${process.pid}\n`); // one that lives, under a reused id, an hour later
    await promisify(execFile)("touch", ["-d", "1 hour ago", join(root, ".install.lock")]);
    expect(await run(root, ["demo"]).exit).toBe(5);
    await expect(stat(join(root, ".install.lock"))).rejects.toThrow("ENOENT");
  });

  test("says what to do when the registry cannot be reached", async () => {
    const root = await project({ fail: "npm error code ENOTFOUND" });
    const failed = run(root, ["demo"]);
    expect(await failed.exit).toBe(1);
    expect(failed.output()).toContain("The npm registry could not be reached");
    expect(failed.output()).not.toContain("at install");
  });

  test("refuses a Node that is too old, and says which is needed", async () => {
    const root = await project({ version: "v22.1.0" });
    const failed = run(root, ["demo"]);
    expect(await failed.exit).toBe(1);
    expect(failed.output()).toContain("is v22.1.0; Glasskey needs 24.11 or later");
  });

  test("overrides npm settings that would leave out parts, and says so", async () => {
    const root = await project();
    const odd = run(root, ["demo"], { npm_config_omit: "optional", npm_config_ignore_scripts: "true" });
    expect(await odd.exit).toBe(5);
    expect(odd.output()).toContain("omit=optional, ignore-scripts=true");
    expect(await readFile(join(folder, "calls"), "utf8")).toContain("--include=optional");
  });

  test("names the commands that there are when it is given another", async () => {
    const root = await project();
    const wrong = run(root, ["constructor"]);
    expect(await wrong.exit).toBe(2);
    expect(wrong.output()).toContain("demo|test|bench");
    expect(await calls()).toBe(0);
  });
});

// With exec the shell is replaced: npm signals its child only, and a shell in between would die alone.
test("every npm script is the bootstrap itself, without a shell in between", async () => {
  const { scripts } = JSON.parse(await readFile(join(dirname(tools), "package.json"), "utf8")) as {
    scripts: Record<string, string>;
  };
  expect(scripts).toEqual(
    Object.fromEntries(Object.keys(scripts).map((name) => [name, `exec node tools/bootstrap.mjs ${name}`])),
  );
});
