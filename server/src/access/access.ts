import type { JsonObject } from "../core/json.ts";
import type { Policy } from "../playbooks/policy.ts";
import type { Keyring } from "../store/keyring.ts";
import type { Store } from "../store/database.ts";
import type { LeaseDriver, Promises } from "../targets/target.ts";

/** What access needs of a target kind in the control plane. */
export interface KindControl {
  readonly driver: LeaseDriver;
  promises(config: JsonObject): Promises;
}

/** Why a session is cut: a code for machines, a text for the person whose session it is. */
export interface CutReason {
  code: "expired" | "ended" | "killed" | "idle" | "drift";
  text: string;
}

/** Kills live sessions and tells their data plane of a later end. Implemented by gateway, for every process. */
export interface SessionCutter {
  /** Resolves when the sockets of this process are gone, with their number; other processes are told and do the same. */
  cut(filter: { grant: string } | { session: string }, reason: CutReason): Promise<number>;
  extend(grant: string, endsAtMs: number): Promise<void>;
  /** What the sessions of this process are doing at this moment. */
  activity(): Promise<readonly SessionActivity[]>;
}

export interface SessionActivity {
  session: string;
  grant: string;
  busy: boolean;
  /** Since it was last busy; 0 while busy. */
  idleMs: number;
}

/** Everything that the files of this folder work with; made once, in main.ts. */
export interface Access {
  readonly store: Store;
  readonly keyring: Keyring;
  /** Installation id: part of every remote name. */
  readonly install: string;
  /** This process's id in table `nodes`. */
  readonly node: string;
  /** The policy in force; a reload replaces it. */
  readonly policy: () => Policy;
  readonly kinds: ReadonlyMap<string, KindControl>;
  readonly cutter: () => SessionCutter;
  /** Starts work on a lease at once, and resolves when this attempt is over. Never rejects. */
  readonly kick: (lease: string) => Promise<void>;
  /** Where a person running the server looks: one line, no secret. */
  readonly warn: (line: string) => void;
}
