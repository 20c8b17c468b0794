import type { Secret } from "../core/secret.ts";
import { folderStore } from "../objects/folder.ts";
import type { ObjectStore } from "../objects/object-store.ts";
import { s3Store } from "../objects/s3.ts";
import type { PlaceConfig } from "./config.ts";

export function openPlace(config: PlaceConfig, resolveSecret: (reference: string) => Secret): ObjectStore {
  return config.kind === "folder" ? folderStore(config.folder) : s3Store(config, resolveSecret);
}
