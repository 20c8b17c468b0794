import { ERRORS, type ErrorCode } from "@glasskey/contract/errors";

/**
 * The one error that crosses folders. `message` says what is wrong in the user's words, `next` what to do about it.
 * Neither may carry a secret: both reach logs, screens and wire protocols.
 */
export class GlassError extends Error {
  override readonly name = "GlassError";
  readonly code: ErrorCode;
  readonly next: string | undefined;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    options: { next?: string; details?: Record<string, unknown>; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.next = options.next;
    this.details = options.details;
  }

  get status(): number {
    return ERRORS[this.code].status;
  }
}

/**
 * A thrown value's message in one line, fit for a log and a terminal, also where a target or another stranger wrote it: no
 * control or invisible characters, never a stack, never longer than 500 characters.
 */
export function describe(error: unknown): string {
  if (error instanceof AggregateError && error.message === "") {
    return error.errors.map(describe).join("; ").slice(0, 500);
  }
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text
    .replaceAll(/[\s\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, " ")
    .slice(0, 500)
    .toWellFormed();
}

/** For the `default:` of a switch over a closed set: the compiler proves that it is never reached. */
export function unreachable(value: never): never {
  throw new GlassError("internal", `unexpected value ${JSON.stringify(value)}`);
}
