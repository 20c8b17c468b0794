import { terminalFlood } from "../server/testing/terminal-flood.ts";
import type { SoakContext, SoakResult } from "./scenario.ts";

export const summary = "a terminal's output that is no text, from the recorder to the export, in bounded memory";
export const unit = "bytes";
export const defaultCount = 2 * 2 ** 30;

export async function run({ cluster, count, folder }: SoakContext): Promise<SoakResult> {
  const found = await terminalFlood({ cluster, folder, bytes: count });
  const rate = (perSeconds: number): string => `${Math.round(found.sentBytes / perSeconds / 2 ** 20)} MiB/s`;
  return {
    figures: {
      bytes: `${found.sentBytes}, SHA-256 ${found.sent}`,
      chunks: `${found.chunks}`,
      "recorded and sealed at": rate(found.writeSeconds),
      "read and decrypted at": rate(found.readSeconds),
      "asciicast events": `${found.castEvents}`,
      "peak memory": `${found.peakRssMiB} MiB`,
    },
    problems: found.problems,
  };
}
