import { unreachable } from "../../core/errors.ts";
import { classify, rebuildScp, type ScpCommand } from "./classify.ts";
import {
  type CommandLine,
  type CommandPattern,
  matchesCommand,
  parsePattern,
  quoteCommand,
  splitCommand,
} from "./patterns.ts";
import { cleanPath, compileGlobs, type Globs, joinPath } from "./paths.ts";
import { listsAddress, listsSocket } from "./scope-addresses.ts";
import type { SshScope } from "./scope.ts";

/** Everything that can be asked for in an SSH session, and nothing else opens anything. */
export type Question =
  | { readonly ask: "shell" | "pty" | "agent" | "x11" }
  | { readonly ask: "exec"; readonly command: string }
  | { readonly ask: "subsystem" | "env" | "signal"; readonly name: string }
  | { readonly ask: "direct-tcpip" | "tcpip-forward"; readonly host: string; readonly port: number }
  | { readonly ask: "direct-streamlocal" | "streamlocal-forward"; readonly path: string }
  | FileQuestion
  | { readonly ask: "unknown"; readonly what: string };

export interface FileQuestion {
  readonly ask: "file";
  readonly op: FileOp;
  /** Clean and absolute (paths.ts). */
  readonly path: string;
  /** Of `rename` the new path, of `link` the link, of `symlink` what it points to. */
  readonly path2?: string;
  /** The permission bits that are to be set. */
  readonly mode?: number;
  /** Of `rename`, whether it is a folder; absent where that is not known. */
  readonly folder?: boolean;
}

/**
 * What is done with a file:
 * - `look`: attributes, where a link points, where a path really is;
 * - `read`, `list`: content; `write`: content, new or changed; `attributes`: mode, times, owner, size;
 * - the rest as named.
 */
export type FileOp =
  | "look"
  | "read"
  | "list"
  | "write"
  | "attributes"
  | "remove"
  | "rename"
  | "mkdir"
  | "rmdir"
  | "symlink"
  | "link";

export type Verdict = Allowed | Refused;

export interface Allowed {
  readonly ok: true;
  /** The word for the recording, such as `exec` or `sftp`. */
  readonly via: string;
  /** What to send to the target in place of what was asked; absent where that goes as it is. */
  readonly run?: string;
  /** How its bytes pass: as a program's, in bulk with totals only, or through the SFTP or scp proxy. */
  readonly flow: Flow;
}
export type Flow =
  | { readonly is: "plain" | "bulk" | "sftp" }
  | {
      readonly is: "scp";
      readonly command: ScpCommand;
      /** Whether each path is asked about; not under a shell, which could reach them anyway. */
      readonly judged: boolean;
    };

export interface Refused {
  readonly ok: false;
  /** What was refused and why, without a full stop. */
  readonly reason: string;
  /** What to do instead: a sentence. */
  readonly next: string;
}

interface Rules {
  readonly commands: readonly CommandPattern[];
  readonly read: Globs;
  readonly write: Globs;
}

/** Of each scope that was asked about, for as long as somebody holds it. */
const compiled = new WeakMap<SshScope, Rules>();

const PLAIN: Flow = { is: "plain" };

/**
 * THE decision of this kind: every channel, request and file operation of a session is asked here, and nothing else
 * decides. What the scope does not name is refused, and so is what is not known. Pure, never throws.
 */
export function authorize(question: Question, scope: SshScope): Verdict {
  switch (question.ask) {
    case "shell":
      if (scope.shell) return yes("shell");
      return no("this grant has no shell", nameCommand(scope));
    case "exec":
      return judgeCommand(question.command, scope);
    case "subsystem":
      return judgeSubsystem(question.name, scope);
    case "pty":
      if (scope.shell || scope.commands.length > 0) return yes("pty");
      return no("this grant runs no program that has a terminal", insteadOfShell(scope));
    case "env":
      if (isVariable(question.name, scope)) return yes("env");
      return no(`the variable ${shown(question.name)} is not passed on`, "The playbook can name it in scope.env.");
    case "signal":
      if (/^[A-Z0-9]{2,10}(?:@[a-z0-9.-]{1,50})?$/.test(question.name)) return yes("signal");
      return no(`${shown(question.name)} is no signal`, "Signals are named as in RFC 4254, such as TERM.");
    case "direct-tcpip":
      if (listsAddress(scope.forward, question.host, question.port)) return yes("forward");
      return noForward(`${shown(question.host)}:${question.port}`, "forward");
    case "direct-streamlocal":
      if (listsSocket(scope.forward, question.path)) return yes("forward");
      return noForward(shown(question.path), "forward");
    case "tcpip-forward":
      if (listsAddress(scope.remoteForward, question.host, question.port)) return yes("remote-forward");
      return noForward(`${shown(question.host)}:${question.port}`, "remoteForward");
    case "streamlocal-forward":
      if (listsSocket(scope.remoteForward, question.path)) return yes("remote-forward");
      return noForward(shown(question.path), "remoteForward");
    case "agent":
      if (scope.agent) return yes("agent");
      return no("the agent is not forwarded", "Leave out -A; the playbook can allow it with scope.agent.");
    case "x11":
      if (scope.x11) return yes("x11");
      return no("X11 is not forwarded", "Leave out -X; the playbook can allow it with scope.x11.");
    case "file":
      return judgeFile(question, scope);
    case "unknown":
      return no(`${shown(question.what)} is not known to Glasskey`, "No playbook can allow it.");
    default:
      return unreachable(question);
  }
}

