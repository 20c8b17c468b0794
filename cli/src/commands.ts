import type { ParseArgsConfig } from "node:util";
import type { Output } from "./output.ts";

export interface Invocation {
  args: readonly string[];
  options: Readonly<Record<string, string | boolean | undefined>>;
  /** What stands after `--`. */
  command: readonly string[];
  out: Output;
}

export interface Command {
  /** The verb, such as `break` or `log prove`. */
  name: string;
  usage: string;
  summary: string;
  /** Fewest and most arguments. */
  arity: readonly [number, number];
  options?: NonNullable<ParseArgsConfig["options"]>;
  /** What each option means, for the help text. */
  explain?: Readonly<Record<string, string>>;
  /** @returns the exit code. */
  run(invocation: Invocation): Promise<number>;
}

const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;

/**
 * Every verb of the client, in the order of an incident. Each loads its own module when it is called: nobody waits for the
 * verifier to break the glass. `serve`, `init` and `secret` belong to the server.
 */
export const COMMANDS: readonly Command[] = [
  {
    ...{
      name: "login",
      usage: "glass login NAME [--server URL] [--ca FILE] [--secret-file FILE]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/people.ts")).login(call),
    },
    summary: "Log in; the secret is asked for, or read from a file or standard input",
    options: { server: text, ca: text, "secret-file": text },
    explain: {
      server: "https://HOST:PORT; default: the last one",
      ca: "PEM file of the server's CA",
      "secret-file": "read the secret from a file",
    },
  },
  {
    name: "logout",
    usage: "glass logout",
    arity: [0, 0],
    run: async (call) => (await import("./commands/people.ts")).logout(call),
    summary: "End this login",
  },
  {
    name: "whoami",
    usage: "glass whoami",
    arity: [0, 0],
    run: async (call) => (await import("./commands/people.ts")).whoami(call),
    summary: "Who I am here, and what I may be",
  },
  {
    name: "ls",
    usage: "glass ls",
    arity: [0, 0],
    run: async (call) => (await import("./commands/people.ts")).ls(call),
    summary: "What may I break now, and if not, why not",
  },
  {
    ...{
      name: "break",
      arity: [1, 1],
      run: async (call) => (await import("./commands/grants.ts")).breakGlass(call),
      summary: "Break the glass",
    },
    usage: 'glass break PLAYBOOK --reason CODE --why "…" [--incident REF] [--for 30m] [--no-wait] [-- CMD…]',
    options: { reason: text, why: text, incident: text, for: text, "no-wait": flag },
    explain: {
      reason: "one of the playbook's reason codes",
      why: "in your own words; kept encrypted",
      incident: "the incident's reference; where the playbook needs one and none is given, the open ones are listed",
      for: "how long, such as 30m; default: the playbook's max",
      "no-wait": "where a human must approve: do not wait for them (exit code 4)",
    },
  },
  {
    ...{
      name: "connect",
      usage: "glass connect GRANT [--print] [-- CMD…]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/grants.ts")).connect(call),
    },
    summary: "The native client through the gateway, or CMD with its environment",
    options: { print: flag },
    explain: { print: "print the plain command line instead of running it" },
  },
  {
    name: "status",
    usage: "glass status [GRANT] [--all]",
    arity: [0, 1],
    run: async (call) => (await import("./commands/grants.ts")).status(call),
    summary: "One grant, or what is open",
    options: { all: flag },
    explain: { all: "also what has ended" },
  },
  {
    name: "extend",
    usage: "glass extend GRANT",
    arity: [1, 1],
    run: async (call) => (await import("./commands/grants.ts")).extend(call),
    summary: "Ask for a later end: a new decision, within the playbook's cap",
  },
  {
    name: "end",
    usage: "glass end GRANT",
    arity: [1, 1],
    run: async (call) => (await import("./commands/grants.ts")).end(call),
    summary: "End a grant, wait for the proof and show it",
  },
  {
    name: "approve",
    usage: "glass approve GRANT",
    arity: [1, 1],
    run: async (call) => (await import("./commands/grants.ts")).approve(call),
    summary: "Say yes to somebody's grant",
  },
  {
    name: "deny",
    usage: "glass deny GRANT",
    arity: [1, 1],
    run: async (call) => (await import("./commands/grants.ts")).deny(call),
    summary: "Say no to somebody's grant",
  },
  {
    ...{
      name: "review",
      usage: 'glass review [GRANT] [--sign justified|not-justified --note "…"]',
      arity: [0, 1],
      run: async (call) => (await import("./commands/review.ts")).review(call),
      summary: "Reviews that wait; or one use's whole story, and its signature",
    },
    options: { sign: text, note: text },
    explain: {
      sign: "justified or not-justified; never your own, and only of a closed grant",
      note: "what you looked at, in your own words; kept encrypted",
    },
  },
  {
    ...{
      name: "report",
      usage: "glass report [--since 30d]",
      arity: [0, 0],
      run: async (call) => (await import("./commands/report.ts")).report(call),
      summary: "Uses by reason code and playbook, approvals, overdue reviews",
    },
    options: { since: text },
    explain: { since: "how far back; default 30d" },
  },
  {
    ...{
      name: "kill",
      usage: "glass kill GRANT|SESSION [--why …]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/grants.ts")).kill(call),
    },
    summary: "Security officer: stop it now, in any state",
    options: { why: text },
    explain: { why: "told to the user and kept" },
  },
  {
    ...{
      name: "sessions",
      usage: "glass sessions [GRANT] [--open]",
      arity: [0, 1],
      run: async (call) => (await import("./commands/sessions.ts")).sessions(call),
      summary: "Sessions, newest first",
    },
    options: { open: flag },
    explain: { open: "only those that are open now" },
  },
  {
    name: "replay",
    usage: "glass replay SESSION",
    arity: [1, 1],
    run: async (call) => (await import("./commands/sessions.ts")).replay(call),
    summary: "What was done in a session: statements, times, rows, errors",
  },
  {
    ...{
      name: "log",
      usage: "glass log [--follow] [--from INDEX] [--grant GRANT]",
      arity: [0, 0],
      run: async (call) => (await import("./commands/log.ts")).log(call),
      summary: "Entries of the tamper-evident log",
    },
    options: { follow: flag, from: text, grant: text },
    explain: {
      follow: "go on as entries come",
      from: "first index; default: the newest entries",
      grant: "only those about one grant",
    },
  },
  {
    name: "log prove",
    usage: "glass log prove INDEX",
    arity: [1, 1],
    run: async (call) => (await import("./commands/log.ts")).prove(call),
    summary: "A C2SP tlog-proof of one entry, for somebody who trusts nobody",
  },
  {
    ...{
      name: "verify",
      usage: "glass verify DIR --key VKEY|FILE [--since CHECKPOINT] [--no-recordings]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/log.ts")).verify(call),
    },
    summary: "Check a log folder and its recordings offline",
    options: { key: text, since: text, pin: text, "no-recordings": flag },
    explain: {
      key: "the log's verifier key, or a file with it, from a source other than the folder",
      since: "an older checkpoint that the log must have grown from",
      pin: "first use only: copy the key that lies in the folder to this file, unverified",
      "no-recordings": "the folder is a copy of the log alone",
    },
  },
  {
    name: "target check",
    usage: "glass target check [NAME]",
    arity: [0, 1],
    run: async (call) => (await import("./commands/targets.ts")).targetCheck(call),
    summary: "Could a lease be minted and revoked there? Says what is missing",
  },
  {
    name: "policy",
    usage: "glass policy",
    arity: [0, 0],
    run: async (call) => (await import("./commands/policy.ts")).policy(call),
    summary: "Which policy is in force, and where it came from",
  },
  {
    name: "policy history",
    usage: "glass policy history [NUMBER]",
    arity: [0, 1],
    run: async (call) => (await import("./commands/policy.ts")).history(call),
    summary: "What was in force, and who gained and lost by each change",
  },
  {
    name: "policy reload",
    usage: "glass policy reload",
    arity: [0, 0],
    run: async (call) => (await import("./commands/policy.ts")).reload(call),
    summary: "Read the server's policy source again, a folder or git",
  },
];
