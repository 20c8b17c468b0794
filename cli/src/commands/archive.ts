import type { ArchiveAnswer } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { readLogin } from "../home.ts";
import { plain, table } from "../output.ts";

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["min", 60_000],
  ["s", 1_000],
] as const;

/** Exit code 1 when the archive does not do its work, so that a script may ask. */
export async function archiveStatus({ out }: Invocation): Promise<number> {
  const answer = await call<ArchiveAnswer>(readLogin(), "GET", "/v1/archive");
  out.value(answer);
  const { archive } = answer;
  if (archive === null) {
    out.say("No archive is configured: `archive:` in glasskey.yaml, docs/archive.md.");
    return 0;
  }
  const behind = archive.logSize - archive.size;
  const late = archive.lagMs > 2 * archive.everyMs;
  const rows: [string, string][] = [
    ["place", plain(archive.place)],
    ["archived", `${archive.size} of ${archive.logSize} entries`],
    [
      "behind",
      behind <= 0
        ? "no"
        : `${behind} ${behind === 1 ? "entry" : "entries"}, ${inWords(archive.lagMs)}${late ? ", which is late" : ""}`,
    ],
    [
      "newest dated",
      archive.datedAt === null ? "none yet" : `${archive.datedAt}; one every ${inWords(archive.everyMs)}`,
    ],
    ["kept", `log ${inWords(archive.retainMs)}, recordings ${inWords(archive.recordingsRetainMs)}`],
    ["objects", `${archive.objects}, ${(archive.bytes / 1e6).toFixed(1)} MB`],
  ];
  if (archive.owed > 0) rows.push(["missing", `${archive.owed} chunks of recordings could not be read`]);
  if (archive.lastError !== null) rows.push([archive.refused ? "refused" : "last error", plain(archive.lastError)]);
  for (const { path, fault } of archive.faults) rows.push(["changed", plain(`${path} ${fault}`)]);
  out.sayAll(table(rows).flat());
  return archive.refused || late || archive.faults.length > 0 ? 1 : 0;
}

function inWords(ms: number): string {
  const [unit, size] = UNITS.find(([, least]) => ms >= least) ?? ["s", 1_000];
  return `${Math.floor(ms / size)} ${unit}`;
}
