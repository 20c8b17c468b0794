import { openStore, type StoreAddress } from "../../store/database.ts";
import { Secret } from "../../core/secret.ts";
import { startSinks } from "../sinks.ts";
import { configOf, ORIGIN, WEBHOOK_SECRET } from "./rig.ts";

/** A process of its own that delivers until it is killed: argv has the store's address, the sinks and the node. */
const [address = "", sinks = "", node = ""] = process.argv.slice(2);
const store = openStore(JSON.parse(address) as StoreAddress);
await startSinks({
  ...{ sinks: configOf(JSON.parse(sinks) as Record<string, object>), store, node, pollMs: 20, pausesMs: [20, 50] },
  speaker: { origin: ORIGIN, version: "0.1.0" },
  resolveSecret: () => new Secret(WEBHOOK_SECRET),
  namesOf: async () => ({}),
  alarms: { raise: async () => {}, clear: async () => {} },
  warn: (line) => process.stderr.write(`${line}\n`),
});
setInterval(() => {}, 1_000); // it ends by being killed
