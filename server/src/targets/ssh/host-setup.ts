import type { JsonObject } from "../../core/json.ts";
import type { DriverTools, HostSetup } from "../target.ts";
import { authorityLine } from "./authority.ts";
import { configOf, type Control } from "./config.ts";
import { CONTROL_SCRIPT } from "./control.ts";

const AUTHORITY = "/etc/ssh/glasskey_ca.pub";
const SETTINGS = "/etc/ssh/sshd_config.d/50-glasskey.conf";
const PRINCIPALS = "/etc/ssh/glasskey_principals";
const SCRIPT = "/usr/local/lib/glasskey/control";
const SUDOERS = "/etc/sudoers.d/glasskey";
const SETUP = "/usr/local/lib/glasskey/setup";

interface File {
  readonly title: string;
  readonly file: string;
  readonly mode: string;
  readonly text: string;
}

/**
 * What a host needs once. Two lines let leases in: the authority, and the line that names it. A control login adds the list
 * of revoked keys, and a user that can run one script and nothing else: sshd forces the command upon its principal, and sudo
 * lets it run that script as root. `root` as the control user needs neither, and the script is then sent each time.
 * @param config a target's; `{}` shows the whole, with a control login named glasskey
 */
export function hostSetup(tools: Pick<DriverTools, "derive" | "install">, config: JsonObject): HostSetup {
  const control = Object.keys(config).length === 0 ? RECOMMENDED : configOf(config).control;
  const files = filesFor(authorityLine(tools), control);
  return {
    steps: [
      ...files.map(({ title, file, text }) => ({ title, file, text })),
      { title: "Check and reload", text: `${prepare(control)}${RELOAD}` },
    ],
    formats: {
      shell: shell(files, control),
      "cloud-init": cloudInit(files, control),
      ansible: ansible(files, control),
    },
  };
}

const RECOMMENDED: Control = { user: "glasskey", principal: "glasskey", revokedKeys: "/etc/ssh/glasskey_revoked_keys" };

function filesFor(authority: string, control: Control | null): readonly File[] {
  const settings = [`TrustedUserCAKeys ${AUTHORITY}`, "AcceptEnv LC_GLASSKEY"];
  const files: File[] = [
    { title: "Who may sign for this host", file: AUTHORITY, mode: "0644", text: `${authority}\n` },
  ];
  if (control !== null) settings.push(`RevokedKeys ${control.revokedKeys}`);
  if (control !== null && control.user !== "root") {
    settings.push(`Match User ${control.user}`, `  AuthorizedPrincipalsFile ${PRINCIPALS}`, "Match all");
    const command = String.raw`sudo -n ${SCRIPT} \"$SSH_ORIGINAL_COMMAND\" \"$SSH_CONNECTION\"`;
    files.push(
      { title: "What Glasskey does here, to be read first", file: SCRIPT, mode: "0755", text: CONTROL_SCRIPT },
      {
        ...{ title: "The control login runs that, whatever it asks for", file: PRINCIPALS, mode: "0644" },
        text: `restrict,command="${command}" ${control.principal}\n`,
      },
      {
        ...{ title: "And may run it as root, and nothing else", file: SUDOERS, mode: "0440" },
        text: `${control.user} ALL=(root) NOPASSWD: ${SCRIPT}\n`,
      },
    );
  }
  files.push({
    title: "What sshd is told",
    file: SETTINGS,
    mode: "0644",
    text: settings.map((line) => `${line}\n`).join(""),
  });
  return files;
}

/** sshd refuses every key while a list that it is told of is missing, so the list is there before the line that names it. */
function prepare(control: Control | null): string {
  if (control === null) return "";
  const list = `[ -e ${control.revokedKeys} ] || install -m 0644 /dev/null ${control.revokedKeys}\n`;
  if (control.user === "root") return list;
  // "*" is no password and no lock; sshd lets no key of a locked user in.
  return `${list}id -u ${control.user} >/dev/null 2>&1 || useradd --system --create-home --shell /bin/sh ${control.user}\nusermod -p '*' ${control.user}\n`;
}

const INCLUDE = `grep -qiE '^[[:space:]]*Include[[:space:]]+/etc/ssh/sshd_config\\.d/' /etc/ssh/sshd_config ||
  sed -i '1i Include /etc/ssh/sshd_config.d/*.conf' /etc/ssh/sshd_config
`;

const RELOAD = `sshd -t
systemctl reload ssh 2>/dev/null || systemctl reload sshd 2>/dev/null || echo 'Reload sshd now.'
`;

