import type { EventLine, ReplayLine, ScreenLine, ShownLine, StatementLine } from "@glasskey/contract";
import type { Line } from "../recording/outputs.ts";
import type { Played } from "../recording/play.ts";
import type { Drawn } from "../recording/screen-worker.ts";
import { isoTime, lineJson, type ReplayLine as FoldedLine, timeOf } from "../recording/statements.ts";

export function playedView(item: Played): ReplayLine {
  if (item.what === "line") return lineView(item.line);
  if (item.what === "screen") return screenView(item.drawn);
  return item.what === "terminals" ? item : shownView(item.shown);
}

export function shownView({ what, timeUs, stamp, n, text }: Line): ShownLine {
  return { what: what === "line" ? "shown" : what, at: isoTime(timeOf({ timeUs })), seq: stamp, n, text };
}

export function lineView(line: FoldedLine): StatementLine | EventLine {
  return lineJson(line) as unknown as StatementLine | EventLine; // JSON drops what is undefined
}

export function screenView({ n, timeUs, frame }: Drawn): ScreenLine {
  return { what: "screen", n, at: isoTime(timeOf({ timeUs })), ...frame };
}
