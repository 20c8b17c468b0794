import { Reader, uint32, Writer } from "./wire.ts";

/**
 * What the types of channels and requests carry (RFC 4254, 6 and 7; RFC 4335; OpenSSH's PROTOCOL, 2). Each `parse…` reads
 * the `data` of a request or an open and throws SshError for anything else; each `encode…` is its reverse. No I/O.
 */

/** Texts that name or say something short: variables' names, subsystems, signals, addresses. */
const MAX_WORD_BYTES = 1024;
/** A command or a variable's value: what one argument can be on Linux. */
export const MAX_COMMAND_BYTES = 128 * 1024;

export interface WindowSize {
  readonly columns: number;
  readonly rows: number;
  /** In pixels; 0 where nobody knows. */
  readonly width: number;
  readonly height: number;
}

/** `pty-req` (RFC 4254, 6.2). */
export interface PtyRequest extends WindowSize {
  /** Value of TERM. */
  readonly term: string;
  readonly modes: readonly TerminalMode[];
}

/** One of the encoded terminal modes (RFC 4254, 8): opcode 1 to 159 with a number. */
export interface TerminalMode {
  readonly opcode: number;
  readonly value: number;
}

export function parsePty(data: Uint8Array): PtyRequest {
  const reader = new Reader(data);
  const term = reader.text(MAX_WORD_BYTES);
  const size = readWindow(reader);
  const modes = parseModes(reader.string(4096));
  reader.end();
  return { term, ...size, modes };
}

export function encodePty({ term, modes, ...size }: PtyRequest): Buffer {
  const encoded = new Writer();
  for (const { opcode, value } of modes) encoded.byte(opcode).uint32(value);
  return new Writer().string(term).raw(encodeWindowChange(size)).string(encoded.byte(TTY_OP_END).done()).done();
}

const TTY_OP_END = 0;
/** RFC 4254, 8: opcodes from here on are not defined, and parsing stops there. */
const FIRST_UNDEFINED_OPCODE = 160;

function parseModes(bytes: Uint8Array): readonly TerminalMode[] {
  const reader = new Reader(bytes);
  const modes = new Map<number, number>();
  while (reader.remaining > 0) {
    const opcode = reader.byte();
    if (opcode === TTY_OP_END || opcode >= FIRST_UNDEFINED_OPCODE) break;
    modes.set(opcode, reader.uint32());
  }
  return [...modes].map(([opcode, value]) => ({ opcode, value }));
}

/** `window-change` (RFC 4254, 6.7). */
export function parseWindowChange(data: Uint8Array): WindowSize {
  const reader = new Reader(data);
  const size = readWindow(reader);
  reader.end();
  return size;
}

export function encodeWindowChange({ columns, rows, width, height }: WindowSize): Buffer {
  return new Writer().uint32(columns).uint32(rows).uint32(width).uint32(height).done();
}

function readWindow(reader: Reader): WindowSize {
  return { columns: reader.uint32(), rows: reader.uint32(), width: reader.uint32(), height: reader.uint32() };
}

/** `env` (RFC 4254, 6.4). */
export interface EnvironmentVariable {
  readonly name: string;
  readonly value: string;
}

export function parseEnv(data: Uint8Array): EnvironmentVariable {
  const reader = new Reader(data);
  const variable = { name: reader.text(MAX_WORD_BYTES), value: reader.text(MAX_COMMAND_BYTES) };
  reader.end();
  return variable;
}

export function encodeEnv({ name, value }: EnvironmentVariable): Buffer {
  return new Writer().string(name).string(value).done();
}

/** `exec` (RFC 4254, 6.5). The command is bytes: it need not be UTF-8. */
export function parseExec(data: Uint8Array): Buffer {
  return single(data, (reader) => Buffer.from(reader.string(MAX_COMMAND_BYTES)));
}

/** `subsystem` (RFC 4254, 6.5) and `signal` (6.9; the name has no SIG). */
export function parseWord(data: Uint8Array): string {
  return single(data, (reader) => reader.text(MAX_WORD_BYTES));
}

/** A request with one string: `exec`, `subsystem`, `signal`. */
export function encodeString(value: string | Uint8Array): Buffer {
  return new Writer().string(value).done();
}

/** A request with one number: `exit-status` (RFC 4254, 6.10) and `break` (RFC 4335, 3: length in ms). */
export function parseNumber(data: Uint8Array): number {
  return single(data, (reader) => reader.uint32());
}

