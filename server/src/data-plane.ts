import { workerData } from "node:worker_threads";
import { systemClock } from "./core/clock.ts";
import type { PlaneStart } from "./gateway/gateway.ts";
import { startPlane } from "./gateway/plane.ts";
import { openJournal } from "./recording/journal.ts";
import { kinds } from "./targets/registry.ts";

// The composition root of the worker thread; main.ts is the other one.
const { port, options } = workerData as PlaneStart;
await startPlane(port, options, { kinds, openJournal, clock: systemClock });
