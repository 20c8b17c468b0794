import type { SharedCluster } from "../server/testing/global.ts";

/** What a scenario may take, and where it says what it sees. */
export interface SoakContext {
  /** A throw-away PostgreSQL that all scenarios share. */
  readonly cluster: SharedCluster;
  /** How many rounds, entries or bytes; the scenario's own unit. */
  readonly count: number;
  /** Stop in good order after that: the figures say how far it came. */
  readonly deadlineMs: number;
  /** A folder of the scenario's own, removed afterwards. */
  readonly folder: string;
  say(line: string): void;
}

export interface SoakResult {
  /** Name → value with its unit, in the order to print. */
  readonly figures: Readonly<Record<string, string>>;
  /** What did not hold, for a person; empty where all held. */
  readonly problems: readonly string[];
}

/** The exports of a `*.soak.ts`. */
export interface SoakScenario {
  readonly summary: string;
  /** `rounds`, `entries`, `bytes`: the option that sets the count. */
  readonly unit: string;
  /** The long form's own count. */
  readonly defaultCount: number;
  run(context: SoakContext): Promise<SoakResult>;
}
