import { isAscii, isUtf8 } from "node:buffer";

/**
 * PostgreSQL's frontend/backend protocol 3: the messages that Glasskey reads and writes, and nothing else. No I/O.
 * Framing, which turns a stream into messages, is in framing.ts.
 *
 * Everything that is read here comes from outside and is not trusted: a length that does not fit, a missing terminator or
 * bytes left over end in {@link ProtocolViolation}.
 *
 * Source: PostgreSQL documentation, "Frontend/Backend Protocol", sections 54.2 (flow), 54.7 (formats), 54.8 (error fields).
 */

/** A name's length in the target (NAMEDATALEN - 1). What is longer it cuts or compares in part, so that two names are one. */
export const MAX_NAME_BYTES = 63;

/** First bytes of the messages that clients send after the startup packet. */
export const FRONTEND = {
  bind: 0x42,
  close: 0x43,
  copyData: 0x64,
  copyDone: 0x63,
  copyFail: 0x66,
  describe: 0x44,
  execute: 0x45,
  flush: 0x48,
  functionCall: 0x46,
  parse: 0x50,
  password: 0x70,
  query: 0x51,
  sync: 0x53,
  terminate: 0x58,
} as const;

/** First bytes of the messages that servers send. */
export const BACKEND = {
  authentication: 0x52,
  backendKeyData: 0x4b,
  bindComplete: 0x32,
  closeComplete: 0x33,
  commandComplete: 0x43,
  copyBothResponse: 0x57,
  copyData: 0x64,
  copyDone: 0x63,
  copyInResponse: 0x47,
  copyOutResponse: 0x48,
  dataRow: 0x44,
  emptyQueryResponse: 0x49,
  errorResponse: 0x45,
  functionCallResponse: 0x56,
  negotiateProtocolVersion: 0x76,
  noData: 0x6e,
  noticeResponse: 0x4e,
  notificationResponse: 0x41,
  parameterDescription: 0x74,
  parameterStatus: 0x53,
  parseComplete: 0x31,
  portalSuspended: 0x73,
  readyForQuery: 0x5a,
  rowDescription: 0x54,
} as const;

/** Transaction status in ReadyForQuery: idle, in a block, in a failed block. */
export const STATUS = { idle: 0x49, inTransaction: 0x54, failed: 0x45 } as const;

/** PostgreSQL's own bound on a startup packet (MAX_STARTUP_PACKET_LENGTH). */
export const MAX_STARTUP_BYTES = 10_000;
/** A SASL message of SCRAM is below 400 bytes; nothing longer is read from somebody who has not proved anything yet. */
export const MAX_PASSWORD_BYTES = 2 * 1024;
/** Newest minor version of protocol 3 spoken with clients: 3.2, PostgreSQL 18. 3.1 was never used. */
export const NEWEST_MINOR = 2;

/** The peer broke the protocol. `sqlstate` and the message are fit to be sent to it. */
export class ProtocolViolation extends Error {
  override readonly name = "ProtocolViolation";
  readonly sqlstate: string;
  constructor(message: string, sqlstate = "08P01") {
    super(message);
    this.sqlstate = sqlstate;
  }
}

// ------------------------------------------------------------------------------------------------- reading

/** Bytes → UTF-8 text; undefined when they are not valid UTF-8. */
function utf8(bytes: Buffer, start: number, end: number): string | undefined {
  const part = bytes.subarray(start, end);
  if (isAscii(part)) return part.toString("latin1", 0, part.length); // the usual case, and several times faster
  return isUtf8(part) ? part.toString("utf8", 0, part.length) : undefined;
}

/** What is sent first on a connection, before any message has a type. */
export type FirstPacket =
  | { kind: "tls" }
  | { kind: "gss" }
  | { kind: "cancel"; pid: number; key: Buffer }
  | { kind: "startup"; minor: number; parameters: ReadonlyMap<string, string> };

/** Reads a first packet's body, after its four bytes of length. @throws ProtocolViolation */
export function decodeFirstPacket(body: Buffer): FirstPacket {
  if (body.length < 4) throw new ProtocolViolation("invalid length of startup packet");
  const code = body.readUInt32BE(0);
  if (code === 80_877_103 && body.length === 4) return { kind: "tls" };
  if (code === 80_877_104 && body.length === 4) return { kind: "gss" };
  if (code === 80_877_102) {
    // The key is 4 bytes in protocol 3.0 and up to 256 in 3.2.
    if (body.length < 12 || body.length > 8 + 256) throw new ProtocolViolation("invalid length of cancel request");
    return { kind: "cancel", pid: body.readInt32BE(4), key: Buffer.from(body.subarray(8)) };
  }
  const major = code >>> 16;
  if (major !== 3) {
    throw new ProtocolViolation(`unsupported frontend protocol ${major}.${code & 0xffff}: Glasskey speaks 3`, "0A000");
  }
  const parameters = new Map<string, string>();
  let at = 4;
  for (;;) {
    const name = textUpTo(body, at);
    at += Buffer.byteLength(name) + 1;
    if (name === "") break;
    const value = textUpTo(body, at);
    at += Buffer.byteLength(value) + 1;
    parameters.set(name, value);
  }
  if (at !== body.length)
    throw new ProtocolViolation("invalid startup packet layout: expected terminator as last byte");
  return { kind: "startup", minor: code & 0xffff, parameters };
}

