import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");

/** Where the emulator of S3 lies once {@link ensureMoto} fetched it; the folder that goes into PYTHONPATH. */
export const MOTO_PATH = join(root, "node_modules/.cache/glasskey-moto/usr/lib/python3/dist-packages");
const WITHOUT = "without python3-moto: no tests against an S3 that enforces Object Lock";

/**
 * Fetches python3-moto, an emulator of AWS, from Debian 13: Debian 12 does not have it, and its Python and libraries run
 * it. The system's own apt configuration says from where and with which keys, and is not changed: a private copy names
 * the other release, with private lists and cache, and apt checks signatures as always. Only that one package is unpacked,
 * into a folder of this project. Where the system has it installed already, or it cannot be had, nothing happens but a line.
 */
export async function ensureMoto(say: (line: string) => void): Promise<void> {
  if (existsSync(MOTO_PATH) || existsSync("/usr/lib/python3/dist-packages/moto")) return;
  if (!existsSync("/usr/bin/apt-get") || !existsSync("/usr/bin/dpkg-deb")) return;
  if ((process.env["GLASSKEY_NO_APT"] ?? "") !== "") return say(`Not fetched (GLASSKEY_NO_APT is set); ${WITHOUT}`);
  const sources = await trixieSources();
  if (sources === undefined) return say(`apt's sources name no release that could be replaced by trixie; ${WITHOUT}`);
  const cache = join(root, "node_modules/.cache");
  await mkdir(cache, { recursive: true });
  const work = await mkdtemp(join(cache, "moto-")); // beside where it goes, so that one rename makes it appear
  try {
    say("Fetching python3-moto from Debian 13 …");
    const failure = await fetchInto(work, sources);
    if (failure !== undefined) return say(`python3-moto could not be fetched: ${failure}; ${WITHOUT}`);
    await rename(join(work, "root"), join(cache, "glasskey-moto")).catch((error: unknown) => {
      if (!existsSync(MOTO_PATH)) throw error; // otherwise another run was faster
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function fetchInto(work: string, sources: { name: string; text: string }): Promise<string | undefined> {
  for (const folder of ["lists/partial", "cache/archives/partial", "deb", "root"]) {
    await mkdir(join(work, folder), { recursive: true });
  }
  await writeFile(join(work, sources.name), sources.text);
  const settings = {
    ...{ "Dir::State": work, "Dir::State::Lists": join(work, "lists"), "Dir::State::status": "/var/lib/dpkg/status" },
    ...{ "Dir::Cache": join(work, "cache"), "Dir::Etc::SourceList": join(work, sources.name) },
    ...{ "Dir::Etc::SourceParts": "/dev/null", "Acquire::Languages": "none", "APT::Sandbox::User": "root" },
    ...{ "Acquire::Retries": "2", "Acquire::http::Timeout": "30", "Acquire::https::Timeout": "30" },
  };
  const options = Object.entries(settings).flatMap(([key, value]) => ["-o", `${key}=${value}`]);
  // --error-on=any: without it, an update that reached nothing counts as a success.
  const steps: [string, readonly string[]][] = [
    ["apt-get", ["update", "-q", "--error-on=any", ...options]],
    ["apt-get", ["download", "-q", ...options, "python3-moto"]],
  ];
  for (const [program, args] of steps) {
    const { code, output } = await run(program, args, join(work, "deb"));
    if (code !== 0) return lastError(output);
  }
  const [deb] = (await readdir(join(work, "deb"))).filter((name) => name.endsWith(".deb"));
  if (deb === undefined) return "apt-get left no package";
  const { code, output } = await run("dpkg-deb", ["-x", deb, join(work, "root")], join(work, "deb"));
  return code === 0 ? undefined : lastError(output);
}

/** The system's own sources of its release (not of its security or updates), with the release's name replaced. */
async function trixieSources(): Promise<{ name: string; text: string } | undefined> {
  const release = /^VERSION_CODENAME=(\w+)$/m.exec(await readFile("/etc/os-release", "utf8").catch(() => ""))?.[1];
  if (release === undefined) return undefined;
  const deb822 = await readFile("/etc/apt/sources.list.d/debian.sources", "utf8").catch(() => "");
  const list = await readFile("/etc/apt/sources.list", "utf8").catch(() => "");
  return renamedSources(release, deb822, list);
}

/** @param deb822 text of debian.sources, @param list text of sources.list; either may be empty. */
export function renamedSources(
  release: string,
  deb822: string,
  list: string,
): { name: string; text: string } | undefined {
  const stanzas = deb822
    .split(/\n\s*\n/)
    .map((stanza) => stanza.replaceAll(/^#.*\n?/gm, ""))
    .filter((stanza) => new RegExp(`^Suites:(?:.*\\s)?${release}(?:\\s|$)`, "m").test(stanza))
    .map((stanza) =>
      stanza
        .replace(/^Suites:.*$/m, "Suites: trixie")
        .replace(/^Components:.*$/m, "Components: main")
        .trim(),
    );
  if (stanzas.length > 0) return { name: "trixie.sources", text: `${stanzas.join("\n\n")}\n` };
  const lines = list
    .split("\n")
    .map((line) => new RegExp(`^(deb\\s+(?:\\[[^\\]]*\\]\\s+)?\\S+\\s+)${release}\\s+main\\b`).exec(line)?.[1])
    .filter((start) => start !== undefined);
  return lines.length > 0
    ? { name: "trixie.list", text: lines.map((start) => `${start}trixie main\n`).join("") }
    : undefined;
}

function lastError(output: string): string {
  const lines = output.split("\n").filter((line) => line.trim() !== "");
  return (lines.findLast((line) => /^(E:|dpkg-deb: error)/.test(line)) ?? lines.at(-1) ?? "no output").slice(0, 300);
}

function run(program: string, args: readonly string[], cwd: string): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      cwd,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, LC_ALL: "C" },
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
