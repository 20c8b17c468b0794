/** One entry of the log, rendered for a sink. */
export interface Item {
  readonly index: number;
  /** SHA-256(0x00 ‖ the entry's bytes), hex: what the tree has for it. */
  readonly leafHash: string;
  readonly type: string;
  /** As the entry has it, RFC 3339 with milliseconds. */
  readonly at: string;
  readonly severity: Severity;
  /** What the receiver gets: one JSON object on one line, in ASCII or UTF-8. */
  readonly json: string;
}

/** OCSF's `severity_id`, as far as it is used. */
export const SEVERITY = { informational: 1, low: 2, medium: 3, high: 4, critical: 5 } as const;
export type Severity = keyof typeof SEVERITY;

/** Takes items to one receiver. One call of `deliver` at a time. */
export interface SinkDriver {
  /** The most that one batch may have; a single entry may be larger. */
  readonly batch: { readonly entries: number; readonly bytes: number };
  /**
   * Whether an acknowledgement means only that the receiver's process has read it. After a failure the batch before is
   * sent once more then: a receiver that died may have taken it along.
   */
  readonly doubtful: boolean;
  /**
   * Where the receiver really is, where it can be asked: the index after the last that it has.
   * @param next what the cursor says. @param leafHashOf the log's own hash of an entry.
   */
  resume?(next: number, leafHashOf: (index: number) => Promise<string | undefined>): Promise<number>;
  /**
   * Delivers in order, and resolves when the receiver has acknowledged all of them.
   * @throws DeliveryError for everything that did not happen.
   */
  deliver(items: readonly Item[], signal: AbortSignal): Promise<void>;
  close?(): Promise<void>;
}

/** A delivery that did not happen, in words that hold neither URL nor secret nor anything that the far side wrote. */
export class DeliveryError extends Error {
  override readonly name = "DeliveryError";
  /** Whether it was refused for what it is, so that the same bytes can never be taken. */
  readonly refused: boolean;
  /** Whether time ran out while it was at it: a smaller batch may be taken. */
  readonly slow: boolean;
  /** What the far side asked for. */
  readonly retryAfterMs: number | undefined;

  constructor(
    message: string,
    options: { refused?: boolean; slow?: boolean; retryAfterMs?: number | undefined; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.refused = options.refused ?? false;
    this.slow = options.slow ?? false;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** A connection's error in words of ours: its code, never its text, which may quote the far side. */
export function networkFault(error: unknown): DeliveryError {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const known = /^[A-Z][A-Z0-9_]{1,60}$/.test(code) ? ` (${code})` : "";
  const about: readonly (readonly [RegExp, string])[] = [
    [/ALERT.*(CERT|UNKNOWN_CA|HANDSHAKE)/, "it did not take our certificate, or demands one"],
    [/^ERR_OSSL_/, "the files of `ca`, `cert` and `key` do not hold, or do not fit each other"],
    [/CERT|SELF_SIGNED|UNABLE_TO/, "its certificate does not hold"],
    [/TLS|SSL/, "TLS failed"],
  ];
  const text = about.find(([pattern]) => pattern.test(code))?.[1] ?? "the connection failed";
  return new DeliveryError(`${text}${known}`, { cause: error });
}

export type SecretReader = (reference: string) => { reveal(): string };

/** Who speaks: the same for every item of an installation. */
export interface Speaker {
  /** The log's origin. */
  readonly origin: string;
  /** Glasskey's version. */
  readonly version: string;
}
