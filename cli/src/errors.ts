import { ERRORS, type ErrorCode } from "@glasskey/contract/errors";

/** An error for the person at the terminal: what is wrong, what to do next, and the exit code that scripts read. */
export class CliError extends Error {
  override readonly name = "CliError";
  readonly code: ErrorCode;
  readonly next: string | undefined;
  readonly details: unknown;

  constructor(
    code: ErrorCode,
    message: string,
    options: { next?: string | undefined; details?: unknown; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.next = options.next;
    this.details = options.details;
  }

  get exit(): number {
    return ERRORS[this.code].exit;
  }
}

export function usage(message: string, next = "See: glass help"): CliError {
  return new CliError("usage", message, { next });
}
