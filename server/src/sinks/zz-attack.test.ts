import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { afterEach, expect, inject, test } from "vitest";
import { startRig, tagsOf, until, type Rig } from "./testing/rig.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).toReversed()) await step();
});
async function start(rig: Rig, port: number): Promise<ChildProcess> {
  const dir = join(rig.folder, "rsyslog");
  await mkdir(join(dir, "work"), { recursive: true });
  const file = (name: string): string => join(dir, name);
  await writeFile(file("key.pem"), rig.identity.key);
  await writeFile(file("cert.pem"), rig.identity.cert);
  await writeFile(
    file("rsyslog.conf"),
    `global(workDirectory="${file("work")}" maxMessageSize="256k" defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="${rig.ca}" defaultNetstreamDriverCertFile="${file("cert.pem")}"
  defaultNetstreamDriverKeyFile="${file("key.pem")}")
main_queue(queue.type="Direct")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" address="127.0.0.1" port="${port}")
template(name="one" type="string" string="%structured-data%\\t%pri%\\t%msgid%\\t%msg%\\n")
action(type="omfile" file="${file("glasskey.log")}" template="one" asyncWriting="off" flushOnTXEnd="on")
`,
  );
  const child = spawn("/usr/sbin/rsyslogd", ["-n", "-f", file("rsyslog.conf"), "-i", file("pid")], { stdio: "ignore" });
  undo.push(() => child.kill("SIGKILL"));
  return child;
}
test("sigterm", async () => {
  const rig = await startRig(inject("pg18"));
  undo.push(() => rig[Symbol.asyncDispose]());
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  const size = await rig.add(2000);
  const path = join(rig.folder, "rsyslog", "glasskey.log");
  const count = () => (existsSync(path) ? readFileSync(path, "utf8").split("\n").length - 1 : 0);
  for (const at of [1, 20, 100, 300, 600, 1000, 1500, 1900]) {
    const child = await start(rig, port);
    await until(async () => {
      const s = (await import("node:net")).connect(port, "127.0.0.1");
      return new Promise<boolean>((r) =>
        s
          .once("connect", () => {
            s.destroy();
            r(true);
          })
          .once("error", () => r(false)),
      );
    });
    const sinks = await rig.sinks(
      { siem: { kind: "syslog", host: "127.0.0.1", port, ca: rig.ca, from: "start" } },
      { pausesMs: [20000] },
    );
    await until(() => count() >= at);
    child.kill("SIGTERM");
    await new Promise((resolve) => child.once("exit", resolve));
    await new Promise((r) => setTimeout(r, 300));
    const [s] = await sinks.status();
    console.log({ at, written: count(), next: s?.nextIndex, failures: s?.failures, lastError: s?.lastError, size });
    await sinks.stop();
    await rig.log.query("delete from sinks");
    rmSync(path, { force: true });
  }
  expect(tagsOf([])).toEqual([]);
}, 120_000);
