import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, rm, writeFile } from "node:fs/promises";

/** One package of Debian's that something here uses when it is there. */
export interface DebianPackage {
  name: string;
  /** What is left out without it, to be read after "without it: ". */
  without: string;
  /** A service that its installation would start; it is stopped and disabled again, for only its program is wanted. */
  service?: string;
}

export const FOR_DEMO: readonly DebianPackage[] = [
  { name: "openssh-server", without: "the part with SSH and a real sshd", service: "ssh" },
];

export const FOR_TESTS: readonly DebianPackage[] = [
  { name: "openssh-server", without: "the tests of SSH against a real sshd", service: "ssh" },
  { name: "openssh-client", without: "the tests of SSH with OpenSSH's own clients" },
  { name: "sudo", without: "the tests of a control login that may run one script" },
  { name: "rsync", without: "the tests with rsync" },
  { name: "git", without: "the tests with git over SSH" },
  { name: "mosh", without: "the test of how mosh is refused" },
  { name: "python3-paramiko", without: "the tests with Python's paramiko" },
  { name: "ansible-core", without: "the test with Ansible" },
  { name: "postgresql", without: "the tests against a second PostgreSQL version, and with psql and pg_dump" },
  { name: "postgresql-contrib", without: "the tests with pgbench" },
  { name: "python3-psycopg2", without: "the tests with Python's psycopg2" },
  {
    name: "prometheus-alertmanager",
    without: "the test against a real Alertmanager",
    service: "prometheus-alertmanager",
  },
  { name: "rsyslog", without: "the tests against a real rsyslog", service: "rsyslog" },
  { name: "rsyslog-gnutls", without: "the tests of syslog over TLS against a real rsyslog" },
  { name: "prometheus", without: "the tests with promtool and a real Prometheus", service: "prometheus" },
  // What Debian 13's python3-moto needs of Debian 12 (tools/trixie.ts fetches that one).
  { name: "python3-flask", without: "the tests against an S3 that enforces Object Lock" },
  { name: "python3-flask-cors", without: "the tests against an S3 that enforces Object Lock" },
  { name: "python3-boto3", without: "the tests against an S3 that enforces Object Lock" },
  { name: "python3-responses", without: "the tests against an S3 that enforces Object Lock" },
  { name: "python3-antlr4", without: "the tests against an S3 that enforces Object Lock" },
  { name: "chromium", without: "the tests of pages in a browser" },
];

export const FOR_BENCHMARKS: readonly DebianPackage[] = [
  ...FOR_TESTS,
  { name: "pgbouncer", without: "the comparison with pgbouncer", service: "pgbouncer" },
];

const NO_MAIN_CLUSTER = "/etc/postgresql-common/createcluster.d/glasskey.conf";

/**
 * Installs what is missing with apt-get, where that is possible: on Debian, as root, and not switched off by
 * `GLASSKEY_NO_APT=1`. Otherwise says what is missing and what is left out for it. Never fails: everything that needs
 * one of these packages looks for its program. Says nothing when nothing is missing. Leaves no service running.
 * @returns the names of what is still missing.
 */
export async function ensureDebianPackages(
  packages: readonly DebianPackage[],
  say: (line: string) => void,
): Promise<readonly string[]> {
  if (!existsSync("/usr/bin/dpkg-query")) {
    say(`Not a Debian system: programs are used where PATH has them (${packages.map((p) => p.name).join(", ")}).`);
    return [];
  }
  const missing = await notInstalled(packages);
  if (missing.length === 0) return [];
  const names = missing.map((p) => p.name);
  const why = whyNot();
  if (why !== undefined) {
    say(`Not installed (${why}): ${names.join(" ")}. To have them: apt-get install ${names.join(" ")}`);
    for (const { name, without } of missing) say(`  without ${name}: no ${without.replace(/^the /, "")}`);
    return names;
  }
  say(`Installing Debian packages: ${names.join(" ")} …`);
  const failure = await install(missing);
  if (failure === undefined) return [];
  const left = await notInstalled(missing);
  say(`apt-get failed: ${failure}`);
  for (const { name, without } of left) say(`  without ${name}: no ${without.replace(/^the /, "")}`);
  return left.map((p) => p.name);
}

function whyNot(): string | undefined {
  if ((process.env["GLASSKEY_NO_APT"] ?? "") !== "") return "GLASSKEY_NO_APT is set";
  if (process.getuid?.() !== 0) return "not root";
  return existsSync("/usr/bin/apt-get") ? undefined : "no apt-get";
}

async function notInstalled(packages: readonly DebianPackage[]): Promise<readonly DebianPackage[]> {
  const format = "-f=${Package} ${db:Status-Status}\n";
  const { output } = await run("dpkg-query", ["-W", format, ...packages.map((p) => p.name)]);
  const present = new Set(output.split("\n").filter((line) => line.endsWith(" installed")));
  return packages.filter((p) => !present.has(`${p.name} installed`));
}

async function install(packages: readonly DebianPackage[]): Promise<string | undefined> {
  // Debian creates and starts a PostgreSQL cluster on installation; only the programs are wanted here.
  const holdCluster = !existsSync("/usr/bin/pg_createcluster");
  if (holdCluster) {
    await mkdir("/etc/postgresql-common/createcluster.d", { recursive: true });
    await writeFile(NO_MAIN_CLUSTER, "create_main_cluster = false\n");
  }
  const deaf = (): void => {}; // apt-get has the signal too and ends cleanly; then this goes on to tidy up
  process.on("SIGINT", deaf);
  process.on("SIGTERM", deaf);
  try {
    const args = ["install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"];
    const names = packages.map((p) => p.name);
    let result = await run("apt-get", [...args, ...names]);
    if (result.code !== 0) {
      // Most often there are no package lists yet, or they are too old.
      const update = await run("apt-get", ["update", "-q", "-o", "DPkg::Lock::Timeout=300"]);
      if (update.code === 0) result = await run("apt-get", [...args, ...names]);
      else result = update;
    }
    for (const { service } of packages) {
      if (service === undefined) continue;
      await run("invoke-rc.d", [service, "stop"]);
      await run("update-rc.d", [service, "disable"]);
    }
    return result.code === 0 ? undefined : lastError(result.output);
  } finally {
    process.off("SIGINT", deaf);
    process.off("SIGTERM", deaf);
    if (holdCluster) await rm(NO_MAIN_CLUSTER, { force: true });
  }
}

function lastError(output: string): string {
  const lines = output.split("\n").filter((line) => line.trim() !== "");
  return (lines.findLast((line) => /^(E:|dpkg: error)/.test(line)) ?? lines.at(-1) ?? "no output").slice(0, 300);
}

function run(program: string, args: readonly string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" },
    });
    let output = "";
    const keep = (chunk: Buffer): void => {
      output = (output + chunk.toString("utf8")).slice(-20_000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", (error) => resolve({ code: 127, output: error.message }));
    child.on("close", (code) => resolve({ code: code ?? 1, output }));
  });
}
