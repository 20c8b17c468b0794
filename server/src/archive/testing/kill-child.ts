import { promises } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { createLogReader } from "../../audit/read.ts";
import { folderStore } from "../../objects/folder.ts";
import { openStore, type StoreAddress } from "../../store/database.ts";
import { startArchive } from "../archive.ts";

/** What the child is given, as JSON in its first argument. */
export interface KillPlan {
  readonly address: StoreAddress;
  readonly vkey: string;
  /** Where the archive is, and where the chunks are to be read, by their paths. */
  readonly archive: string;
  readonly chunks: string;
  /** Killed in this operation on a file of the archive, counted from 1: in the middle of a write, before any other. */
  readonly killAt: number;
}

// Archives once, and is killed with SIGKILL on its way; prints how far it is archived where there was no such operation any more.
const plan = JSON.parse(process.argv[2] ?? "") as KillPlan;
const die = (): Promise<never> => {
  process.kill(process.pid, "SIGKILL");
  return new Promise(() => {});
};

let operations = 0;
const here = (): boolean => (operations += 1) === plan.killAt;
const whole = { open: promises.open, chmod: promises.chmod };
const inside = new WeakSet<object>();
promises.open = async (...args: Parameters<typeof whole.open>) => {
  const file = await whole.open(...args);
  if (String(args[0]).startsWith(plan.archive)) inside.add(file);
  return file;
};
promises.chmod = async (...args: Parameters<typeof whole.chmod>) => {
  if (here()) await die();
  return whole.chmod(...args);
};
const probe = await whole.open("/dev/null");
type Method = (this: object, ...args: unknown[]) => Promise<unknown>;
const prototype = Object.getPrototypeOf(probe) as { write: Method; sync: Method };
await probe.close();
const { write, sync } = prototype;
prototype.write = async function (...args) {
  if (!inside.has(this) || !here()) return write.apply(this, args);
  const [bytes, offset, length, position] = args as [Uint8Array, number, number, number];
  await write.call(this, bytes, offset, length >> 1, position);
  return die();
};
prototype.sync = async function () {
  if (inside.has(this) && here()) await die();
  return sync.apply(this);
};
syncBuiltinESMExports();

const store = openStore(plan.address);
const archive = startArchive({
  ...{
    store,
    objects: folderStore(plan.archive),
    reader: createLogReader(store),
    keys: () => plan.vkey,
    node: "nd_killed",
  },
  readChunk: ({ path }) => promises.readFile(join(plan.chunks, path)),
  ...{ retainMs: 86_400_000, recordingsRetainMs: 86_400_000, everyMs: 60_000, pollMs: 3_600_000 },
  warn: (line) => process.stderr.write(`${line}\n`),
  alarms: { raise: async (key, text) => process.stderr.write(`${key}: ${text}\n`), clear: async () => {} },
});
await archive.archiveNow();
process.stdout.write(`archived ${await archive.archivedSize()}\n`);
await archive.stop();
await store.destroy();