function shell(files: readonly File[], control: Control | null): string {
  const writes = files.map(({ title, file, mode, text }) => {
    const folder = file.slice(0, file.lastIndexOf("/"));
    const write = `mkdir -p ${folder}\ncat >${file}.new <<'GLASSKEY-END'\n${text}GLASSKEY-END\nchmod ${mode} ${file}.new && mv ${file}.new ${file}\n`;
    // Other authorities may stand beside ours by now.
    return `# ${title}\n${file === AUTHORITY ? `if [ ! -s ${file} ]; then\n${write}fi\n` : write}`;
  });
  return `#!/bin/sh
# Glasskey on this host, once, as root. Doing it again changes nothing.
${guards(files, control)}${prepare(control)}${writes.join("")}${INCLUDE}${RELOAD}`;
}

/**
 * Stops before anything is changed. sshd takes the first value of a setting, and ours must not silently replace what the host
 * has already; nor may one Glasskey take away what another one, or this one before, has set up.
 */
function guards(files: readonly File[], control: Control | null): string {
  const authority = files.find(({ file }) => file === AUTHORITY)?.text.trim() ?? "";
  const whole = files.filter(({ file }) => [SETTINGS, PRINCIPALS, SUDOERS].includes(file));
  const instead = `append the line of ${AUTHORITY} to it and leave TrustedUserCAKeys out`;
  const again = "write its path as control.revokedKeys into the target file, and make this set-up again";
  return `set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022
mkdir -p /run/sshd # sshd -T wants it, also where sshd has not run yet
stop() { echo "$1" >&2; exit 1; }
settings=$(sshd -T 2>/dev/null) || settings=$(sshd -T -C user=root,host=localhost,addr=127.0.0.1) ||
  stop 'sshd -T does not say what this host has already: mend that first.'
${guard("TrustedUserCAKeys", AUTHORITY, instead)}${control === null ? "" : guard("RevokedKeys", control.revokedKeys, again)}if [ -s ${AUTHORITY} ] && ! grep -qxF ${quoted(authority)} ${AUTHORITY}; then
  stop ${quoted(`${AUTHORITY} has another Glasskey's line. To let both in, append: ${authority}`)}
fi
${whole.map(unlessMore).join("")}`;
}

function guard(setting: string, own: string, instead: string): string {
  return `had=$(printf '%s\\n' "$settings" | sed -n 's/^${setting.toLowerCase()} //p')
case "$had" in
  '' | none | ${own}) ;;
  *) stop "This host has ${setting} $had already: ${instead}." ;;
esac
`;
}

/** Stops where the file has a line that ours has not. */
function unlessMore({ file, text }: File): string {
  const lines = text.trimEnd().split("\n");
  return `if [ -e ${file} ] && grep -qvxF ${lines.map((line) => `-e ${quoted(line)}`).join(" ")} ${file}; then
  stop ${quoted(`${file} has lines that this set-up would take away. If nobody needs them, remove the file and do this again.`)}
fi
`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

/** The shell text as a file, and a run of it: in a process of its own, whose end is not the end of the host's other `runcmd`. */
function cloudInit(files: readonly File[], control: Control | null): string {
  return `#cloud-config
write_files:
  - path: ${SETUP}
    permissions: "0700"
    content: |
${indent(shell(files, control), 6)}runcmd:
  - [sh, ${SETUP}]
`;
}

/** Ansible takes what stands in two braces, or in one with % or #, for its own: nothing in these texts may. */
function ansible(files: readonly File[], control: Control | null): string {
  const script = (text: string): string => `      ansible.builtin.shell:\n        cmd: |\n${indent(text, 10)}`;
  const copies = files.map(
    ({ title, file, mode, text }) => `    - name: ${title}
      ansible.builtin.copy:
        dest: ${file}
        mode: "${mode}"
        content: |
${indent(text, 10)}${file === AUTHORITY ? "        force: false\n" : ""}${file === SETTINGS ? "        validate: /usr/sbin/sshd -t -f %s\n" : ""}${file === SUDOERS ? "        validate: /usr/sbin/visudo -cf %s\n" : ""}${[SETTINGS, AUTHORITY].includes(file) ? "      notify: Reload sshd\n" : ""}`,
  );
  const folder = files.some(({ file }) => file === SCRIPT)
    ? '    - name: Folder of the control script\n      ansible.builtin.file: { path: /usr/local/lib/glasskey, state: directory, mode: "0755" }\n'
    : "";
  const first =
    control === null
      ? ""
      : `    - name: The control login, and its list of revoked keys\n${script(prepare(control))}      changed_when: false\n`;
  return `- hosts: all
  become: true
  tasks:
    - name: Nothing that the host has already is replaced
${script(guards(files, control))}      changed_when: false
      check_mode: false
${first}${folder}${copies.join("")}    - name: Settings are read from sshd_config.d
${script(INCLUDE)}      changed_when: false
  handlers:
    - name: Reload sshd
${script(RELOAD)}`;
}

function indent(text: string, spaces: number): string {
  const lines = text.endsWith("\n") ? text.slice(0, -1).split("\n") : text.split("\n");
  return lines.map((line) => (line === "" ? "\n" : `${" ".repeat(spaces)}${line}\n`)).join("");
}
