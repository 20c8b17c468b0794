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
const TERMINAL = "of several, the one that statement N opened; default: the first";

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
      usage: "glass connect GRANT [--print | --config] [--key FILE.pub] [-- CMD…]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/connect.ts")).connect(call),
    },
    summary: "The native client through the gateway; CMD runs with its environment, or on the host for SSH",
    options: { print: flag, config: flag, key: text },
    explain: {
      print: "print the plain command line instead of running it",
      config:
        "SSH: print the path of an ssh_config for scp, sftp, rsync, git and Ansible; GRANT is the host's name in it",
      key: "SSH: certify your own public key, such as a hardware key's, rather than a fresh one",
    },
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
    ...{
      name: "replay",
      usage: "glass replay SESSION [--terminal N] [--speed 2] [--idle-limit 2s]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/recordings.ts")).replay(call),
      summary: "What was done in a session: statements, times, rows, errors; a terminal is played",
    },
    options: { terminal: text, speed: text, "idle-limit": text },
    explain: {
      speed: "of a terminal: how many times as fast",
      terminal: TERMINAL,
      "idle-limit": "of a terminal: pauses are no longer than this; default 2s",
    },
  },
  {
    name: "watch",
    usage: "glass watch SESSION [--terminal N]",
    arity: [1, 1],
    run: async (call) => (await import("./commands/recordings.ts")).watch(call),
    summary: "A session as it goes on: its statements, or its screen; the log has who watched",
    options: { terminal: text },
    explain: { terminal: "of several, the one that statement N opened; default: the one in use" },
  },
  {
    ...{
      name: "export",
      usage: "glass export SESSION [--format json|text|asciicast|raw] [--terminal N] [-o FILE] [--force]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/recordings.ts")).exportRecording(call),
      summary: "A recording as a file: all of it, or none",
    },
    options: { format: text, terminal: text, output: { type: "string", short: "o" }, force: flag },
    explain: {
      format: "json: a line for each statement; text: for people; asciicast: a terminal; raw: every record",
      terminal: TERMINAL,
      output: "the file; default: standard output",
      force: "replace the file if it is there",
    },
  },
  {
    ...{
      name: "search",
      usage: "glass search TEXT [--person P] [--target T] [--playbook P] [--since 7d] [--until TIME] [--regex]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/recordings.ts")).search(call),
      summary: "Look for words in every recording that you may read, newest first",
    },
    options: { person: text, target: text, playbook: text, since: text, until: text, regex: flag },
    explain: {
      since: "sessions that were open after this: how long ago, such as 7d, or a date",
      until: "sessions that began before this",
      regex: "TEXT is a regular expression",
    },
  },
  {
    ...{
      name: "hold",
      usage: 'glass hold GRANT|SESSION --why "…"',
      arity: [1, 1],
      run: async (call) => (await import("./commands/retention.ts")).hold(call),
      summary: "Security officer: keep recordings from being erased, whatever their age",
    },
    options: { why: text },
    explain: { why: "in your own words; kept encrypted" },
  },
  {
    name: "hold release",
    usage: "glass hold release HOLD",
    arity: [1, 1],
    run: async (call) => (await import("./commands/retention.ts")).release(call),
    summary: "Lift a hold",
  },
  {
    ...{
      name: "holds",
      usage: "glass holds [--all]",
      arity: [0, 0],
      run: async (call) => (await import("./commands/retention.ts")).holds(call),
      summary: "Which recordings are held, by whom and why",
    },
    options: { all: flag },
    explain: { all: "also those that are lifted" },
  },
  {
    ...{
      name: "erase",
      usage: 'glass erase SESSION --why "…" [--yes]',
      arity: [1, 1],
      run: async (call) => (await import("./commands/retention.ts")).erase(call),
      summary: "Security officer: destroy a recording's key, for ever; the log still verifies",
    },
    options: { why: text, yes: flag },
    explain: { why: "in your own words; kept encrypted", yes: "do not ask; for scripts" },
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
    name: "log status",
    usage: "glass log status",
    arity: [0, 0],
    run: async (call) => (await import("./commands/log.ts")).status(call),
    summary: "How far the log is: signed, witnessed, archived, and what waits",
  },
  {
    name: "log keys",
    usage: "glass log keys",
    arity: [0, 0],
    run: async (call) => (await import("./commands/log.ts")).keys(call),
    summary: "The keys that sign the log, and those that did",
  },
  {
    name: "log key add",
    usage: "glass log key add",
    arity: [0, 0],
    run: async (call) => (await import("./commands/log.ts")).keyAdd(call),
    summary: "Admin: a further key signs from now on; the first step of a replacement",
  },
  {
    name: "log key retire",
    usage: "glass log key retire GENERATION",
    arity: [1, 1],
    run: async (call) => (await import("./commands/log.ts")).keyRetire(call),
    summary: "Admin: a key signs no more; the last step of a replacement",
  },
  {
    name: "sinks",
    usage: "glass sinks",
    arity: [0, 0],
    run: async (call) => (await import("./commands/sinks.ts")).sinks(call),
    summary: "Where the log goes on to, how far behind each is, and why",
  },
  {
    name: "sinks retry",
    usage: "glass sinks retry NAME",
    arity: [1, 1],
    run: async (call) => (await import("./commands/sinks.ts")).retry(call),
    summary: "Try a sink at once, and the entries that its receiver refused",
  },
  {
    ...{
      name: "verify",
      usage:
        "glass verify DIR|URL --key VKEY|FILE [--since CHECKPOINT] [--witnesses FILE], or --proof FILE --entry FILE",
      arity: [0, 1],
      run: async (call) => (await import("./commands/log.ts")).verify(call),
    },
    summary: "Check a log, its recordings and its witnesses, or one proof; needs no server",
    options: {
      ...{ key: text, since: text, until: text, witnesses: text, "max-unwitnessed": text, "no-recordings": flag },
      ...{ proof: text, entry: text, "token-file": text, ca: text, pin: text },
    },
    explain: {
      key: "the log's verifier key, or a file with it, from a source other than the folder",
      since: "an older checkpoint that the log must have grown from",
      until: "with --since: check growth between these two checkpoints alone, from a few tiles",
      witnesses: "a policy file (c2sp.org/tlog-policy): enough witnesses must have seen the log",
      "max-unwitnessed": "more entries than this that no witness has seen yet are a problem",
      "no-recordings": "the folder is a copy of the log alone",
      proof: "a proof file, as of glass log prove; needs no folder",
      entry: "the entry that the proof is of",
      "token-file": "for a URL: a token of somebody who may read entries and recordings",
      ca: "for a URL: PEM file of the server's CA",
      pin: "first use only: copy the key that lies in the folder to this file, unverified",
    },
  },
  {
    ...{
      name: "witness",
      usage: "glass witness DIR --listen HOST:PORT [--name NAME] [--cert FILE --key FILE | --behind-proxy]",
      arity: [1, 1],
      run: async (call) => (await import("./commands/witness.ts")).witness(call),
    },
    summary: "Run a witness, for logs of others: it cosigns what grows, and nothing else",
    options: { listen: text, name: text, algorithm: text, cert: text, key: text, "behind-proxy": flag },
    explain: {
      listen: "where to serve; only a loopback address may be without TLS",
      name: "the witness's name, such as witness.example.org/w1; needed on first start",
      algorithm: "of the key made on first start: ed25519 (default) or ml-dsa-44",
      cert: "PEM file of the TLS certificate",
      key: "PEM file of its key",
      "behind-proxy": "plain HTTP on any address: something in front of it speaks TLS",
    },
  },
  {
    name: "witness add-log",
    usage: "glass witness add-log DIR VKEY|FILE",
    arity: [2, 2],
    run: async (call) => (await import("./commands/witness.ts")).addLog(call),
    summary: "Let a witness know a log, or one more key of it; a running one sees it at once",
  },
  {
    name: "witness drop-key",
    usage: "glass witness drop-key DIR VKEY|FILE",
    arity: [2, 2],
    run: async (call) => (await import("./commands/witness.ts")).dropKey(call),
    summary: "Let a witness believe a retired key of a log no more; never the log's last",
  },
  {
    name: "witness show",
    usage: "glass witness show DIR",
    arity: [1, 1],
    run: async (call) => (await import("./commands/witness.ts")).show(call),
    summary: "A witness's key, the logs it knows and what it cosigned last",
  },
  {
    name: "archive status",
    usage: "glass archive status",
    arity: [0, 0],
    run: async (call) => (await import("./commands/archive.ts")).archiveStatus(call),
    summary: "How much is archived, how far behind, and what is wrong",
  },
  {
    name: "target check",
    usage: "glass target check [NAME]",
    arity: [0, 1],
    run: async (call) => (await import("./commands/targets.ts")).targetCheck(call),
    summary: "Could a lease be minted and revoked there? Says what is missing",
  },
  {
    ...{
      name: "target setup",
      usage: "glass target setup [NAME | --kind KIND] [--format shell|cloud-init|ansible]",
      arity: [0, 1],
      run: async (call) => (await import("./commands/targets.ts")).targetSetup(call),
    },
    summary: "What to put on a target once so that leases can be minted there, ready to copy",
    options: { kind: text, format: text },
    explain: { kind: "for any target of that kind, before its file is there", format: "as a whole, for that tool" },
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
