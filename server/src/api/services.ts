import type { TargetCheck } from "@glasskey/contract";
import type { Access, EvidenceService } from "../access/access.ts";
import type { ArchiveStatus } from "../archive/archive.ts";
import type { LogKeys } from "../audit/keys.ts";
import type { LogReader } from "../audit/read.ts";
import type { Bundles } from "../bundles/serve.ts";
import type { Clock } from "../core/clock.ts";
import type { JsonObject } from "../core/json.ts";
import type { Secret } from "../core/secret.ts";
import type { PushReceiver } from "../evidence/push.ts";
import type { Health } from "../metrics/health.ts";
import type { Links } from "../notify/links.ts";
import type { Recordings } from "../recording/replay.ts";
import type { Sinks } from "../sinks/sinks.ts";
import type { HostSetup, TargetKind } from "../targets/target.ts";
import type { RetentionApi } from "./retention.ts";
import type { StandingApi } from "./standing.ts";

/** What the API maps to HTTP. Made in main.ts. */
export interface Api {
  readonly access: Access;
  readonly version: string;
  readonly kinds: ReadonlyMap<string, Pick<TargetKind, "promises" | "clientCommand" | "clientCertificate">>;
  personOfToken(token: string): Promise<{ person: string; expiresAt: Date } | undefined>;
  login(
    name: string,
    secret: string,
    remoteAddress: string,
  ): Promise<{ token: Secret; person: string; expiresAt: Date }>;
  logout(token: string): Promise<void>;
  /** Where clients of a kind reach the gateway. */
  endpoint(kind: string): { host: string; port: number; trust: string } | undefined;
  /** PEM of the CA behind the certificates of gateway and API. */
  readonly ca: string;
  checkTargets(name: string | undefined): Promise<readonly TargetCheck[]>;
  /** What an administrator puts on a target of that kind, ready to copy. @throws GlassError `not_found` */
  setup(kind: string, config: JsonObject): HostSetup;
  readonly bundles: Pick<Bundles, "inForce" | "reload" | "history" | "hook">;
  readonly log: LogApi;
  /** Undefined where no archive is configured. */
  readonly archive: ArchiveApi | undefined;
  readonly evidence: EvidenceService & PushReceiver;
  readonly links: Links;
  readonly clock: Clock;
  readonly recordings: RecordingApi;
  readonly sinks: Pick<Sinks, "status" | "retry">;
  readonly retention: RetentionApi;
  readonly standing: StandingApi;
  readonly probes: Health;
  readonly warn: (line: string) => void;
}

export interface ArchiveApi {
  status(): Promise<ArchiveStatus>;
}

export interface LogApi {
  readonly reader: LogReader;
  readonly keys: LogKeys;
}

export type RecordingApi = Recordings;
