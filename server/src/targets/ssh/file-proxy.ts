import type { MaskRules } from "../target.ts";
import type { Question, Verdict } from "./authorize.ts";
import type { Ends, Flow } from "./flows.ts";
import type { SshScope } from "./scope.ts";
import type { Tape } from "./tape.ts";

/** What the SFTP and the scp proxy are given: they are the flow of one program. */
export interface FileProxyParts {
  /** The statement of the subsystem or command that it belongs to. */
  readonly n: number;
  readonly scope: Pick<SshScope, "files">;
  /** `authorize` with the session's scope. */
  decide(question: Question): Verdict;
  readonly tape: Pick<Tape, "begin" | "end" | "data" | "output" | "action" | "pendingBytes">;
  readonly mask: MaskRules;
  readonly ends: FileEnds;
}

export interface FileEnds extends Ends {
  /** Records a refusal. @returns the sentence for the person */
  refuse(via: string, text: string, verdict: { readonly reason: string; readonly next?: string }): string;
  /** Tells the person on stderr and ends the channel. */
  fail(text: string): void;
  /** A mistake of ours, found outside the handling of a packet: the session ends. */
  defect(error: unknown): void;
}

/** A proxy that has to be told when its channel is over: what it has open then gets its end in the recording. */
export interface FileProxy extends Flow {
  targetEof(): void;
  over(): void;
}

/** What is kept of the content of one file, where the playbook keeps it. */
export const KEPT_FILE_BYTES = 1 << 20;
