/** Where a log is read from: a folder, or a URL. Paths are relative, with slashes. */
export interface LogSource {
  /**
   * The whole file, or undefined when there is none.
   * @throws ReadError when it is there, but is no plain file, cannot be read, or has more than `maxBytes`.
   */
  read(path: string, maxBytes: number): Uint8Array | undefined | Promise<Uint8Array | undefined>;
  /**
   * Names in a folder, in no order; nothing when there is no such folder. One at a time: folders may be huge. Left out
   * where names cannot be asked for, as over HTTP: files that do not belong are not found there.
   */
  list?(path: string): Iterable<Listed> | AsyncIterable<Listed>;
  /** How many reads are worth having under way; 1 when left out. */
  readonly parallel?: number;
}

export interface Listed {
  readonly name: string;
  readonly kind: "file" | "folder" | "other";
}

export class ReadError extends Error {
  override readonly name = "ReadError";
}
