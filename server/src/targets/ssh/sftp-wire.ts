import { isUtf8 } from "node:buffer";
import { giveBack } from "./give-back.ts";
import { DISCONNECT, SshError } from "./types.ts";
import { Reader, uint32, Writer } from "./wire.ts";

/**
 * SFTP, version 3: draft-ietf-secsh-filexfer-02, with OpenSSH's extensions (its PROTOCOL, section 4). No I/O.
 * Everything here comes from outside; what is damaged ends in SshError.
 */

export const FXP = {
  init: 1,
  version: 2,
  open: 3,
  close: 4,
  read: 5,
  write: 6,
  lstat: 7,
  fstat: 8,
  setstat: 9,
  fsetstat: 10,
  opendir: 11,
  readdir: 12,
  remove: 13,
  mkdir: 14,
  rmdir: 15,
  realpath: 16,
  stat: 17,
  rename: 18,
  readlink: 19,
  symlink: 20,
  status: 101,
  handle: 102,
  data: 103,
  name: 104,
  attrs: 105,
  extended: 200,
  extendedReply: 201,
} as const;

/** SSH_FX codes of a status (draft, 7). */
export const FX = {
  ok: 0,
  eof: 1,
  noSuchFile: 2,
  permissionDenied: 3,
  failure: 4,
  badMessage: 5,
  unsupported: 8,
} as const;
const FX_WORDS = [
  ...["ok", "end of file", "no such file", "permission denied", "failure", "bad message"],
  ...["no connection", "connection lost", "not supported"],
];

/** Flags of an open (draft, 6.3). */
export const OPEN = { read: 1, write: 2, append: 4, create: 8, truncate: 16, exclusive: 32 } as const;
const OPEN_KNOWN = 63;

/** The longest packet that OpenSSH's server and client take, and room for a head. */
const MAX_PACKET_BYTES = 256 * 1024 + 1024;
/** draft, 4: handles are not longer. */
const MAX_HANDLE_BYTES = 256;
const MAX_PATH_BYTES = 16 * 1024;

/** Puts a stream together to packets. What it holds is at most one packet, and only bytes that came. */
export interface PacketReader {
  /** @throws SshError for a length that no packet has. */
  feed(chunk: Buffer): void;
  readonly heldBytes: number;
}

/**
 * @param packet with its length, to be read until this returns; `fresh`: how many
 *   of its bytes were in the chunk that completed it.
 * @param partial so many bytes were held because their packet is not complete.
 */
export function createPacketReader(
  packet: (bytes: Buffer, fresh: number) => void,
  partial: (bytes: number) => void,
): PacketReader {
  /** What was begun before, in memory that serves packet after packet. */
  let store = Buffer.alloc(0);
  let heldBytes = 0;
  let wanted = 4; // the length first
  const lengthAt = (bytes: Buffer, at: number): number => {
    const length = bytes.readUInt32BE(at);
    if (length < 5 || length > MAX_PACKET_BYTES - 4) throw damaged(`an SFTP packet of ${length} bytes`);
    return 4 + length;
  };
  const keep = (part: Buffer): void => {
    const bytes = heldBytes + part.length;
    if (bytes > store.length) {
      // Twice as much as came, not what was announced.
      const larger = Buffer.allocUnsafeSlow(Math.min(MAX_PACKET_BYTES, 2 * bytes));
      store.copy(larger, 0, 0, heldBytes);
      giveBack(store);
      store = larger;
    }
    part.copy(store, heldBytes);
    heldBytes = bytes;
  };
  return {
    feed(chunk) {
      for (let at = 0; at < chunk.length;) {
        if (heldBytes === 0) {
          wanted = chunk.length - at < 4 ? 4 : lengthAt(chunk, at);
          if (wanted > 4 && chunk.length - at >= wanted) {
            const whole = chunk.subarray(at, at + wanted);
            at += wanted;
            packet(whole, whole.length);
            continue;
          }
        }
        const part = chunk.subarray(at, at + wanted - heldBytes);
        at += part.length;
        keep(part);
        if (wanted === 4 && heldBytes === 4) wanted = lengthAt(store, 0);
        if (heldBytes < wanted) partial(part.length);
        else {
          const whole = store.subarray(0, heldBytes);
          heldBytes = 0;
          packet(whole, part.length);
        }
      }
    },
    get heldBytes() {
      return heldBytes;
    },
  };
}

