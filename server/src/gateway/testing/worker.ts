import { workerData } from "node:worker_threads";
import { systemClock } from "../../core/clock.ts";
import type { PlaneStart } from "../gateway.ts";
import { startPlane } from "../plane.ts";
import { createLineKind } from "./line-kind.ts";
import { createMemoryJournal } from "./memory-journal.ts";

// A data plane for tests that need the real thread: the line protocol, and a journal in memory.
const { port, options } = workerData as PlaneStart;
const kinds = [createLineKind(), createLineKind({ name: "line-tls", tls: true })];
await startPlane(port, options, { kinds, openJournal: createMemoryJournal().open, clock: systemClock });
