import { fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { FloodOrder, FloodReport } from "../src/recording/testing/flood-child.ts";

const CHILD = fileURLToPath(new URL("../src/recording/testing/flood-child.ts", import.meta.url));
/** Whatever the length of the output. The sealer alone may hold 64 MiB. */
const MAX_RSS_MIB = 512;

/**
 * A terminal's output of that many bytes, none of it text, through recorder, journal, sealer, chunks and export, in a
 * process of its own whose memory is watched.
 */
export async function terminalFlood(order: FloodOrder): Promise<FloodReport> {
  const child = fork(CHILD, { stdio: ["ignore", "ignore", "pipe", "ipc"] });
  let errors = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => (errors += text));
  const gone = once(child, "exit");
  const answer = once(child, "message").then(([report]) => report as FloodReport);
  child.send(order);
  const report = await Promise.race([
    answer,
    gone.then(([code]) => Promise.reject(new Error(`ended with ${code}: ${errors}`))),
  ]);
  await gone;
  const problems = [...report.problems];
  if (report.sentBytes !== order.bytes) problems.push(`${report.sentBytes} bytes were sent`);
  if (report.sent !== report.sealed)
    problems.push(`${report.sentBytes} bytes ${report.sent} became ${report.sealedBytes} bytes ${report.sealed}`);
  if (report.peakRssMiB > MAX_RSS_MIB)
    problems.push(`it took ${report.peakRssMiB} MiB of memory, more than ${MAX_RSS_MIB}`);
  return { ...report, problems };
}
