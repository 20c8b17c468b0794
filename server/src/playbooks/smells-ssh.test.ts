import { expect, test } from "vitest";
import { checkHostScope } from "./smells-ssh.ts";

function found(scope: Parameters<typeof checkHostScope>[0]): string[] {
  const paths: string[] = [];
  checkHostScope(scope, (code, path) => void paths.push(`${code} ${path.join(".")}`));
  return paths;
}

test("GK005: commands beside a shell, programs that run others, and files that are as good as all", () => {
  expect(found({ shell: true, commands: ["id"] })).toEqual(["GK005 scope.commands"]);
  expect(found({ commands: ["id", "/usr/bin/find /srv ...", "sudo *", "tar -tf <name>"] })).toEqual([
    ...["GK005 scope.commands.1", "GK005 scope.commands.2", "GK005 scope.commands.3"],
  ]);
  expect(found({ sftp: { read: ["/**", "/var/log/**"], write: ["/etc/**"] } })).toEqual([
    ...["GK005 scope.sftp.read.0", "GK005 scope.sftp.write.0"],
  ]);
});

test("GK005: a program that starts others from its screen, or a shell by itself, also where it is written out in full", () => {
  expect(found({ commands: ["vim /etc/app.conf", "/usr/bin/less /var/log/app.log", "bash", "tail -n 5 /x"] })).toEqual([
    ...["GK005 scope.commands.0", "GK005 scope.commands.1", "GK005 scope.commands.2"],
  ]);
});

test("GK005: a scope that says what it means is not asked about", () => {
  expect(
    found({
      ...{ user: "app", shell: false, commands: ["systemctl restart app-*", "sudo systemctl restart app"] },
      sftp: { read: ["/var/log/**"], write: ["/srv/app/**"] },
    }),
  ).toEqual([]);
});