export interface Attributes {
  readonly size?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** With the bits of the type, as stat has it. */
  readonly mode?: number;
  /** Seconds since 1970. */
  readonly atime?: number;
  readonly mtime?: number;
}

/** A request with its parts; a path that is no UTF-8 is undefined. Handles are text of one character for each byte. */
export type Request =
  | { readonly is: "open"; readonly path: Path; readonly flags: number; readonly attributes: Attributes }
  | { readonly is: "close" | "fstat" | "readdir" | "fsync" | "fstatvfs"; readonly handle: string }
  | { readonly is: "read"; readonly handle: string; readonly offset: number; readonly length: number }
  | { readonly is: "write"; readonly handle: string; readonly offset: number; readonly body: Buffer }
  | { readonly is: "fsetstat"; readonly handle: string; readonly attributes: Attributes }
  | {
      readonly is: "copy";
      readonly handle: string;
      readonly to: string;
      readonly offset: number;
      readonly length: number;
    }
  | { readonly is: "setstat" | "lsetstat" | "mkdir"; readonly path: Path; readonly attributes: Attributes }
  | { readonly is: PathOnly; readonly path: Path }
  | { readonly is: "rename" | "posix-rename" | "hardlink" | "symlink"; readonly path: Path; readonly path2: Path }
  | { readonly is: "limits" | "users-groups" }
  | { readonly is: "unknown"; readonly what: string };
type Path = string | undefined;
type PathOnly = "lstat" | "stat" | "opendir" | "remove" | "rmdir" | "realpath" | "readlink" | "statvfs" | "expand-path";

/** Extensions that are understood here; a server's others are not told to the client. */
const EXTENSIONS: Readonly<Record<string, string>> = {
  "posix-rename@openssh.com": "posix-rename",
  "statvfs@openssh.com": "statvfs",
  "fstatvfs@openssh.com": "fstatvfs",
  "hardlink@openssh.com": "hardlink",
  "fsync@openssh.com": "fsync",
  "lsetstat@openssh.com": "lsetstat",
  "limits@openssh.com": "limits",
  "expand-path@openssh.com": "expand-path",
  "copy-data": "copy",
  "users-groups-by-id@openssh.com": "users-groups",
};

const PATH_ONLY: Readonly<Record<number, PathOnly>> = {
  [FXP.lstat]: "lstat",
  [FXP.stat]: "stat",
  [FXP.opendir]: "opendir",
  [FXP.remove]: "remove",
  [FXP.rmdir]: "rmdir",
  [FXP.realpath]: "realpath",
  [FXP.readlink]: "readlink",
};

/** @param packet with its length. @throws SshError for one that is damaged. */
export function parseRequest(packet: Buffer): Request {
  const reader = new Reader(packet, 9);
  const request = parseBody(packet[4] ?? 0, reader);
  if (request.is !== "unknown") reader.end();
  return request;
}

