import { DISCONNECT, SshError } from "./types.ts";
import { printable } from "./wire.ts";
import type { Role } from "./kex.ts";

/** The lines with which both sides begin (RFC 4253, 4.2). No I/O. */

/** No version number: whoever scans for known holes is not told which build this is. */
export const OWN_VERSION = "SSH-2.0-Glasskey";
/** RFC 4253, 4.2: with its line end. */
const MAX_LINE_BYTES = 255;
/** Lines before a server's identification, as some write that refuse; as OpenSSH bounds them. */
const MAX_BEFORE_BYTES = 8 * 1024;
const LF = 0x0a;

export interface Identified {
  /** Without its line end; printable ASCII. */
  readonly version: string;
  /** What came behind it. */
  readonly rest: Buffer;
}

export interface IdentificationReader {
  /** @returns undefined while the line is not whole. @throws SshError for a peer that does not speak SSH 2 */
  push(chunk: Buffer): Identified | undefined;
  /** What a server said instead of an identification, for an error's text; may be empty. */
  readonly said: string;
}

/** Reads the peer's identification: a client's is its first line; before a server's there may be others. */
export function createIdentificationReader(own: Role): IdentificationReader {
  let held: Buffer = Buffer.alloc(0);
  let beforeBytes = 0;
  let said = "";
  const limit = own === "server" ? MAX_LINE_BYTES : MAX_BEFORE_BYTES;
  const read = (): Identified | undefined => {
    for (;;) {
      const end = held.indexOf(LF);
      const line = end < 0 ? held : held.subarray(0, end + 1);
      const isIdentification = startsLike(line, "SSH-");
      if (!isIdentification && own === "server") throw notSsh(line);
      if (isIdentification && line.length > MAX_LINE_BYTES) throw refused("an identification of more than 255 bytes");
      if (beforeBytes + line.length > limit) throw refused(`${limit} bytes without an identification`);
      if (end < 0) return undefined;
      held = held.subarray(end + 1);
      if (isIdentification) return { version: parse(line, own), rest: held };
      beforeBytes += line.length;
      said = printable(`${said} ${line.toString("latin1")}`);
    }
  };
  return {
    get said() {
      return said === "" ? printable(held.toString("latin1")) : said;
    },
    push(chunk) {
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      return held.length === 0 ? undefined : read();
    },
  };
}

function startsLike(line: Buffer, start: string): boolean {
  const bytes = Math.min(line.length, start.length);
  return line.toString("latin1", 0, bytes) === start.slice(0, bytes);
}

function parse(line: Buffer, own: Role): string {
  const text = line.toString("latin1").replace(/\r?\n$/, "");
  if (!/^[ -~]+$/.test(text)) throw refused("an identification with characters that do not belong there");
  const known = own === "client" ? /^SSH-(?:2\.0|1\.99)-./ : /^SSH-2\.0-./;
  if (!known.test(text))
    throw new SshError(DISCONNECT.versionNotSupported, `the other side is "${text}"; SSH 2.0 is wanted`);
  return text;
}

function refused(what: string): SshError {
  return new SshError(DISCONNECT.protocolError, what);
}

function notSsh(line: Buffer): SshError {
  return refused(`the other side does not speak SSH; it began with "${printable(line.toString("latin1"), 40)}"`);
}
