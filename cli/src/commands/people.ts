import { readFileSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { Writable } from "node:stream";
import type { PlaybookView, Whoami } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { CliError, usage } from "../errors.ts";
import { forgetToken, lastServer, readLogin, saveLogin } from "../home.ts";
import { clock, duration, paragraph, plain, table } from "../output.ts";
import { sayStanding } from "./standing.ts";

export async function login({ args, options, out }: Invocation): Promise<number> {
  const name = args[0] ?? "";
  const last = lastServer();
  const server = (options["server"] as string | undefined) ?? process.env["GLASSKEY_SERVER"] ?? last?.server;
  if (server === undefined) throw usage("which server?", "glass login NAME --server https://HOST:7443 --ca FILE");
  const caFile = (options["ca"] as string | undefined) ?? process.env["GLASSKEY_CA"];
  const ca = caFile === undefined ? (server === last?.server ? last.ca : undefined) : readText(caFile, "the CA file");
  const target = { server, ...(ca === undefined ? {} : { ca }) };
  const secret = await readSecret(options["secret-file"] as string | undefined, `Secret of ${name}: `);
  const answer = await call<{ token: string; person: string; expiresAt: string }>(target, "POST", "/v1/login", {
    name,
    secret,
  });
  saveLogin({ ...target, ...answer });
  out.value({ person: answer.person, expiresAt: answer.expiresAt, server });
  out.say(`Logged in as ${out.bold(answer.person)} until ${clock(answer.expiresAt)}. Next: glass ls`);
  return 0;
}

export async function logout({ out }: Invocation): Promise<number> {
  await call(readLogin(), "POST", "/v1/logout").catch((error: unknown) => {
    if (!(error instanceof CliError) || error.code !== "unauthenticated") throw error;
  });
  forgetToken();
  out.value({});
  out.say("Logged out.");
  return 0;
}

export async function whoami({ out }: Invocation): Promise<number> {
  const login = readLogin();
  const me = await call<Whoami>(login, "GET", "/v1/whoami");
  out.value({ ...me, server: login.server });
  out.say(`${out.bold(me.person)} at ${login.server}, until ${clock(me.expiresAt)}`);
  out.say(`  roles   ${me.roles.join(", ") || "none: you can do nothing here"}`);
  out.say(`  groups  ${me.groups.join(", ") || "none"}`);
  return 0;
}

export async function ls({ out }: Invocation): Promise<number> {
  const login = readLogin();
  const { playbooks } = await call<{ playbooks: PlaybookView[] }>(login, "GET", "/v1/playbooks");
  if (!out.json) await sayStanding(login, out);
  out.value({ playbooks });
  if (playbooks.length === 0) out.say("There is no playbook. An operator writes them into the policy folder.");
  const lines = table(
    playbooks.map((playbook) => [
      playbook.may ? out.green("✓") : out.red("✗"),
      playbook.may ? out.bold(playbook.playbook) : playbook.playbook,
      playbook.target,
      playbook.may
        ? playbook.need === 0
          ? "opens at once"
          : `needs ${playbook.need} approval${playbook.need === 1 ? "" : "s"}${playbook.quorum.length > 0 ? " (quorum)" : ""}`
        : "not now, or not for you",
      `up to ${duration(playbook.maxMs)}`,
    ]),
  );
  playbooks.forEach((playbook, i) => {
    out.sayAll(lines[i] ?? []);
    out.sayAll(paragraph(plain(playbook.summary), 4));
    for (const reason of playbook.reasons) out.sayAll(paragraph(plain(reason), 4).map(out.dim));
    for (const why of playbook.quorum) out.sayAll(paragraph(plain(why), 4).map(out.yellow));
    if (playbook.unknown.length > 0) {
      const what = `Nobody can tell now whether you are ${playbook.unknown.join(" or ")}, so a human has to agree.`;
      out.sayAll(paragraph(plain(what), 4).map(out.yellow));
    }
    for (const condition of conditions(playbook)) out.sayAll(paragraph(plain(condition), 4).map(out.dim));
    const incident = playbook.incident.length === 0 ? "" : " --incident REF";
    const line = `glass break ${playbook.playbook} --reason ${playbook.reasonCodes.join("|")} --why "…"${incident}`;
    if (playbook.may) out.sayAll(paragraph(line, 4).map(out.dim));
  });
  return 0;
}

function conditions({ incident, hours, unanswered, may }: PlaybookView): string[] {
  const lines: string[] = [];
  if (incident.length > 0) lines.push(`Needs an open incident: ${incident.join(" or ")}.`);
  if (hours !== null && may) lines.push(`Only ${hours}.`);
  if (unanswered !== null) {
    lines.push(
      `Opens by itself when nobody answers for ${duration(unanswered.afterMs)}, for at most ${duration(unanswered.forMs)}.`,
    );
  }
  return lines;
}

async function readSecret(file: string | undefined, prompt: string): Promise<string> {
  if (file !== undefined) return readText(file, "the secret file").trim();
  if (!process.stdin.isTTY) {
    let text = "";
    for await (const chunk of process.stdin) text += String(chunk);
    if (text.trim() === "") throw usage("no secret on standard input", "Pipe it in, or use --secret-file FILE.");
    return text.trim();
  }
  process.stderr.write(prompt);
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const reader = createInterface({ input: process.stdin, output: silent, terminal: true });
  try {
    return (await reader.question("")).trim();
  } finally {
    reader.close();
    process.stderr.write("\n");
  }
}

function readText(file: string, what: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new CliError("usage", `cannot read ${what} ${file}`, { cause });
  }
}