function parseBody(type: number, reader: Reader): Request {
  const pathOnly = PATH_ONLY[type];
  if (pathOnly !== undefined) return { is: pathOnly, path: pathOf(reader) };
  switch (type) {
    case FXP.open: {
      const path = pathOf(reader);
      const flags = reader.uint32();
      return { is: "open", path, flags, attributes: parseAttributes(reader) };
    }
    case FXP.close:
      return { is: "close", handle: handleOf(reader) };
    case FXP.read:
      return { is: "read", handle: handleOf(reader), offset: offsetOf(reader), length: reader.uint32() };
    case FXP.write:
      return { is: "write", handle: handleOf(reader), offset: offsetOf(reader), body: reader.string(MAX_PACKET_BYTES) };
    case FXP.fstat:
      return { is: "fstat", handle: handleOf(reader) };
    case FXP.readdir:
      return { is: "readdir", handle: handleOf(reader) };
    case FXP.fsetstat:
      return { is: "fsetstat", handle: handleOf(reader), attributes: parseAttributes(reader) };
    case FXP.setstat:
      return { is: "setstat", path: pathOf(reader), attributes: parseAttributes(reader) };
    case FXP.mkdir:
      return { is: "mkdir", path: pathOf(reader), attributes: parseAttributes(reader) };
    case FXP.rename:
      return { is: "rename", path: pathOf(reader), path2: pathOf(reader) };
    case FXP.symlink: {
      // OpenSSH has them the other way round than the draft: what it points to, then the link (its PROTOCOL, 4.1).
      const path2 = pathOf(reader);
      return { is: "symlink", path: pathOf(reader), path2 };
    }
    case FXP.extended:
      return parseExtended(reader);
    default:
      return { is: "unknown", what: `request ${type}` };
  }
}

function parseExtended(reader: Reader): Request {
  const name = reader.string(256).toString("latin1");
  const is = Object.hasOwn(EXTENSIONS, name) ? EXTENSIONS[name] : undefined;
  switch (is) {
    case "posix-rename":
    case "hardlink":
      return { is, path: pathOf(reader), path2: pathOf(reader) };
    case "statvfs":
    case "expand-path":
      return { is, path: pathOf(reader) };
    case "fstatvfs":
    case "fsync":
      return { is, handle: handleOf(reader) };
    case "lsetstat":
      return { is, path: pathOf(reader), attributes: parseAttributes(reader) };
    case "copy": {
      const [handle, offset, length] = [handleOf(reader), offsetOf(reader), offsetOf(reader)];
      const to = handleOf(reader);
      offsetOf(reader);
      return { is, handle, to, offset, length };
    }
    case "limits":
      return { is };
    case "users-groups":
      reader.string();
      reader.string();
      return { is };
    default:
      return { is: "unknown", what: `extension ${name}` };
  }
}

function pathOf(reader: Reader): Path {
  const bytes = reader.string(MAX_PATH_BYTES);
  return isUtf8(bytes) ? bytes.toString("utf8") : undefined;
}

function handleOf(reader: Reader): string {
  return reader.string(MAX_HANDLE_BYTES).toString("latin1");
}

/** 64 bits on the wire; no file is as long as 53. */
function offsetOf(reader: Reader): number {
  const value = Number(reader.uint64());
  if (!Number.isSafeInteger(value)) throw damaged("a position in a file beyond all files");
  return value;
}

const ATTR = { size: 1, owner: 2, mode: 4, times: 8 } as const;

function parseAttributes(reader: Reader): Attributes {
  const flags = reader.uint32();
  if ((flags & ~15) !== 0) throw damaged("attributes of a kind that SFTP 3 does not know");
  return {
    ...((flags & ATTR.size) === 0 ? {} : { size: offsetOf(reader) }),
    ...((flags & ATTR.owner) === 0 ? {} : { uid: reader.uint32(), gid: reader.uint32() }),
    ...((flags & ATTR.mode) === 0 ? {} : { mode: reader.uint32() }),
    ...((flags & ATTR.times) === 0 ? {} : { atime: reader.uint32(), mtime: reader.uint32() }),
  };
}

/** What an open asks for. @returns undefined for flags that are not known, or that ask for nothing. */
export function accessOf(flags: number): { read: boolean; write: boolean } | undefined {
  const write = (flags & (OPEN.write | OPEN.append | OPEN.create | OPEN.truncate)) !== 0;
  const read = (flags & OPEN.read) !== 0;
  return (flags & ~OPEN_KNOWN) === 0 && (read || write) ? { read, write } : undefined;
}

/** Whose request, or answer, a packet is. */
export function idOf(packet: Buffer): number {
  if (packet.length < 9) throw damaged("an SFTP packet without a number");
  return packet.readUInt32BE(5);
}

