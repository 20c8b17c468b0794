import { existsSync } from "node:fs";
import { join } from "node:path";
import { append } from "./audit/append.ts";
import type { ServerConfig } from "./config.ts";
import { makeDataDir, nodeId, rootKey } from "./installation.ts";
import { chunkStoreOf, openStoreRoles, storeAddress } from "./open-store.ts";
import { stopParts, type Parts } from "./parts.ts";
import { abandonJournal, setAside } from "./recording/abandon.ts";
import { lockFolder } from "./recording/journal-files.ts";
import { openStore } from "./store/database.ts";
import { openKeyring } from "./store/keyring.ts";

/**
 * Gives up the journal of a process whose journal folder is lost for good, as an operator says; see `abandonJournal`. Where
 * it is the one of this data folder, what is left of it is moved aside, so that the next start begins a new one.
 * @returns the sessions whose recordings end there, and the folders that were kept.
 * @throws GlassError `conflict` while a Glasskey runs on this data folder, or that process is alive anywhere.
 */
export async function abandonLostJournal(
  config: ServerConfig,
  journalOf: string,
): Promise<{ sessions: readonly string[]; kept: readonly string[] }> {
  const parts: Parts = new Map();
  try {
    await makeDataDir(config.dataDir);
    const lock = lockFolder(config.dataDir, "the data folder");
    parts.set("lock", () => lock.release());
    const root = await rootKey(config);
    const { address } = await openStoreRoles(await storeAddress(config, parts), config, root);
    const store = openStore(address);
    parts.set("store", () => store.destroy());
    const keyring = await openKeyring(store, root);
    const chunks = chunkStoreOf(config);
    const now = new Date();
    const own = journalOf === (await nodeId(config.dataDir));
    const folders = own ? [join(config.dataDir, "journal"), config.recordings.mirror ?? ""] : [];
    const kept: string[] = [];
    const putAside = async (): Promise<void> => {
      for (const folder of folders.filter((path) => existsSync(path))) kept.push(await setAside(folder, now));
    };
    const sessions = await abandonJournal({ name: journalOf, store, keyring, chunks, append, now, putAside });
    return { sessions, kept };
  } finally {
    await stopParts(parts, () => {});
  }
}