function textUpTo(body: Buffer, at: number): string {
  const end = body.indexOf(0, at);
  if (end < 0 || at >= body.length) throw new ProtocolViolation("invalid startup packet layout");
  const text = utf8(body, at, end);
  if (text === undefined) throw new ProtocolViolation("the startup packet is not valid UTF-8");
  return text;
}

/** `options` of a startup packet as settings: only `-c name=value` and `--name=value`. @throws ProtocolViolation */
export function decodeOptions(options: string): readonly (readonly [name: string, value: string])[] {
  const words: string[] = [];
  let word: string | undefined;
  for (let i = 0; i < options.length; i += 1) {
    let c = options.charAt(i);
    if (/\s/.test(c)) {
      if (word !== undefined) words.push(word);
      word = undefined;
      continue;
    }
    if (c === "\\") {
      i += 1;
      c = options.charAt(i);
    }
    word = (word ?? "") + c;
  }
  if (word !== undefined) words.push(word);
  const settings: (readonly [string, string])[] = [];
  for (let i = 0; i < words.length; i += 1) {
    let text = words[i] ?? "";
    if (text === "-c") {
      i += 1;
      text = `-c${words[i] ?? ""}`;
    }
    const match = /^(?:-c|--)([A-Za-z_][A-Za-z0-9_.-]*)=(.*)$/s.exec(text);
    if (match === null) {
      throw new ProtocolViolation(`startup option ${JSON.stringify(text)} is not of the form -c name=value`, "42501");
    }
    settings.push([(match[1] ?? "").replaceAll("-", "_"), match[2] ?? ""]);
  }
  return settings;
}

/** A text that runs from `start` to a zero byte exactly at `end - 1`; undefined when it holds a zero or is not UTF-8. */
export function soleText(bytes: Buffer, start: number, end: number): string | undefined {
  if (end <= start || bytes.indexOf(0, start) !== end - 1) return undefined;
  return utf8(bytes, start, end - 1);
}

export interface ParseMessage {
  name: string;
  /** Undefined when not valid UTF-8. */
  text: string | undefined;
  /** Number and OIDs of the parameters' types, as they came; a view of the message. */
  types: Buffer;
}

/** `[start, end)` is the body without type and length, here and below. @throws ProtocolViolation */
export function decodeParse(bytes: Buffer, start: number, end: number): ParseMessage {
  const nameEnd = terminator(bytes, start, end);
  const textEnd = terminator(bytes, nameEnd + 1, end);
  if (textEnd + 3 > end) throw malformed("Parse");
  const types = bytes.readUInt16BE(textEnd + 1);
  if (textEnd + 3 + 4 * types !== end) throw malformed("Parse");
  const text = utf8(bytes, nameEnd + 1, textEnd);
  return { name: nameText(bytes, start, nameEnd), text, types: bytes.subarray(textEnd + 1, end) };
}

/** One parameter of a Bind: text, NULL, or bytes for binary format and for text that is not UTF-8. */
export type Parameter = string | null | Buffer;

export interface BindMessage {
  portal: string;
  statement: string;
  parameters: readonly Parameter[];
}

const NO_PARAMETERS: readonly Parameter[] = [];

/** Buffers in the result are views of `bytes`. @throws ProtocolViolation */
export function decodeBind(bytes: Buffer, start: number, end: number): BindMessage {
  const portalEnd = terminator(bytes, start, end);
  const statementEnd = terminator(bytes, portalEnd + 1, end);
  const portal = nameText(bytes, start, portalEnd);
  const statement = nameText(bytes, portalEnd + 1, statementEnd);
  const at = statementEnd + 1;
  const formats = count(bytes, at, end);
  const formatsAt = at + 2;
  const decoded = decodeParameters(bytes, formatsAt, formats, end);
  const resultFormats = count(bytes, decoded.at, end);
  if (decoded.at + 2 + 2 * resultFormats !== end) throw malformed("Bind");
  return { portal, statement, parameters: decoded.parameters };
}

export interface FunctionCallMessage {
  oid: number;
  parameters: readonly Parameter[];
}

