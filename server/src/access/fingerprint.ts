import type { Access, KindControl } from "./access.ts";
import { readPlan, type LeaseRow } from "./lease-row.ts";

const FINGERPRINT_TIMEOUT_MS = 5_000;

/** What differs in the access state of a target from before the lease. */
export interface Drift {
  known: boolean;
  added: readonly string[];
  removed: readonly string[];
}

/** With what was found before the lease was minted. What cannot be asked or opened is not known, and keeps nothing from its end. */
export async function compare(access: Access, kind: KindControl, row: LeaseRow): Promise<Drift> {
  if (row.before === null) return { known: false, added: [], removed: [] };
  try {
    const before = new Set(openLines(access, row.id, row.before));
    const after = new Set(await fingerprint(access, kind, row));
    return { known: true, added: [...after.difference(before)], removed: [...before.difference(after)] };
  } catch {
    return { known: false, added: [], removed: [] };
  }
}

/** The access state of the target now, a line for each fact. @throws whatever keeps it from being asked. */
export async function fingerprint(access: Access, kind: KindControl, row: LeaseRow): Promise<readonly string[]> {
  const plan = readPlan(access, row);
  const { lines } = await kind.driver.fingerprint(plan, row.install, AbortSignal.timeout(FINGERPRINT_TIMEOUT_MS));
  return lines;
}

export function sealLines(access: Access, lease: string, lines: readonly string[]): Buffer {
  return access.keyring.seal({ table: "leases", row: lease, column: "before" }, Buffer.from(lines.join("\n")));
}

function openLines(access: Access, lease: string, sealed: Buffer): readonly string[] {
  return access.keyring.open({ table: "leases", row: lease, column: "before" }, sealed).toString("utf8").split("\n");
}