export function encodePacket(type: number, id: number, ...body: readonly Uint8Array[]): Buffer {
  const length = body.reduce((sum, part) => sum + part.length, 5);
  return Buffer.concat([uint32(length), Uint8Array.of(type), uint32(id), ...body]);
}

export function encodeString(text: string | Uint8Array): Buffer {
  return new Writer().string(text).done();
}

export function encodeStatus(id: number, code: number, message: string): Buffer {
  return encodePacket(FXP.status, id, uint32(code), encodeString(message), encodeString("en"));
}

/** A NAME with one path and no attributes, as the answer to REALPATH has it. */
export function encodeName(id: number, path: string): Buffer {
  return encodePacket(FXP.name, id, uint32(1), encodeString(path), encodeString(path), uint32(0));
}

export function encodeInit(): Buffer {
  return new Writer().uint32(5).byte(FXP.init).uint32(3).done();
}

/** The path that the answer to REALPATH tells; undefined where it tells none. */
export function realPathOf(packet: Buffer): string | undefined {
  if (packet[4] !== FXP.name) return undefined;
  const reader = new Reader(packet, 9);
  if (reader.uint32() !== 1) return undefined;
  const path = pathOf(reader);
  return path?.startsWith("/") === true ? path : undefined;
}

const [TYPE_BITS, FOLDER_TYPE] = [0o170000, 0o040000];

/** Whether an answer to LSTAT tells of a folder; undefined where it does not say. */
export function isFolderOf(packet: Buffer): boolean | undefined {
  if (packet[4] !== FXP.attrs) return undefined;
  const reader = new Reader(packet, 9);
  const flags = reader.uint32();
  if ((flags & ATTR.mode) === 0) return undefined;
  if ((flags & ATTR.size) !== 0) reader.raw(8);
  if ((flags & ATTR.owner) !== 0) reader.raw(8);
  return (reader.uint32() & TYPE_BITS) === FOLDER_TYPE;
}

export function statusOf(packet: Buffer): { code: number; message: string } | undefined {
  if (packet[4] !== FXP.status) return undefined;
  const reader = new Reader(packet, 9);
  const code = reader.uint32();
  const said = reader.remaining > 0 ? reader.string().toString("utf8") : "";
  return { code, message: FX_WORDS[code] ?? (said.slice(0, 200) || `status ${code}`) };
}

/** The names in an answer to READDIR. */
export function namesOf(packet: Buffer): readonly Buffer[] {
  const reader = new Reader(packet, 9);
  const count = reader.uint32();
  const names: Buffer[] = [];
  for (let i = 0; i < count; i++) {
    names.push(reader.string(MAX_PATH_BYTES));
    reader.string(); // the long form, for people
    skipAttributes(reader);
  }
  return names;
}

function skipAttributes(reader: Reader): void {
  const flags = reader.uint32();
  if ((flags & ATTR.size) !== 0) reader.raw(8);
  if ((flags & ATTR.owner) !== 0) reader.raw(8);
  if ((flags & ATTR.mode) !== 0) reader.raw(4);
  if ((flags & ATTR.times) !== 0) reader.raw(8);
  if (flags >>> 31 === 0) return;
  for (let left = reader.uint32(); left > 0; left--) {
    reader.string();
    reader.string();
  }
}

/** A server's VERSION with only what is understood here. @throws SshError for another version than 3. */
export function filterVersion(packet: Buffer): Buffer {
  const reader = new Reader(packet, 5);
  const version = reader.uint32();
  if (version !== 3) throw damaged(`the SFTP server speaks version ${version}; only 3 is known here`);
  const known: Buffer[] = [];
  while (reader.remaining > 0) {
    const [name, data] = [reader.string(), reader.string()];
    if (Object.hasOwn(EXTENSIONS, name.toString("latin1"))) known.push(encodeString(name), encodeString(data));
  }
  return encodePacket(FXP.version, 3, ...known);
}

export function damaged(what: string): SshError {
  return new SshError(DISCONNECT.protocolError, what);
}
