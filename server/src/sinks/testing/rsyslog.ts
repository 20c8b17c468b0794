import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import type { Rig } from "./rig.ts";

/** Where Debian's packages rsyslog and rsyslog-gnutls put them. */
const RSYSLOG = "/usr/sbin/rsyslogd";
const GNUTLS = "/usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so";
const gnutls = GNUTLS.replace("x86_64", process.arch === "arm64" ? "aarch64" : "x86_64");

export const hasRsyslog = existsSync(RSYSLOG) && existsSync(gnutls);

/**
 * Debian's rsyslog in the foreground, with a folder of its own below the rig's.
 * @param undo takes what ends it. @param client the name that a client's certificate must have; undefined: none is asked for.
 */
export async function startRsyslog(
  rig: Rig,
  port: number,
  undo: (step: () => unknown) => void,
  client?: string,
): Promise<ChildProcess> {
  const dir = join(rig.folder, "rsyslog");
  await mkdir(join(dir, "work"), { recursive: true });
  const file = (name: string): string => join(dir, name);
  await writeFile(file("key.pem"), rig.identity.key);
  await writeFile(file("cert.pem"), rig.identity.cert);
  const who = client === undefined ? `"anon"` : `"x509/name" permittedPeer="${client}"`;
  await writeFile(
    file("rsyslog.conf"),
    `global(workDirectory="${file("work")}" maxMessageSize="256k" defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="${rig.ca}" defaultNetstreamDriverCertFile="${file("cert.pem")}"
  defaultNetstreamDriverKeyFile="${file("key.pem")}")
main_queue(queue.type="Direct")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode=${who})
input(type="imtcp" address="127.0.0.1" port="${port}")
template(name="one" type="string" string="%structured-data%\\t%pri%\\t%msgid%\\t%msg%\\n")
action(type="omfile" file="${file("glasskey.log")}" template="one")
`,
  );
  const args = ["-n", "-f", file("rsyslog.conf"), "-i", file("pid")];
  const child = spawn(RSYSLOG, args, { stdio: ["ignore", "ignore", "pipe"] });
  undo(() => child.kill("SIGKILL"));
  return child;
}

/** What it wrote: structured data, priority, type and body of each message. */
export function written(rig: Rig): readonly string[][] {
  const path = join(rig.folder, "rsyslog", "glasskey.log");
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.split("\t"));
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
