import { connect } from "node:net";
import { parentPort, workerData } from "node:worker_threads";

// A client in a thread of its own, so that it sees what happens while the main thread is blocked. Logs in, then reports
// when the connection was closed, by the wall clock that all threads share, and the last line.
const { port, hello } = workerData as { port: number; hello: string };
const socket = connect({ host: "127.0.0.1", port }, () => socket.write(`${hello}\n`));
let text = "";
socket.on("data", (bytes: Buffer) => {
  if (text === "") parentPort?.postMessage("welcome");
  text += bytes.toString();
});
socket.on("close", () => parentPort?.postMessage({ closedAtMs: Date.now(), last: text.trim().split("\n").at(-1) }));