/** @throws ProtocolViolation */
export function decodeFunctionCall(bytes: Buffer, start: number, end: number): FunctionCallMessage {
  if (end - start < 4) throw malformed("FunctionCall");
  const oid = bytes.readUInt32BE(start);
  const decoded = decodeParameters(bytes, start + 6, count(bytes, start + 4, end), end);
  if (decoded.at + 2 !== end) throw malformed("FunctionCall");
  return { oid, parameters: decoded.parameters };
}

function decodeParameters(
  bytes: Buffer,
  formatsAt: number,
  formats: number,
  end: number,
): { parameters: readonly Parameter[]; at: number } {
  let at = formatsAt + 2 * formats;
  const total = count(bytes, at, end);
  at += 2;
  if (formats > 1 && formats !== total) throw malformed("Bind");
  if (total === 0) return { parameters: NO_PARAMETERS, at };
  const parameters: Parameter[] = [];
  for (let i = 0; i < total; i += 1) {
    if (at + 4 > end) throw malformed("Bind");
    const length = bytes.readInt32BE(at);
    at += 4;
    if (length === -1) {
      parameters.push(null);
      continue;
    }
    if (length < 0 || length > end - at) throw malformed("Bind");
    // No format: all text. One format: it is for all.
    const format = formats === 0 ? 0 : bytes.readUInt16BE(formatsAt + (formats === 1 ? 0 : 2 * i));
    if (format > 1) throw malformed("Bind");
    const text = format === 0 ? utf8(bytes, at, at + length) : undefined;
    parameters.push(text ?? bytes.subarray(at, at + length));
    at += length;
  }
  return { parameters, at };
}

/** A portal's name and the largest number of rows, 0 for all. @throws ProtocolViolation */
export function decodeExecute(bytes: Buffer, start: number, end: number): { portal: string; maxRows: number } {
  const nameEnd = terminator(bytes, start, end);
  if (nameEnd + 5 !== end) throw malformed("Execute");
  return { portal: nameText(bytes, start, nameEnd), maxRows: bytes.readInt32BE(nameEnd + 1) };
}

/** Describe and Close: a statement or a portal, by name. @throws ProtocolViolation */
export function decodeNamed(bytes: Buffer, start: number, end: number): { portal: boolean; name: string } {
  const what = bytes[start];
  if (end <= start || (what !== 0x53 && what !== 0x50)) throw malformed("Describe or Close");
  const nameEnd = terminator(bytes, start + 1, end);
  if (nameEnd + 1 !== end) throw malformed("Describe or Close");
  return { portal: what === 0x50, name: nameText(bytes, start + 1, nameEnd) };
}

/** SASLInitialResponse: the mechanism, and the client's first message. @throws ProtocolViolation */
export function decodeSaslInitial(body: Buffer): { mechanism: string; data: string } {
  const nameEnd = terminator(body, 0, body.length);
  if (nameEnd + 5 > body.length) throw malformed("SASLInitialResponse");
  if (body.readInt32BE(nameEnd + 1) !== body.length - nameEnd - 5) throw malformed("SASLInitialResponse");
  return { mechanism: nameText(body, 0, nameEnd), data: body.toString("latin1", nameEnd + 5) };
}

/** Name and value of a ParameterStatus. @throws ProtocolViolation */
export function decodeParameterStatus(bytes: Buffer, start: number, end: number): { name: string; value: string } {
  const nameEnd = terminator(bytes, start, end);
  const valueEnd = terminator(bytes, nameEnd + 1, end);
  return { name: bytes.toString("latin1", start, nameEnd), value: bytes.toString("utf8", nameEnd + 1, valueEnd) };
}

export interface ServerError {
  /** Not translated: `ERROR`, `FATAL`, `PANIC`. */
  severity: string;
  sqlstate: string;
  message: string;
}

/** Fields of an ErrorResponse; `end` may lie before the message's end, when only its beginning was kept. Never throws. */
export function decodeError(bytes: Buffer, start: number, end: number): ServerError {
  const error = { severity: "ERROR", sqlstate: "XX000", message: "" };
  let at = start;
  while (at < end && bytes[at] !== 0) {
    const zero = bytes.indexOf(0, at + 1);
    const stop = zero < 0 || zero > end ? end : zero;
    const value = bytes.toString("utf8", at + 1, stop);
    if (bytes[at] === 0x56) error.severity = value; // V
    if (bytes[at] === 0x43) error.sqlstate = value; // C
    if (bytes[at] === 0x4d) error.message = value; // M
    at = stop + 1;
  }
  return error;
}

function terminator(bytes: Buffer, start: number, end: number): number {
  const at = start > end ? -1 : bytes.indexOf(0, start);
  if (at < 0 || at >= end) throw new ProtocolViolation("invalid string in message");
  return at;
}