export function encodeNumber(value: number): Buffer {
  return uint32(value);
}

/** `exit-signal` (RFC 4254, 6.10). */
export interface ExitSignal {
  /** Without SIG, such as `TERM`. */
  readonly name: string;
  readonly coreDumped: boolean;
  readonly message: string;
}

export function parseExitSignal(data: Uint8Array): ExitSignal {
  const reader = new Reader(data);
  const found = {
    name: reader.text(MAX_WORD_BYTES),
    coreDumped: reader.boolean(),
    message: reader.text(MAX_COMMAND_BYTES),
  };
  reader.string(MAX_WORD_BYTES); // language
  reader.end();
  return found;
}

export function encodeExitSignal({ name, coreDumped, message }: ExitSignal): Buffer {
  return new Writer().string(name).boolean(coreDumped).string(message).string("").done();
}

/** `x11-req` (RFC 4254, 6.3.1). */
export interface X11Request {
  readonly singleConnection: boolean;
  readonly protocol: string;
  readonly cookie: string;
  readonly screen: number;
}

export function parseX11(data: Uint8Array): X11Request {
  const reader = new Reader(data);
  const [singleConnection, protocol] = [reader.boolean(), reader.text(MAX_WORD_BYTES)];
  const [cookie, screen] = [reader.text(MAX_WORD_BYTES), reader.uint32()];
  reader.end();
  return { singleConnection, protocol, cookie, screen };
}

export function encodeX11({ singleConnection, protocol, cookie, screen }: X11Request): Buffer {
  return new Writer().boolean(singleConnection).string(protocol).string(cookie).uint32(screen).done();
}

/**
 * Opening `direct-tcpip` and `forwarded-tcpip` (RFC 4254, 7.2): where to, or what was connected to, and who asks.
 * `x11` (6.3.2) has the origin alone.
 */
export interface TcpOpen {
  readonly host: string;
  readonly port: number;
  readonly originHost: string;
  readonly originPort: number;
}

export function parseTcpOpen(data: Uint8Array): TcpOpen {
  const reader = new Reader(data);
  const [host, port] = [reader.text(MAX_WORD_BYTES), reader.uint32()];
  const [originHost, originPort] = [reader.text(MAX_WORD_BYTES), reader.uint32()];
  reader.end();
  return { host, port, originHost, originPort };
}

export function encodeTcpOpen({ host, port, originHost, originPort }: TcpOpen): Buffer {
  return new Writer().string(host).uint32(port).string(originHost).uint32(originPort).done();
}

/** Address and port: `tcpip-forward`, `cancel-tcpip-forward` (RFC 4254, 7.1), and the origin in an open of `x11`. */
export interface Endpoint {
  readonly host: string;
  readonly port: number;
}

export function parseEndpoint(data: Uint8Array): Endpoint {
  const reader = new Reader(data);
  const found = { host: reader.text(MAX_WORD_BYTES), port: reader.uint32() };
  reader.end();
  return found;
}

export function encodeEndpoint({ host, port }: Endpoint): Buffer {
  return new Writer().string(host).uint32(port).done();
}

/** Path of a socket: `direct-streamlocal@openssh.com`, and its reserved fields (OpenSSH's PROTOCOL, 2.4). */
export function parseDirectStreamlocal(data: Uint8Array): string {
  const reader = new Reader(data);
  const path = reader.text(MAX_WORD_BYTES);
  reader.string(MAX_WORD_BYTES);
  reader.uint32();
  reader.end();
  return path;
}

export function encodeDirectStreamlocal(path: string): Buffer {
  return new Writer().string(path).string("").uint32(0).done();
}

/** Path of a socket: `forwarded-streamlocal@openssh.com`, and a reserved field. */
export function parseForwardedStreamlocal(data: Uint8Array): string {
  const reader = new Reader(data);
  const path = reader.text(MAX_WORD_BYTES);
  reader.string(MAX_WORD_BYTES);
  reader.end();
  return path;
}

export function encodeForwardedStreamlocal(path: string): Buffer {
  return new Writer().string(path).string("").done();
}

/** Path of a socket: `streamlocal-forward@openssh.com` and `cancel-streamlocal-forward@openssh.com`. */
export function parseStreamlocal(data: Uint8Array): string {
  return parseWord(data);
}

function single<T>(data: Uint8Array, read: (reader: Reader) => T): T {
  const reader = new Reader(data);
  const value = read(reader);
  reader.end();
  return value;
}
