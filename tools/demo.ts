// `npm run demo`: the main job from one end to the other, on real PostgreSQL servers, with the real command line.
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { paragraph } from "../cli/src/output.ts";
import { describe, GlassError } from "../server/src/core/errors.ts";
import { readConfig } from "../server/src/config.ts";
import { hashSecret, newPersonSecret } from "../server/src/identity/secrets.ts";
import { startServer, type RunningServer } from "../server/src/main.ts";
import { lockFolder, type Lock } from "../server/src/recording/journal-files.ts";
import { freePort } from "../server/src/store/cluster.ts";
import { ensureDebianPackages, FOR_DEMO } from "./debian.ts";
import { demoSshdDir, noDemoSshd, startDemoSshd, type DemoSshd } from "./demo-sshd.ts";
import { startDemoTarget, type DemoTarget } from "./demo-target.ts";

const root = dirname(import.meta.dirname);
const values = readArguments();
const dir = values.dir ?? join(root, ".demo");

function readArguments(): { once: boolean; dir?: string | undefined } {
  try {
    const { values: given } = parseArgs({ options: { once: { type: "boolean" }, dir: { type: "string" } } });
    // `npm run demo --once` gives the flag to npm, which passes it on like this.
    return { once: given.once ?? process.env["npm_config_once"] === "true", dir: given.dir };
  } catch (error) {
    console.error(`${describe(error).split(". ")[0] ?? ""}\n  Use: npm run demo [-- --once] [--dir DIR]`);
    return process.exit(2);
  }
}

const hostDir = demoSshdDir(dir);
const home = (person: string): string => join(dir, "home", person);
const glass = join(root, "cli/bin/glass.mjs");
const witnessDir = join(dir, "witness");
const witnessPolicy = join(dir, "witnesses.policy");
const colour = process.stdout.isTTY && process.env["NO_COLOR"] === undefined;
const columns = process.stdout.columns ?? 0;
const INDENT = 4; // of what the programs say
const dim = (text: string): string => (colour ? `\u001B[2m${text}\u001B[22m` : text);
const bold = (text: string): string => (colour ? `\u001B[1m${text}\u001B[22m` : text);

/** A terminal that was closed takes no text; that must not keep anything from being stopped. */
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
const complain = (line: string): void => void process.stderr.write(`${line}\n`);

class Interrupted extends Error {}
class StepFailed extends Error {}

let interrupted = false;
const interruption = Promise.withResolvers<never>();
interruption.promise.catch(() => {});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => {
    if (!interrupted && !values.once) complain(dim("Stopping after this step …"));
    interrupted = true;
    interruption.reject(new Interrupted());
  });
}

/** Runs one step, and prints how long it took. An interrupt waits for the step, so that nothing it started is left. */
async function step<T>(title: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now();
  const result = await work();
  const took = dim(`${Math.round(performance.now() - started)} ms`);
  for (const line of paragraph(`${colour ? "\u001B[32m✓\u001B[39m" : "✓"} ${title} ${took}`, 0)) console.log(line);
  if (interrupted) throw new Interrupted();
  return result;
}

interface Finished {
  code: number;
  stdout: string;
  stderr: string;
}

/** `glass …` as a person would type it, in a process of its own. */
function run(person: string, args: readonly string[], input = ""): Promise<Finished> {
  const child = spawn(process.execPath, [glass, ...args], {
    env: {
      ...process.env,
      GLASSKEY_HOME: home(person),
      NO_COLOR: "1",
      COLUMNS: columns > 0 ? `${columns - INDENT}` : "",
    },
    detached: true,
  });
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  return finished(child);
}

/** Any other program, as a person would type it. */
function runProgram(program: string, args: readonly string[]): Promise<Finished> {
  return finished(spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], detached: true }));
}

function finished(child: ChildProcess): Promise<Finished> {
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ["", ""];
    child.stdout?.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr?.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code: code ?? 1, stdout, stderr }));
  });
}

async function must(person: string, args: readonly string[], input?: string): Promise<string> {
  const { code, stdout, stderr } = await run(person, args, input);
  if (code !== 0) throw new StepFailed(`glass ${args[0] ?? ""} failed (${code}):\n${stderr}${stdout}`);
  return stdout;
}