function nameText(bytes: Buffer, start: number, end: number): string {
  if (start === end) return "";
  if (end - start > MAX_NAME_BYTES) {
    throw new ProtocolViolation(
      `a name of ${end - start} bytes is longer than Glasskey forwards: PostgreSQL tells names apart by ${MAX_NAME_BYTES} bytes`,
      "42622",
    );
  }
  const part = bytes.subarray(start, end);
  // In the target's own encoding other characters may take more bytes, or be the same one.
  if (!isAscii(part)) throw new ProtocolViolation("a name in a message holds characters beyond ASCII", "42602");
  return part.toString("latin1", 0, part.length);
}

function count(bytes: Buffer, at: number, end: number): number {
  if (at + 2 > end) throw malformed("Bind");
  return bytes.readUInt16BE(at);
}

function malformed(what: string): ProtocolViolation {
  return new ProtocolViolation(`invalid format of ${what} message`);
}

// ------------------------------------------------------------------------------------------------- writing

/** One message: type, length, and the parts, a string being followed by its terminating zero. */
export function message(type: number, ...parts: readonly (string | Buffer)[]): Buffer {
  const bodies = parts.map((part) => (typeof part === "string" ? Buffer.from(`${part}\0`) : part));
  const length = bodies.reduce((sum, body) => sum + body.length, 4);
  const head = Buffer.alloc(5);
  head[0] = type;
  head.writeInt32BE(length, 1);
  return Buffer.concat([head, ...bodies], length + 1);
}

export function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value | 0);
  return bytes;
}

export interface Report {
  severity: "ERROR" | "FATAL" | "NOTICE" | "WARNING";
  sqlstate: string;
  message: string;
  detail?: string | undefined;
  hint?: string | undefined;
  /** In the statement's text, in characters from 1. */
  position?: number | undefined;
}

/** ErrorResponse or, for NOTICE and WARNING, NoticeResponse. */
export function encodeReport(report: Report): Buffer {
  const isError = report.severity === "ERROR" || report.severity === "FATAL";
  const fields = [`S${report.severity}`, `V${report.severity}`, `C${report.sqlstate}`, `M${clean(report.message)}`];
  if (report.detail !== undefined) fields.push(`D${clean(report.detail)}`);
  if (report.hint !== undefined) fields.push(`H${clean(report.hint)}`);
  if (report.position !== undefined) fields.push(`P${report.position}`);
  return message(isError ? BACKEND.errorResponse : BACKEND.noticeResponse, ...fields, "");
}

/** A zero would end the field; the length keeps a quoted statement from becoming an answer of its own size. */
function clean(text: string): string {
  return text.replaceAll("\0", "�").slice(0, 4_000);
}

export function encodeReadyForQuery(status: number): Buffer {
  return message(BACKEND.readyForQuery, Buffer.from([status]));
}

export function encodeBackendKeyData(pid: number, key: Buffer): Buffer {
  return message(BACKEND.backendKeyData, int32(pid), key);
}

/** Authentication request: 0 ok, 10 SASL mechanisms, 11 continue, 12 final. */
export function encodeAuthentication(code: 0 | 10 | 11 | 12, ...parts: readonly (string | Buffer)[]): Buffer {
  return message(BACKEND.authentication, int32(code), ...parts);
}

/** Tells the client the newest protocol served and which `_pq_.` options are not known. */
export function encodeNegotiation(minor: number, unknown: readonly string[]): Buffer {
  return message(BACKEND.negotiateProtocolVersion, int32((3 << 16) | minor), int32(unknown.length), ...unknown);
}

/** A packet without type byte: length, code, parts. */
export function encodeFirstPacket(code: number, ...parts: readonly (string | Buffer)[]): Buffer {
  return message(0, int32(code), ...parts).subarray(1);
}

export const SSL_REQUEST = encodeFirstPacket(80_877_103);

/** Startup packet of protocol 3.0, which every target speaks. */
export function encodeStartup(parameters: Readonly<Record<string, string>>): Buffer {
  return encodeFirstPacket(3 << 16, ...Object.entries(parameters).flat(), "");
}

export function encodeCancel(pid: number, key: Buffer): Buffer {
  return encodeFirstPacket(80_877_102, int32(pid), key);
}

export const SYNC = message(FRONTEND.sync);
export const FLUSH = message(FRONTEND.flush);
export const TERMINATE = message(FRONTEND.terminate);

/**
 * What the target gets in the place of a refused statement: text that fails in its parser, so that its transaction fails
 * exactly where the user's statement would have, and its log says why.
 */
export const REFUSED_QUERY = message(FRONTEND.query, "refused by Glasskey");
export const REFUSED_PARSE = message(FRONTEND.parse, "refused by Glasskey", "refused by Glasskey", Buffer.alloc(2));
