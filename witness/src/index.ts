export { addLog, openWitnessFolder, WitnessError, type KnownLog, type WitnessFolder } from "./folder.ts";
export { serveWitness, type ServeOptions, type WitnessServer } from "./server.ts";
export { addCheckpoint, type Answer } from "./witness.ts";
