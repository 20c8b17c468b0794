import type { TargetCheck } from "@glasskey/contract";
import type { Access } from "../access/access.ts";
import type { LogReader } from "../audit/read.ts";
import type { Secret } from "../core/secret.ts";
import type { Recordings } from "../recording/replay.ts";
import type { TargetKind } from "../targets/target.ts";

/** What the API maps to HTTP. Made in main.ts. */
export interface Api {
  readonly access: Access;
  readonly version: string;
  readonly kinds: ReadonlyMap<string, Pick<TargetKind, "promises" | "clientCommand">>;
  personOfToken(token: string): Promise<{ person: string; expiresAt: Date } | undefined>;
  login(
    name: string,
    secret: string,
    remoteAddress: string,
  ): Promise<{ token: Secret; person: string; expiresAt: Date }>;
  logout(token: string): Promise<void>;
  /** Where clients of a kind reach the gateway. */
  endpoint(kind: string): { host: string; port: number } | undefined;
  /** PEM of the CA behind the certificates of gateway and API. */
  readonly ca: string;
  checkTargets(name: string | undefined): Promise<readonly TargetCheck[]>;
  /** Reads the policy folder again. @returns what is wrong with it, as text; undefined when it is in force. */
  reloadPolicy(): Promise<string | undefined>;
  readonly log: LogApi;
  readonly recordings: RecordingApi;
  health(): Promise<{ gateway: boolean; store: boolean }>;
  readonly warn: (line: string) => void;
}

export interface LogApi {
  readonly reader: LogReader;
  readonly vkey: string;
}

export type RecordingApi = Recordings;
