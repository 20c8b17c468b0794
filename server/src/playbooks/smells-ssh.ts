import type { JsonObject, JsonValue } from "../core/json.ts";
import type { Report } from "./smells.ts";

/** Programs that run others, or open a shell from their screen: whoever may run one may run anything. */
const RUNS_OTHERS = new Set([
  ...[
    "awk",
    "bash",
    "busybox",
    "dash",
    "docker",
    "ed",
    "emacs",
    "env",
    "expect",
    "find",
    "flock",
    "gawk",
    "gdb",
    "git",
  ],
  ...[
    "ionice",
    "kubectl",
    "less",
    "lua",
    "make",
    "man",
    "more",
    "nano",
    "nice",
    "node",
    "nohup",
    "perl",
    "php",
    "podman",
  ],
  ...[
    "psql",
    "python",
    "python3",
    "rsync",
    "ruby",
    "screen",
    "script",
    "setsid",
    "sh",
    "socat",
    "ssh",
    "stdbuf",
    "strace",
  ],
  ...[
    "su",
    "sudo",
    "systemd-run",
    "tar",
    "tcpdump",
    "time",
    "timeout",
    "tmux",
    "vi",
    "vim",
    "watch",
    "xargs",
    "zip",
    "zsh",
  ],
]);

/** Programs that start any other from their screen, whatever their arguments. */
const FROM_SCREEN = new Set("ed emacs gdb less man more nano screen script tmux vi view vim vimdiff".split(" "));

/** What a careful reviewer would ask about the scope of a host (docs/ssh-scope.md). */
export function checkHostScope(scope: JsonObject, report: Report): void {
  const commands = textsOf(scope["commands"]);
  if (scope["shell"] === true && commands.length > 0) {
    const message = "scope.commands narrows nothing beside scope.shell, which gives any command";
    report("GK005", ["scope", "commands"], message, "Remove shell, or the commands.");
  }
  for (const [i, command] of commands.entries()) {
    const program = command.trim().split(/\s/)[0]?.split("/").at(-1)?.replaceAll(/['"]/g, "") ?? "";
    const bare = RUNS_OTHERS.has(program) && !/\s/.test(command.trim());
    if (FROM_SCREEN.has(program) || bare) {
      const message = `scope.commands.${i} runs ${program}, in which any other program can be started`;
      const fix = "Let files be changed by sftp, and looked at by cat, head or tail.";
      report("GK005", ["scope", "commands", i], message, fix);
      continue;
    }
    // What is written out in full can do only what the reviewer reads.
    if (!RUNS_OTHERS.has(program) || !/[*<]|\.\.\.$/.test(command)) continue;
    const message = `scope.commands.${i} leaves arguments of ${program} open, which can run other programs`;
    report(
      "GK005",
      ["scope", "commands", i],
      message,
      "Write its arguments out, or a script on the host that does it.",
    );
  }
  const sftp = scope["sftp"];
  const files = typeof sftp === "object" && sftp !== null && !Array.isArray(sftp) ? (sftp as JsonObject) : {};
  for (const key of ["read", "write"]) {
    for (const [i, glob] of textsOf(files[key]).entries()) {
      if (!/^\/(?:\*\*|\*|etc\/\*\*|root\/\*\*)(?:\/|$)/.test(glob)) continue;
      const message = `scope.sftp.${key}.${i} is ${JSON.stringify(glob)}, which is as good as every file`;
      report("GK005", ["scope", "sftp", key, i], message, "Name the folders that the repair needs.");
    }
  }
}

function textsOf(value: JsonValue | undefined): readonly string[] {
  return Array.isArray(value) ? value.filter((item): item is string => typeof item === "string") : [];
}