// ------------------------------------------------------------------------------------------------------- programs

/** So many commands of a scope are named to a person who asked for another. */
const COMMANDS_TOLD = 20;

/** What the scope has instead, for messages. */
function insteadOfShell({ commands, sftp }: SshScope): string {
  if (commands.length === 0)
    return sftp === undefined ? "Use a playbook that has it." : "It copies files: use sftp or scp.";
  const more = commands.length - COMMANDS_TOLD;
  const told = commands.slice(0, COMMANDS_TOLD).map((command) => `\n  ${shown(command)}`);
  return `It runs:${told.join("")}${more > 0 ? `\n  and ${more} more` : ""}`;
}

/** For somebody who gave no command at all. */
function nameCommand(scope: SshScope): string {
  const how = "Give a command behind the host, or glass connect GRANT -- COMMAND. ";
  return `${scope.commands.length > 0 ? how : ""}${insteadOfShell(scope)}`;
}

function judgeCommand(command: string, scope: SshScope): Verdict {
  // Under a shell only how its bytes pass depends on what it is.
  const line = splitCommand(command, scope.shell);
  const argv = line.ok ? line.argv : undefined;
  const program = argv === undefined ? undefined : classify(argv);
  if (program?.is === "mosh") {
    return no("mosh does not pass through Glasskey: it speaks UDP past the gateway", "Use ssh.");
  }
  if (scope.shell) {
    // As it was sent: a shell is what the playbook gives.
    if (program?.is === "scp" && program.command !== undefined) {
      return { ok: true, via: "exec", flow: { is: "scp", command: program.command, judged: false } };
    }
    return { ok: true, via: "exec", flow: program?.is === "bulk" ? { is: "bulk" } : PLAIN };
  }
  if (argv === undefined) return unreadable(line, scope);
  if (program?.is === "scp") return judgeScp(program.command, scope);
  if (program?.is === "sftp-server") return no("the SFTP server runs as a subsystem only", "Leave out -s of sftp.");
  if (rulesOf(scope).commands.some((pattern) => matchesCommand(pattern, argv))) {
    return { ok: true, via: "exec", run: quoteCommand(argv), flow: program?.is === "bulk" ? { is: "bulk" } : PLAIN };
  }
  return no(`the command ${shown(quoteShort(argv))} is not one of this grant's`, insteadOfShell(scope));
}

function unreadable(line: CommandLine, scope: SshScope): Refused {
  const why = line.ok ? "" : line.reason;
  return no(
    `the command is not run: ${why}`,
    scope.commands.length > 0
      ? "Commands of this grant run without a shell: pipe and redirect on your own side.\n" +
          "Quote text for the host as well: ssh … 'grep \"a|b\" FILE'"
      : insteadOfShell(scope),
  );
}

function judgeScp(command: ScpCommand | undefined, scope: SshScope): Verdict {
  if (command === undefined) return no("this form of scp is not known", "Use scp -r, -p, or sftp.");
  const toTarget = command.direction === "toTarget";
  const files = rulesOf(scope)[toTarget ? "write" : "read"];
  if (files.empty) {
    return no(`this grant ${toTarget ? "writes" : "reads"} no files`, insteadOfShell({ ...scope, sftp: undefined }));
  }
  if (/[*?[\]{}~]/.test(command.path)) {
    return no(
      "a path with wildcards or ~ needs a shell on the host",
      "Use scp without -O, which resolves them itself.",
    );
  }
  const clean = cleanPath(command.path);
  if (!clean.ok)
    return no(`${clean.reason}: ${shown(command.path)}`, "Give scp -O an absolute path, or use scp without -O.");
  const { path } = clean;
  const itself = files.matches(path);
  if (!itself && !files.matches(joinPath(path, "x"))) {
    return no(`${shown(path)} may not be ${toTarget ? "written" : "read"}`, `This grant: ${filesOf(scope)}.`);
  }
  // What may not be written itself is a folder to write into, or nothing: scp -d makes sure. Else the host says what it is,
  // because into a folder the file goes by a name of its own.
  const folder = toTarget && (command.folder || !itself || command.path.endsWith("/"));
  const made = rebuildScp(command, path, folder, toTarget && !folder);
  return { ok: true, via: "exec", run: made.run, flow: { is: "scp", command: made, judged: true } };
}

function judgeSubsystem(name: string, scope: SshScope): Verdict {
  if (name !== "sftp") return no(`the subsystem ${shown(name)} is not known to Glasskey`, "No playbook can allow it.");
  const { read, write } = rulesOf(scope);
  if (!read.empty || !write.empty) return { ok: true, via: "subsystem", flow: { is: "sftp" } };
  return no("this grant copies no files", "The playbook can allow it with scope.sftp.");
}