function check(held: boolean, what: string, seen: string): void {
  if (!held) throw new StepFailed(`${what}; seen instead:\n${seen}`);
}

const show = (text: string): void =>
  console.log(
    text
      .trimEnd()
      .split("\n")
      .map((line) => " ".repeat(INDENT) + line)
      .join("\n"),
  );

/** Everything an earlier demo left, its PostgreSQL servers included, where it was killed before it could stop them. */
async function clean(): Promise<void> {
  for (const pidFile of [join(dir, "data/store/postmaster.pid"), join(dir, "target/data/postmaster.pid")]) {
    if (!existsSync(pidFile)) continue;
    const [pid, dataDir] = readFileSync(pidFile, "utf8").split("\n");
    const command = `/proc/${pid}/cmdline`;
    if (existsSync(command) && !readFileSync(command, "utf8").includes(dataDir ?? "?")) continue; // the number is another's now
    try {
      process.kill(Number(pid), "SIGQUIT");
      for (let i = 0; i < 200; i += 1) {
        process.kill(Number(pid), 0);
        await new Promise((done) => setTimeout(done, 25));
      }
    } catch {
      // gone
    }
  }
  const sshd = join(hostDir, "sshd.pid");
  const pid = existsSync(sshd) ? readFileSync(sshd, "utf8").trim() : "";
  const command = `/proc/${pid}/cmdline`;
  if (pid !== "" && existsSync(command) && readFileSync(command, "utf8").includes(join(dirname(sshd), "sshd_config")))
    process.kill(Number(pid), "SIGTERM");
  rmSync(hostDir, { recursive: true, force: true });
  for (const name of existsSync(dir) ? readdirSync(dir) : [])
    if (name !== "lock") rmSync(join(dir, name), { recursive: true, force: true });
}

/** What ann may do on web-1: two commands and one file, and no shell; a shell where bob says yes. */
function sshPolicy(host: DemoSshd): Record<string, string> {
  return {
    "targets/web-1.yaml": `target: web-1
kind: ssh
summary: The machine that serves the shop's checkout
config:
  host: 127.0.0.1
  port: ${host.port}
  hostKeys: { pin: [${JSON.stringify(host.hostKey)}] }
  control: { user: ${host.user}, revokedKeys: ${host.revokedKeys} }
`,
    "playbooks/web-repair.yaml": `playbook: web-repair
summary: Look at the checkout's log, and mend its settings
target: web-1
scope:
  user: ${host.user}
  commands: ["uptime", "tail -n * ${host.app.log}"]
  sftp: { read: ["${host.app.log}", "${host.app.settings}"], write: ["${host.app.settings}"] }
who: { group: payments }
when: { reason: [customer-impact, data-loss, security] }
approve: { need: 0 }
time: { max: 45m, idle: 15m }
`,
    "playbooks/web-shell.yaml": `playbook: web-shell
summary: A shell on web-1, with the consent of a lead
target: web-1
scope: { user: ${host.user}, shell: true }
who: { group: payments }
when: { reason: [customer-impact, data-loss, security] }
approve: { need: 1, from: { group: payments-leads }, within: 15m }
time: { max: 30m, idle: 10m }
`,
  };
}

