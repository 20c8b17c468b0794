import { quoteCommand } from "./patterns.ts";

/**
 * Commands whose bytes are a protocol of their own: scp's old one, which has a proxy, and the bulk streams of rsync, git,
 * borg and their like, of which only totals are kept.
 */
export type Program =
  | { readonly is: "other" | "bulk" | "mosh" | "sftp-server" }
  /** `command` is undefined for a form of scp that is not known. */
  | { readonly is: "scp"; readonly command: ScpCommand | undefined };

/** `scp -t` or `scp -f` as the client's scp runs it on the host. */
export interface ScpCommand {
  readonly direction: "toTarget" | "fromTarget";
  /** The path as the client sent it: relative to the account's home where it does not begin with `/`. */
  readonly path: string;
  readonly recursive: boolean;
  /** -p: times and modes go along. */
  readonly preserve: boolean;
  /** -d: the path has to be a folder. */
  readonly folder: boolean;
  /** The command first says, in one byte, whether the path is a folder: `D`, else `F`. */
  readonly tells: boolean;
  /** Built anew from the above, for a POSIX shell. */
  readonly run: string;
}

const GIT = new Set(["git-upload-pack", "git-receive-pack", "git-upload-archive"]);

/** What a command is, by its arguments. The program may be given with its path. */
export function classify(argv: readonly string[]): Program {
  const program = (argv[0] ?? "").split("/").at(-1) ?? "";
  const [, first, second] = argv;
  if (program === "scp") {
    const command = parseScp(argv);
    // `scp FILE HOST:` on the host is a client there, an ordinary program.
    return command === undefined && !argv.some((word) => /^-[A-Za-z]*[tf]/.test(word))
      ? { is: "other" }
      : { is: "scp", command };
  }
  if (program === "mosh-server" || program === "mosh") return { is: "mosh" };
  if (program === "sftp-server") return { is: "sftp-server" };
  if (program === "rsync" && first === "--server") return { is: "bulk" };
  if (GIT.has(program)) return { is: "bulk" };
  if (program === "git" && GIT.has(`git-${first ?? ""}`)) return { is: "bulk" };
  if (program === "git-lfs-transfer" || (program === "borg" && first === "serve")) return { is: "bulk" };
  if (program === "rclone" && first === "serve" && second === "restic") return { is: "bulk" };
  return { is: "other" };
}

/** Options that scp's client passes to its other half; -v only makes that talk. */
function parseScp(argv: readonly string[]): ScpCommand | undefined {
  const flags = { t: false, f: false, r: false, p: false, d: false, v: false };
  let at = 1;
  for (; at < argv.length; at++) {
    const word = argv[at] ?? "";
    if (word === "--") {
      at += 1;
      break;
    }
    if (!word.startsWith("-") || word === "-") break;
    for (const flag of word.slice(1)) {
      if (!Object.hasOwn(flags, flag)) return undefined;
      flags[flag as keyof typeof flags] = true;
    }
  }
  const [path, ...more] = argv.slice(at);
  if (path === undefined || more.length > 0 || flags.t === flags.f) return undefined;
  const asked = {
    direction: flags.t ? ("toTarget" as const) : ("fromTarget" as const),
    ...{ recursive: flags.r, preserve: flags.p },
  };
  return rebuildScp(asked, path === "" ? "." : path, flags.d);
}

/**
 * The same with another path.
 * @param tells whether it is to say first what the path is. A folder that is found then has to be one still (-d).
 */
export function rebuildScp(
  asked: Pick<ScpCommand, "direction" | "recursive" | "preserve">,
  path: string,
  folder: boolean,
  tells = false,
): ScpCommand {
  const { direction, recursive, preserve } = asked;
  const quoted = quoteCommand([path]);
  const scp = (into: boolean): string => {
    const flags = [recursive && "-r", preserve && "-p", into && "-d", direction === "toTarget" ? "-t" : "-f"];
    return ["scp", ...flags.filter((flag) => flag !== false), "--", quoted].join(" ");
  };
  const run = tells
    ? `if [ -d ${quoted} ]; then printf D; exec ${scp(true)}; else printf F; exec ${scp(false)}; fi`
    : scp(folder);
  return { direction, recursive, preserve, path, folder, tells, run };
}
