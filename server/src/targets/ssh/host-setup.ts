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
  const guards = [
    guard("TrustedUserCAKeys", AUTHORITY, `append the line of ${AUTHORITY} to it and leave TrustedUserCAKeys out`),
  ];
  if (control !== null) {
    guards.push(
      guard(
        "RevokedKeys",
        control.revokedKeys,
        "write its path as control.revokedKeys into the target file, and make this set-up again",
      ),
    );
  }
  const writes = files.map(({ title, file, mode, text }) => {
    const folder = file.slice(0, file.lastIndexOf("/"));
    return `# ${title}\nmkdir -p ${folder}\ncat >${file}.new <<'GLASSKEY-END'\n${text}GLASSKEY-END\nchmod ${mode} ${file}.new && mv ${file}.new ${file}\n`;
  });
  return `#!/bin/sh
# Glasskey on this host, once, as root. Doing it again changes nothing.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022
${guards.join("")}${prepare(control)}${writes.join("")}${INCLUDE}${RELOAD}`;
}

/** sshd takes the first value of a setting: ours must not silently replace what the host has already. */
function guard(setting: string, own: string, instead: string): string {
  const name = setting.toLowerCase();
  return `had=$(sshd -T 2>/dev/null | sed -n 's/^${name} //p')
case "$had" in
  '' | none | ${own}) ;;
  *) echo "This host has ${setting} $had already: ${instead}." >&2; exit 1 ;;
esac
`;
}

function cloudInit(files: readonly File[], control: Control | null): string {
  const written = files.map(
    ({ file, mode, text }) => `  - path: ${file}\n    permissions: "${mode}"\n    content: |\n${indent(text, 6)}`,
  );
  return `#cloud-config
write_files:
${written.join("")}runcmd:
  - |
${indent(`set -eu\n${prepare(control)}${INCLUDE}${RELOAD}`, 4)}`;
}

function ansible(files: readonly File[], control: Control | null): string {
  const copies = files.map(
    ({ title, file, mode, text }) => `    - name: ${title}
      ansible.builtin.copy:
        dest: ${file}
        mode: "${mode}"
        content: |
${indent(text, 10)}${file === SETTINGS ? "        validate: /usr/sbin/sshd -t -f %s\n" : ""}${file === SUDOERS ? "        validate: /usr/sbin/visudo -cf %s\n" : ""}${file === SETTINGS ? "      notify: Reload sshd\n" : ""}`,
  );
  const folder = files.some(({ file }) => file === SCRIPT)
    ? '    - name: Folder of the control script\n      ansible.builtin.file: { path: /usr/local/lib/glasskey, state: directory, mode: "0755" }\n'
    : "";
  const first =
    control === null
      ? ""
      : `    - name: The control login, and its list of revoked keys\n      ansible.builtin.shell: |\n${indent(prepare(control), 8)}      changed_when: false\n`;
  return `- hosts: all
  become: true
  tasks:
${first}${folder}${copies.join("")}    - name: Settings are read from sshd_config.d
      ansible.builtin.shell: |
${indent(INCLUDE, 8)}      changed_when: false
  handlers:
    - name: Reload sshd
      ansible.builtin.shell: |
${indent(RELOAD, 8)}`;
}

function indent(text: string, spaces: number): string {
  const lines = text.endsWith("\n") ? text.slice(0, -1).split("\n") : text.split("\n");
  return lines.map((line) => (line === "" ? "\n" : `${" ".repeat(spaces)}${line}\n`)).join("");
}