async function writePolicy(
  target: DemoTarget,
  host: DemoSshd | undefined,
  people: Record<string, { roles: string; groups: string; secret: string }>,
): Promise<void> {
  const lines = await Promise.all(
    Object.entries(people).map(
      async ([name, { roles, groups, secret }]) =>
        `- { name: ${name}, roles: [${roles}], ${groups === "" ? "" : `groups: [${groups}], `}secret: ${await hashSecret(secret)} }`,
    ),
  );
  const files: Record<string, string> = {
    "policy.yaml": `# What holds for all playbooks: the reason codes, and what a playbook says where it says nothing itself.
reasons:
  customer-impact: Customers cannot use the product, or see wrong data
  data-loss: Data is being lost or damaged
  security: Somebody is where they must not be
`,
    "people.yaml": `# The demo's people; their secrets are in demo-secrets.txt.\n${lines.join("\n")}\n`,
    "targets/orders-prod.yaml": `target: orders-prod
kind: postgres
summary: Orders and payments of the shop
config:
  host: localhost
  port: ${target.port}
  tls: { ca: ${JSON.stringify(target.caFile)} }
  admin: { user: glasskey, password: ${JSON.stringify(`\${file:${target.passwordFile}}`)} }
  databases: [orders]
`,
    "playbooks/orders-db-repair.yaml": `playbook: orders-db-repair
summary: Repair customer orders while checkout is broken
target: orders-prod
scope: { role: orders_rw, never: [drop, truncate, grant] }
who: { group: payments }
when: { reason: [customer-impact, data-loss, security] }
approve: { need: 0 }
time: { max: 45m, idle: 15m, extend: 2x30m }
`,
    "playbooks/payments-db-repair.yaml": `playbook: payments-db-repair
summary: Correct payments, with the consent of a lead
target: orders-prod
scope: { role: orders_rw, never: [drop, truncate, grant, delete] }
who: { group: payments }
when: { reason: [customer-impact, data-loss, security] }
approve: { need: 1, from: { group: payments-leads }, within: 15m }
time: { max: 30m, idle: 10m }
`,
  };
  Object.assign(files, host === undefined ? {} : sshPolicy(host));
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, "policy", name)), { recursive: true });
    await writeFile(join(dir, "policy", name), text);
  }
}

interface Parts {
  target?: DemoTarget;
  host?: DemoSshd;
  server?: RunningServer;
  witness?: Witness;
}

interface Witness {
  readonly child: ChildProcess;
  readonly vkey: string;
  readonly url: string;
}

const WITNESS_START_MS = 30_000;

/** `glass witness` in a process of its own, as another team would run it elsewhere. */
async function startWitness(): Promise<Witness> {
  const args = [glass, "witness", witnessDir, "--listen", "127.0.0.1:0", "--name", "demo.example/witness"];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"], detached: true });
  const said = Promise.withResolvers<Witness>();
  let text = "";
  const listen = (chunk: Buffer): void => {
    text += chunk.toString();
    const [vkey, url] = [/key: (\S+)/.exec(text)?.[1], /Listening on (\S+)/.exec(text)?.[1]];
    if (vkey !== undefined && url !== undefined) said.resolve({ child, vkey, url });
  };
  child.stdout.on("data", listen);
  child.stderr.on("data", listen);
  child.once("error", said.reject);
  child.once("exit", () => said.reject(new StepFailed(`glass witness ended:\n${text}`)));
  const late = setTimeout(() => said.reject(new StepFailed(`glass witness is not ready:\n${text}`)), WITNESS_START_MS);
  try {
    return await said.promise;
  } catch (error) {
    await stopChild(child);
    throw error;
  } finally {
    clearTimeout(late);
  }
}

async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  await gone;
}

