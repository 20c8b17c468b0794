import type { Growth } from "./growth.ts";
import type { WitnessPolicy } from "./policy.ts";
import type { Proved } from "./proof.ts";
import { formatProblem, type Report } from "./report.ts";

/** A report for people: what holds, or what does not and where. */
export function formatReport(report: Report, recordings = true): string {
  const { totals, witnessed } = report;
  const lines = report.problems.map((problem) => `✗ ${formatProblem(problem)}`);
  const more = report.problemCount - report.problems.length;
  if (more > 0) lines.push(`✗ and ${more} more`);
  if (report.ok) {
    lines.push(
      `✓ ${report.origin}: ${count(report.size, "entry", "entries")}, root ${report.root}`,
      `✓ ${count(totals.checkpoints, "signed checkpoint")}, ${count(totals.tiles, "tile")}, all of one history`,
    );
    if (witnessed !== undefined) {
      const none = witnessed.unwitnessed === 0 ? "; none is newer" : "";
      lines.push(
        `✓ the first ${count(witnessed.size, "entry", "entries")} seen by ${witnessed.by.join(", ")} ` +
          `(policy: ${witnessed.policy}) at ${timeOf(witnessed.seconds)}${none}`,
      );
      if (witnessed.unwitnessed > 0) {
        const newer = count(witnessed.unwitnessed, "newer entry", "newer entries");
        lines.push(`- not witnessed yet, so with the log's word alone: ${newer}`);
      }
    }
    lines.push(
      recordings
        ? `✓ ${count(totals.chunks, "chunk")} of ${count(totals.sessions, "recorded session")} (${totals.chunkBytes} bytes)`
        : "- recordings were not looked at",
    );
    if (report.head !== "checkpoint") {
      const after = totals.beyond === 0 ? "" : `; ${count(totals.beyond, "file")} that came after it not looked at`;
      lines.push(`- an archive, up to ${report.head}: there is no file \`checkpoint\`${after}`);
    }
    if (!report.listed) lines.push("- files that do not belong were not looked for: a URL does not list what it has");
    const partly = witnessed !== undefined && witnessed.unwitnessed > 0;
    lines.push(
      partly ? `Everything verifies; witnesses saw ${witnessed.size} of ${report.size}.` : "Everything verifies.",
    );
  } else {
    if (totals.unchecked > 0) {
      const files = count(totals.unchecked, "older partial tile");
      lines.push(
        `- ${files} could not be checked: there is nothing sound to hold ${totals.unchecked === 1 ? "it" : "them"} against`,
      );
    }
    const found = count(report.problemCount, "problem");
    lines.push(`This log does not verify: ${report.problemCount === 0 ? "not every entry could be read" : found}.`);
  }
  return `${lines.join("\n")}\n`;
}

export function formatGrowth({ ok, origin, oldSize, size, problems }: Growth): string {
  const lines = problems.map((problem) => `✗ ${formatProblem(problem)}`);
  if (ok) lines.push(`✓ ${origin}: grew from ${oldSize} to ${count(size, "entry", "entries")} by appending alone`);
  lines.push(ok ? "Entries and recordings were not looked at." : "This growth does not verify.");
  return `${lines.join("\n")}\n`;
}

export function formatProved(
  { origin, index, size, cosignatures }: Proved,
  policy: WitnessPolicy | undefined,
  withoutLineEnd: boolean,
): string {
  const lines = [`✓ ${origin}: this is entry ${index}, under the log's signed checkpoint of ${size}`];
  if (policy !== undefined) {
    const names = [...new Set(cosignatures.map(({ name }) => name))].join(", ");
    const at = timeOf(Math.min(...cosignatures.map(({ seconds }) => seconds)));
    lines.push(`✓ seen by ${names} (policy: ${policy.description}) at ${at}`);
  }
  if (withoutLineEnd) lines.push("- the line end of the entry's file is not part of the entry");
  return `${lines.join("\n")}\nThis proof verifies.\n`;
}

/** Seconds are signed numbers of somebody else: beyond what a date can be, they are shown as they are. */
function timeOf(seconds: number): string {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? `${seconds} s` : date.toISOString();
}

function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}
