import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { userInfo } from "node:os";
import type { ConnectAnswer, GrantView, ReplayLine, StatementLine, TargetSetup } from "@glasskey/contract";
import type { ServerConfig } from "../../src/config.ts";
import { startHost } from "../../src/targets/ssh/fixtures/host.ts";
import { startSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { writeSsh } from "../../../cli/src/ssh-files.ts";
import { newSshKey } from "../../../cli/src/ssh-key.ts";
import type { SharedCluster } from "../global.ts";
import { playbook, startTestSystem, type Client, type TestSystem } from "../system.ts";
import { openWorkplace, type Done, type ProgramOptions, type Workplace } from "./programs.ts";

/** A whole Glasskey before a real sshd that trusts it, and a person's machine with nothing but OpenSSH's programs. */
export interface Estate extends AsyncDisposable {
  readonly system: TestSystem;
  readonly host: EstateHost;
  readonly work: Workplace;
  readonly ann: Client;
  /** May read every recording. */
  readonly ida: Client;
  /** May stop everything. */
  readonly sam: Client;
  /** Breaks the glass and waits until it is open. */
  open(playbook: string, options?: { forMs?: number }): Promise<Opened>;
  /** Every line of a session's replay, as an auditor reads it. */
  replay(session: string): Promise<ReplayLine[]>;
  /** An export of a session as the auditor gets it. */
  export(session: string, format: "json" | "text" | "asciicast" | "raw"): Promise<string>;
}

export interface EstateHost {
  readonly port: number;
  /** Where its files are; empty for a host of its own, which has `shell`. */
  readonly dir: string;
  /** On a host of its own: runs a script there as root. */
  shell(script: string): string;
  stop(): Promise<void>;
  start(): Promise<void>;
  dispose(): Promise<void>;
}

/** One grant with what a client needs for it. */
export interface Opened {
  readonly grant: string;
  readonly answer: ConnectAnswer;
  /** `-F FILE`, in which the grant is the name of a host. */
  readonly config: string;
  ssh(args: readonly string[], options?: ProgramOptions): Promise<Done>;
  sessions(): Promise<SessionRow[]>;
  /** Statements of all its sessions that are over, once their recordings are whole. */
  statements(): Promise<StatementLine[]>;
  end(): Promise<GrantView>;
}

export interface SessionRow {
  readonly id: string;
  readonly closed_at: Date | null;
  readonly cause: string | null;
  readonly detail: string | null;
  readonly recording_complete: boolean;
}

export const USER = userInfo().username;

/** Playbooks by name → their `scope`, with `{folder}` for the person's folder and `{user}` for the account on the host. */
const SCOPES = {
  shell: '{ user: {user}, shell: true, sftp: { read: ["/**"], write: ["{folder}/**"] } }',
  commands: '{ user: {user}, commands: ["echo *", "cat {folder}/*"] }',
  reading: '{ user: {user}, sftp: { read: ["{folder}/**"] } }',
  files: '{ user: {user}, sftp: { read: ["{folder}/**"], write: ["{folder}/**"] } }',
} as const;

export interface EstateOptions {
  /** A host of its own that was prepared by the text of `glass target setup` (fixtures/host.ts), in place of a mere sshd. */
  readonly ownHost?: boolean;
  /** More playbooks: name → scope. */
  readonly scopes?: Readonly<Record<string, string>>;
  /** Whether Glasskey has a login of its own on the host; default is yes. */
  readonly control?: boolean;
  readonly settings?: Partial<ServerConfig>;
  /** More lines of sshd_config. */
  readonly sshd?: readonly string[];
  /** Lines of every playbook, such as `time`. */
  readonly playbook?: Readonly<Record<string, string>>;
}

export async function openEstate(cluster: SharedCluster, options: EstateOptions = {}): Promise<Estate> {
  const work = await openWorkplace();
  const { host, config, user, trust } = options.ownHost === true ? await ownHost() : await mereSshd(options);
  const scopes = Object.entries({ ...SCOPES, ...options.scopes });
  const filled = (scope: string): string => scope.replaceAll("{folder}", work.folder).replaceAll("{user}", user);
  const system = await startTestSystem(
    cluster,
    {
      "targets/web.yaml": `target: web\nkind: ssh\nconfig:\n  host: 127.0.0.1\n  port: ${host.port}\n${config}`,
      ...Object.fromEntries(
        scopes.map(([name, scope]) => [
          `playbooks/${name}.yaml`,
          playbook(name, { target: "web", scope: filled(scope), ...options.playbook }),
        ]),
      ),
    },
    options.settings,
  );
  const [ann, ida, sam] = [await system.as("ann"), await system.as("ida"), await system.as("sam")];
  await trust(await ida.call<TargetSetup>("GET", "/v1/targets/web/setup"));

  let opened = 0;
  const replay = async (session: string): Promise<ReplayLine[]> => lines(await exportOf(session, "replay"));
  const exportOf = async (session: string, what: string): Promise<string> => {
    const path = what === "replay" ? "replay" : `export?format=${what}`;
    return await ida.text(`/v1/sessions/${session}/${path}`);
  };
  return {
    ...{ system, host, work, ann, ida, sam, replay, export: exportOf },
    async open(name, { forMs } = {}) {
      const { grant } = await ann.break(name, forMs === undefined ? {} : { forMs });
      await ann.until(grant, ["active"], 20_000);
      const key = newSshKey(grant);
      const path = `/v1/grants/${grant}/connect`;
      const answer = await ann.call<ConnectAnswer>("POST", path, { publicKey: key.publicKey });
      const { config } = writeSsh(join(work.home, `grant-${++opened}`), answer, key);
      const sessions = (): Promise<SessionRow[]> =>
        system.storeQuery(
          "select id, closed_at, cause, detail, recording_complete from sessions where grant_id = $1 order by opened_at",
          [grant],
        );
      return {
        ...{ grant, answer, config, sessions },
        ssh: (args, how) => work.run("ssh", ["-F", config, ...args], how),
        async statements() {
          await eventually(async () => (await sessions()).every((one) => one.recording_complete));
          const found: StatementLine[] = [];
          for (const { id } of await sessions()) {
            const said = await replay(id);
            found.push(...said.filter((line) => line.what === "statement"));
          }
          return found;
        },
        end: () => ann.end(grant),
      };
    },
    async [Symbol.asyncDispose]() {
      await work[Symbol.asyncDispose]();
      await system.dispose();
      await host.dispose();
    },
  };
}

interface Prepared {
  readonly host: EstateHost;
  /** Lines of the target file below `config:`. */
  readonly config: string;
  readonly user: string;
  trust(setup: TargetSetup): Promise<void>;
}

async function mereSshd(options: EstateOptions): Promise<Prepared> {
  const sshd = await startSshd({ trustedUserCas: [], config: ["RevokedKeys {dir}/revoked", ...(options.sshd ?? [])] });
  const { dir } = sshd;
  await writeFile(join(dir, "revoked"), "");
  const control = options.control === false ? "" : `  control: { user: root, revokedKeys: ${dir}/revoked }\n`;
  const shell = (): string => {
    throw new Error("this sshd runs on the machine of the tests: nothing is changed there");
  };
  return {
    host: { ...sshd, shell },
    config: `  hostKeys: { pin: [${JSON.stringify(sshd.hostKeys.ed25519)}] }\n${control}`,
    user: USER,
    async trust({ steps }) {
      const authority = steps.map(({ text }) => text.trim()).find((text) => text.startsWith("ssh-ed25519 "));
      if (authority === undefined) throw new Error("the set-up of a host names no authority");
      await writeFile(join(dir, "user_ca.pub"), `${authority}\n`);
    },
  };
}

async function ownHost(): Promise<Prepared> {
  const host = await startHost();
  return {
    host: { ...host, dir: "" },
    config: `  hostKeys: { pin: [${JSON.stringify(host.hostKey)}] }\n  control: { user: glasskey }\n`,
    user: "deploy",
    async trust({ formats }) {
      host.shell(formats["shell"] ?? "false");
      await host.start();
    },
  };
}

function lines(text: string): ReplayLine[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as ReplayLine);
}

/** Polls for a condition, with a generous limit. */
export async function eventually(what: () => boolean | Promise<boolean>, limitMs = 40_000): Promise<void> {
  const until = performance.now() + limitMs;
  while (!(await what())) {
    if (performance.now() > until) throw new Error(`not so within ${limitMs} ms: ${what.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