async function demo(parts: Parts): Promise<void> {
  console.log(
    `${bold("Glasskey")}: break the glass on a production database, and prove afterwards\nthat nothing is left.\n`,
  );
  const target = await step("a PostgreSQL plays production: orders-prod, with data in it", async () => {
    return (parts.target = await startDemoTarget({ dir: join(dir, "target") }));
  });
  const noHost = noDemoSshd();
  const host =
    noHost === undefined
      ? await step("an sshd plays a production host: web-1", async () => {
          return (parts.host = await startDemoSshd(hostDir));
        })
      : undefined;
  if (noHost !== undefined) console.log(dim(`  without a host to open by SSH: ${noHost}`));
  const people = {
    ann: { roles: "requester", groups: "payments", secret: newPersonSecret() },
    bob: { roles: "approver", groups: "payments-leads", secret: newPersonSecret() },
    sam: { roles: "security_officer", groups: "", secret: newPersonSecret() },
    ida: { roles: "auditor, admin", groups: "", secret: newPersonSecret() },
  };
  const witness = await step(
    "a witness starts: another program, which will remember how far the log went",
    async () => {
      return (parts.witness = await startWitness());
    },
  );
  const server = await step("Glasskey starts, on an embedded PostgreSQL of its own", async () => {
    await writePolicy(target, host, people);
    await writeFile(
      join(dir, "demo-secrets.txt"),
      Object.entries(people)
        .map(([name, { secret }]) => `${name} ${secret}\n`)
        .join(""),
      { mode: 0o600 },
    );
    await writeFile(
      join(dir, "glasskey.yaml"),
      `listen: { api: "127.0.0.1:${await freePort(7443)}", postgres: "127.0.0.1:${await freePort(7432)}", ssh: "127.0.0.1:${await freePort(7422)}" }
log:
  witnesses:
    need: 1
    of:
      - { key: ${witness.vkey}, url: ${witness.url} }
`,
    );
    return (parts.server = await startServer(readConfig(join(dir, "glasskey.yaml")), (line) =>
      // The witness is told of this log in the next line, once its key is known; web-1 is told whom to trust later on.
      line.startsWith("no witness says") || line.startsWith("orphan sweep of web-1 waits")
        ? undefined
        : console.error(`  ${dim(line)}`),
    ));
  });
  await must("ida", ["witness", "add-log", witnessDir, server.vkey]);
  await writeFile(join(dir, "log.vkey"), `${server.vkey}\n`);
  await writeFile(witnessPolicy, `log ${server.vkey}\nwitness demo ${witness.vkey}\nquorum demo\n`);
  show(
    `${target.rows.toLocaleString("en")} rows in orders-prod; ann is on call, bob leads, sam is security officer, ida audits`,
  );

  await step("ann logs in", async () => {
    for (const [name, { secret }] of Object.entries(people))
      await must(name, ["login", name, "--server", server.url, "--ca", server.caFile], secret);
  });
  const started = performance.now();
  const grant = await step("ann breaks the glass: a role is minted for this one use", async () => {
    const out = await must("ann", [
      "break",
      "orders-db-repair",
      "--reason",
      "customer-impact",
      "--why",
      "checkout is stuck, 212 orders hang",
      "--json",
    ]);
    return (JSON.parse(out) as { grant: string }).grant;
  });
  const psql =
    existsSync("/usr/bin/psql") ||
    (process.env["PATH"] ?? "").split(":").some((folder) => existsSync(join(folder, "psql")));
  const query = (sql: string): Promise<Finished> =>
    run("ann", [
      "connect",
      grant,
      "--",
      ...(psql
        ? ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-c", sql]
        : [process.execPath, join(root, "tools/demo-query.ts"), sql]),
    ]);
  await step(`first rows from production, through the gateway, with ${psql ? "psql" : "node-postgres"}`, async () => {
    const seen = await query("select status, count(*) from orders group by status order by 2 desc");
    check(
      seen.code === 0 && /stuck\s*\|\s*212/.test(seen.stdout),
      "the query should show 212 stuck orders",
      seen.stdout + seen.stderr,
    );
    show(seen.stdout);
  });
  show(
    dim(`${Math.round(performance.now() - started)} ms from the first key to the first row, three processes included`),
  );
  await step("she repairs the orders", async () => {
    const seen = await query("update orders set status = 'open' where status = 'stuck'");
    check(
      seen.code === 0 && seen.stdout.includes("UPDATE 212"),
      "212 orders should be repaired",
      seen.stdout + seen.stderr,
    );
    show(seen.stdout);
  });
  await step("what the playbook does not allow is refused before it reaches the target", async () => {
    const seen = await query("drop table payments");
    check(
      seen.code !== 0 && /out of scope|playbook|drop/i.test(seen.stderr),
      "DROP TABLE should be refused",
      seen.stdout + seen.stderr,
    );
    show(seen.stderr.slice(Math.max(0, seen.stderr.indexOf("ERROR:"))));
  });
  const lease = await roleOf(target);
  await step("ann ends the grant; it is closed only when the target itself says that nothing is left", async () => {
    const seen = await run("ann", ["end", grant]);
    check(
      seen.code === 0 && seen.stdout.includes("28P01"),
      "the end should come with its proof",
      seen.stdout + seen.stderr,
    );
    show(seen.stdout);
  });
  await step("seen from the side, as the database's superuser: no role, no session", async () => {
    check(
      lease.length === 1 && (await roleOf(target)).length === 0,
      "the minted role should be gone",
      lease.join(", "),
    );
  });
  await step("ida, the auditor, replays what was done", async () => {
    const sessions = JSON.parse(await must("ida", ["sessions", grant, "--json"])) as {
      sessions: { session: string; statements: number; refused: number }[];
    };
    const replays = await Promise.all(sessions.sessions.map(({ session }) => must("ida", ["replay", session])));
    const all = replays.join("");
    check(
      all.includes("UPDATE 212") && all.includes("drop table payments"),
      "the recordings should hold every statement",
      all,
    );
    show(replays.find((text) => text.includes("UPDATE 212")) ?? "");
  });
  if (host !== undefined) await sshDemo(host);
  await step(
    "the whole log and every recording verify offline, with code that knows nothing of the server, and the witness agrees",
    async () => {
      const seen = await verifyLog(server);
      show(seen.stdout);
    },
  );

  console.log(`\n${bold("Every step held.")}`);
}