function isVariable(name: string, { env }: SshScope): boolean {
  if (name.startsWith("LC_GLASSKEY")) return false;
  if (name === "LANG" || /^LC_[A-Z]{1,20}$/.test(name)) return true;
  return env.some((known) => (known.endsWith("*") ? name.startsWith(known.slice(0, -1)) : known === name));
}

function noForward(to: string, key: string): Refused {
  return no(`${to} is not forwarded`, `The playbook can name it, exactly so, in scope.${key}.`);
}

// ---------------------------------------------------------------------------------------------------------- files

const DONE: Readonly<Record<FileOp, string>> = {
  look: "looked at",
  read: "read",
  list: "listed",
  write: "written",
  attributes: "changed",
  remove: "removed",
  rename: "renamed",
  mkdir: "made",
  rmdir: "removed",
  symlink: "linked",
  link: "linked",
};

/** setuid and setgid: whoever may write such a file would hand out the account, which may be root, to everybody. */
const SET_ID = 0o6000;

function judgeFile({ op, path, path2, mode, folder }: FileQuestion, scope: SshScope): Verdict {
  if (mode !== undefined && (mode & SET_ID) !== 0) {
    return no(`${shown(path)} may not become setuid or setgid`, "No playbook can allow it; do it in a shell.");
  }
  const { read, write } = rulesOf(scope);
  const refuse = (which: string): Refused => {
    const dotted = which.split("/").some((name) => name.startsWith("."));
    const hint = dotted ? " A name that begins with a dot is meant only where the playbook writes the dot." : "";
    return no(`${shown(which)} may not be ${DONE[op]}`, `This grant: ${filesOf(scope)}.${hint}`);
  };
  switch (op) {
    case "look": {
      const seen = [read, write].some((globs) => globs.matches(path) || globs.leadsTo(path));
      return seen ? yes("sftp") : refuse(path);
    }
    case "read":
      return read.matches(path) ? yes("sftp") : refuse(path);
    case "list":
      // The folder of `/var/log/**`, whose own name that does not match.
      return read.matches(path) || read.matches(path === "/" ? "/x" : `${path}/x`) ? yes("sftp") : refuse(path);
    case "write":
    case "attributes":
    case "remove":
    case "mkdir":
    case "rmdir":
      return write.matches(path) ? yes("sftp") : refuse(path);
    case "rename":
      if (!write.matches(path)) return refuse(path);
      if (path2 === undefined || !write.matches(path2)) return refuse(path2 ?? "");
      // A new name must not make readable what was not, and a folder's not what is in it.
      if (read.matches(path2) && !read.matches(path)) return refuse(path2);
      if (folder === false || [read, write].every((globs) => globs.below(path2).isSubsetOf(globs.below(path))))
        return yes("sftp");
      return no(
        `the folder ${shown(path)} may not be renamed to ${shown(path2)}: more of what is in it could be read or written there`,
        `This grant: ${filesOf(scope)}.`,
      );
    case "link":
      if (!write.matches(path)) return refuse(path);
      if (path2 === undefined || !write.matches(path2)) return refuse(path2 ?? "");
      return read.matches(path2) && !read.matches(path) ? refuse(path2) : yes("sftp");
    case "symlink":
      if (!write.matches(path)) return refuse(path);
      return path2 !== undefined && (read.matches(path2) || write.matches(path2)) ? yes("sftp") : refuse(path2 ?? "");
    default:
      return unreachable(op);
  }
}

function filesOf({ sftp }: SshScope): string {
  const [read, write] = [sftp?.read ?? [], sftp?.write ?? []].map(listed);
  return `reads ${read ?? "nothing"}, writes ${write ?? "nothing"}`;
}

function listed(globs: readonly string[]): string | undefined {
  if (globs.length === 0) return undefined;
  return globs.length <= 3 ? globs.join(" ") : `${globs.slice(0, 3).join(" ")} and ${globs.length - 3} more`;
}

// --------------------------------------------------------------------------------------------------------- helpers

function rulesOf(scope: SshScope): Rules {
  const known = compiled.get(scope);
  if (known !== undefined) return known;
  const rules: Rules = {
    // A pattern that is none allows nothing; parseScope says so before.
    commands: scope.commands.map(parsePattern).filter((pattern) => typeof pattern !== "string"),
    read: compileGlobs(scope.sftp?.read ?? []),
    write: compileGlobs(scope.sftp?.write ?? []),
  };
  compiled.set(scope, rules);
  return rules;
}

function yes(via: string): Allowed {
  return { ok: true, via, flow: PLAIN };
}

function no(reason: string, next: string): Refused {
  return { ok: false, reason, next };
}

/** What a stranger wrote, in a sentence: one line, printable, short. */
function shown(text: string): string {
  const clean = text.slice(0, 400).replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "\u{fffd}");
  return clean.length <= 120 ? clean : `${clean.slice(0, 119)}…`;
}

function quoteShort(argv: readonly string[]): string {
  return argv.map((word) => (/^[\w./:=@%+,-]+$/.test(word) ? word : quoteCommand([word]))).join(" ");
}
