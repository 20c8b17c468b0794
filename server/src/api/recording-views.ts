import type { ReplayLine } from "@glasskey/contract";
import type { Played } from "../recording/play.ts";
import type { Drawn } from "../recording/screen-worker.ts";
import { isoTime, lineJson, type ReplayLine as FoldedLine, timeOf } from "../recording/statements.ts";

export function playedView(item: Played): ReplayLine {
  if (item.what === "line") return lineView(item.line);
  if (item.what === "screen") return screenView(item.drawn);
  const { what, timeUs, stamp, text } = item.shown;
  return { what: what === "line" ? "shown" : what, at: isoTime(timeOf({ timeUs })), seq: stamp, text };
}

export function lineView(line: FoldedLine): ReplayLine {
  return lineJson(line) as unknown as ReplayLine; // JSON drops what is undefined
}

export function screenView({ timeUs, frame }: Drawn): ReplayLine {
  return { what: "screen", at: isoTime(timeOf({ timeUs })), ...frame };
}