/** The same by SSH: a host that trusts one line, plain ssh and scp, and a playbook without a shell. */
async function sshDemo(host: DemoSshd): Promise<void> {
  await step("ida puts the one line on web-1 that lets Glasskey sign for it, and checks", async () => {
    const setup = JSON.parse(await must("ida", ["target", "setup", "web-1", "--json"])) as {
      steps: { text: string }[];
    };
    const line = setup.steps.map(({ text }) => text.trim()).find((text) => /^ssh-ed25519 \S+/.test(text));
    check(line !== undefined, "the set-up should have the authority's line", JSON.stringify(setup));
    await host.trust(line ?? "");
    show(await must("ida", ["target", "check", "web-1"]));
  });
  const grant = await step("ann breaks the glass on web-1: no key of hers is there, before or afterwards", async () => {
    const args = ["break", "web-repair", "--reason", "customer-impact", "--why", "checkout is stuck", "--json"];
    return (JSON.parse(await must("ann", args)) as { grant: string }).grant;
  });
  await step("a command of the playbook runs there, through the gateway, with plain ssh", async () => {
    const seen = await run("ann", ["connect", grant, "--", "tail", "-n", "2", host.app.log]);
    check(
      seen.code === 0 && seen.stdout.includes("pool_size 4"),
      "tail should show the log",
      seen.stdout + seen.stderr,
    );
    show(seen.stdout);
  });
  await step("another one, and a shell, are refused before they reach the host", async () => {
    const other = await run("ann", ["connect", grant, "--", "cat", "/etc/shadow"]);
    check(other.code !== 0 && !other.stdout.includes("root:"), "cat should be refused", other.stdout + other.stderr);
    const shell = await run("ann", ["connect", grant], "id\n");
    check(shell.code !== 0 && !shell.stdout.includes("uid="), "a shell should be refused", shell.stdout + shell.stderr);
    show(other.stderr);
  });
  await step("she mends a file with plain scp", async () => {
    const config = (await must("ann", ["connect", grant, "--config"])).trim();
    const mended = join(dir, "checkout.conf");
    await writeFile(mended, "pool_size = 40\n");
    const seen = await runProgram("scp", ["-F", config, mended, `${grant}:${host.app.settings}`]);
    const there = readFileSync(host.app.settings, "utf8");
    check(
      seen.code === 0 && there === "pool_size = 40\n",
      "the file should be on web-1",
      seen.stdout + seen.stderr + there,
    );
  });
  await step("ann ends the grant; the host itself is asked, and a certificate of hers is refused", async () => {
    const seen = await run("ann", ["end", grant]);
    check(
      seen.code === 0 && seen.stdout.includes("Proof"),
      "the end should come with its proof",
      seen.stdout + seen.stderr,
    );
    show(seen.stdout);
  });
  await step("ida sees what was run, and which file was written, with its SHA-256", async () => {
    const { sessions } = JSON.parse(await must("ida", ["sessions", grant, "--json"])) as {
      sessions: { session: string }[];
    };
    const replays = sessions.toReversed().map(({ session }) => must("ida", ["replay", session])); // newest first
    const all = (await Promise.all(replays)).join("");
    check(
      all.includes("tail") && all.includes("/etc/shadow") && all.includes(host.app.settings),
      "the recordings should hold commands, refusals and the file",
      all,
    );
    show(all);
  });
}

async function roleOf(target: DemoTarget): Promise<readonly string[]> {
  const { default: pg } = await import("pg");
  const client = new pg.Client({ host: "127.0.0.1", port: target.port, ...target.superuser, database: "postgres" });
  await client.connect();
  try {
    const { rows } = await client.query<{ rolname: string }>(
      String.raw`select rolname from pg_roles where rolname like 'gk\_______\_%' union all select usename from pg_stat_activity where usename like 'gk\_______\_%'`,
    );
    return rows.map((row) => row.rolname);
  } finally {
    await client.end();
  }
}

/** The log is exported every two seconds; what the demo did must be in the folder, and the witness must have seen it. */
async function verifyLog(server: RunningServer): Promise<Finished> {
  const { size } = JSON.parse(await must("ida", ["log", "--from", "0", "--json"])) as { size: number };
  for (let i = 0; ; i += 1) {
    const witnessed = ["--witnesses", witnessPolicy, "--max-unwitnessed", "0"];
    const seen = await run("ida", ["verify", server.logDir, "--key", server.vkey, ...witnessed]);
    const entries = Number(/(\d+) entr/.exec(seen.stdout)?.[1] ?? 0);
    if (seen.code === 0 && entries >= size) return seen;
    check(i < 40, "the log should verify", seen.stdout + seen.stderr);
    await new Promise((done) => setTimeout(done, 250));
  }
}

function nextCommands(host: DemoSshd | undefined): string {
  const onHost = `  glass break web-repair --reason customer-impact \\
    --why "a look around" -- uptime         # on web-1, by SSH
  glass break web-shell --reason customer-impact --no-wait \\
    --why "a look around"                   # a shell there; needs bob
`;
  return `
Glasskey goes on running here. In another terminal:

  D=${quote(resolve(dir))}
  alias glass=${quote(`node ${quote(glass)}`)}
  export GLASSKEY_HOME=$D/home/ann          # you are ann
  glass ls
  glass break orders-db-repair --reason customer-impact \\
    --why "a look around" -- psql
${host === undefined ? "" : onHost}  glass break payments-db-repair --reason data-loss --no-wait \\
    --why "wrong amount"                    # needs bob, and says the GRANT

As bob, ida or sam, with their own homes beside ann's:

  GLASSKEY_HOME=$D/home/bob glass approve GRANT
  GLASSKEY_HOME=$D/home/ida glass sessions  # then: watch or replay SESSION
  GLASSKEY_HOME=$D/home/ida glass log --follow
  GLASSKEY_HOME=$D/home/ida glass log status
  GLASSKEY_HOME=$D/home/sam glass kill GRANT

As anybody, without a server:

  glass verify "$D/data/log" --key "$D/log.vkey" \\
    --witnesses "$D/witnesses.policy"

Ctrl-C stops everything.`;
}

function quote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

async function main(): Promise<number> {
  await mkdir(dir, { recursive: true });
  let lock: Lock;
  try {
    lock = lockFolder(dir);
  } catch {
    console.error(
      `A demo is running in ${dir} already. Stop it there with Ctrl-C, or use another folder: npm run demo -- --dir DIR`,
    );
    return 1;
  }
  const parts: Parts = {};
  let farewell: string | undefined;
  try {
    await clean();
    await ensureDebianPackages(FOR_DEMO, complain);
    await demo(parts);
    if (values.once || parts.server === undefined) return 0;
    console.log(nextCommands(parts.host));
    const failure = await Promise.race([interruption.promise, parts.server.failed]);
    console.error(`Glasskey cannot go on: ${describe(failure)}`);
    return 1;
  } catch (error) {
    if (error instanceof Interrupted) {
      console.log("\nStopping.");
      farewell = `Stopped. Nothing runs any more; the next demo makes ${dir} anew.`;
      return values.once ? 130 : 0;
    }
    console.error(`\n✗ ${error instanceof Error ? error.message : String(error)}`);
    if (error instanceof GlassError && error.next !== undefined) console.error(`  ${error.next}`);
    return 1;
  } finally {
    await parts.server?.stop();
    await parts.target?.stop();
    await parts.host?.stop();
    if (!hostDir.startsWith(resolve(dir))) rmSync(hostDir, { recursive: true, force: true });
    if (parts.witness !== undefined) await stopChild(parts.witness.child);
    lock.release();
    if (farewell !== undefined) console.log(farewell);
  }
}

process.exitCode = await main();
