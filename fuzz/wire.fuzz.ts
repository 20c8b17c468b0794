import { createClientReader, createServerReader, KEEP } from "../server/src/targets/postgres/framing.ts";
import { PLAIN, ScramError, startServerExchange } from "../server/src/targets/postgres/scram.ts";
import {
  BACKEND,
  decodeBind,
  decodeError,
  decodeExecute,
  decodeFirstPacket,
  decodeFunctionCall,
  decodeNamed,
  decodeOptions,
  decodeParameterStatus,
  decodeParse,
  decodeSaslInitial,
  encodeReport,
  encodeStartup,
  FRONTEND,
  int32,
  message,
  ProtocolViolation,
  SYNC,
} from "../server/src/targets/postgres/wire.ts";
import type { Random } from "./random.ts";

const int16 = (...values: readonly number[]): Buffer => {
  const bytes = Buffer.alloc(2 * values.length);
  for (const [i, value] of values.entries()) bytes.writeInt16BE(value, 2 * i);
  return bytes;
};
const parse = message(FRONTEND.parse, "s1", "select $1::int", int16(1), int32(23));
const bind = message(FRONTEND.bind, "", "s1", int16(1, 0, 2), int32(2), Buffer.from("42"), int32(-1), int16(1, 0));
const execute = message(FRONTEND.execute, "", int32(0));
const copy = message(FRONTEND.copyData, Buffer.from("1\torders\n"));
const row = message(BACKEND.dataRow, int16(1), int32(2), Buffer.from("42"));
const done = message(BACKEND.commandComplete, "SELECT 1");
const ready = message(BACKEND.readyForQuery, Buffer.from("I"));
const startup = encodeStartup({ user: "gr_7kq2m9x4tbzc", database: "orders", options: "-c a=b --c-d=e\\ f" });

export const seeds: readonly Uint8Array[] = [
  Buffer.concat([message(FRONTEND.query, "select 1"), SYNC]),
  Buffer.concat([parse, bind, message(FRONTEND.describe, "Ps1"), execute, SYNC]),
  Buffer.concat([copy, copy, message(FRONTEND.copyDone), message(FRONTEND.terminate)]),
  Buffer.concat([row, row, done, encodeReport({ severity: "ERROR", sqlstate: "42501", message: "no" }), ready]),
  Buffer.concat([message(BACKEND.parameterStatus, "client_encoding", "UTF8"), copy, ready]),
  ...[startup.subarray(4), parse.subarray(5), bind.subarray(5), execute.subarray(5), Buffer.from("Ss1\0")],
  message(FRONTEND.password, PLAIN, int32(26), Buffer.from("n,,n=,r=abcdefghijklmnopqr")).subarray(5),
  Buffer.from("n,,n=,r=abcdefghijklmnopqr"),
];
export const words: readonly string[] = [
  "\0",
  "\0\0\0\x04",
  "\x40\0\0\0",
  "d\0\0\0\x05x",
  "D",
  "Z",
  "Q",
  "P",
  "B",
  "S",
  "-c ",
  "\\",
];

/**
 * Damage is a ProtocolViolation; nothing is read past a message's end; and however a stream is cut into chunks, the same
 * messages and the same bytes come out.
 */
export function one(input: Uint8Array, random: Random): void {
  const bytes = Buffer.from(input);
  const chunks = cut(bytes, random);
  for (const read of [readAsServer, readAsClient]) {
    const [whole, pieces] = [read([bytes]), read(chunks)];
    if (whole !== pieces) throw new Error(`cut into ${chunks.map((c) => c.length).join()}: ${pieces}; whole: ${whole}`);
  }
  decodeWithin(bytes, random);
  attempt(() => decodeFirstPacket(bytes));
  attempt(() => decodeSaslInitial(bytes));
  attempt(() => decodeOptions(bytes.toString("utf8")));
  attempt(() =>
    startServerExchange(PLAIN, bytes.toString("latin1"), {
      salt: Buffer.alloc(16),
      iterations: 4096,
      binding: undefined,
    }),
  );
}

function cut(bytes: Buffer, random: Random): readonly Buffer[] {
  const chunks: Buffer[] = [];
  const longest = random.pick([1, 3, 7, 64, 4096]);
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(bytes.length, at + 1 + random.int(longest));
    chunks.push(bytes.subarray(at, end));
    at = end;
  }
  return chunks;
}

/** What the gateway sees of a client's stream, as text. After a violation only that there was one counts. */
function readAsServer(chunks: readonly Buffer[]): string {
  const seen: string[] = [];
  const passed: Buffer[] = [];
  let copied = 0;
  const reader = createClientReader({
    message(type, bytes, start, end) {
      if (start < 0 || end > bytes.length || end - start < 5) throw new Error("a message outside of its bytes");
      seen.push(`${type}:${bytes.toString("hex", start, end)}`);
      return KEEP;
    },
    copyData(bytes, start, end) {
      if (start > end || end > bytes.length) throw new Error("copy data outside of its bytes");
      copied += end - start;
      return true;
    },
    pass: (bytes) => void passed.push(bytes),
  });
  return outcome(chunks, reader, passed, () => `${seen.join(" ")} copied ${copied}`);
}

function readAsClient(chunks: readonly Buffer[]): string {
  const seen: string[] = [];
  const passed: Buffer[] = [];
  let [rows, content] = [0, 0];
  const reader = createServerReader({
    message(type, bytes, start, end, length) {
      if (start < 0 || end > bytes.length || end - start > length) throw new Error("a message outside of its bytes");
      seen.push(`${type}:${length}`);
      return KEEP;
    },
    rows(messages, contentBytes) {
      rows += messages;
      content += contentBytes;
    },
    pass: (bytes) => void passed.push(bytes),
  });
  return outcome(chunks, reader, passed, () => `${seen.join(" ")} rows ${rows} of ${content}`);
}

function outcome(
  chunks: readonly Buffer[],
  reader: { feed(chunk: Buffer): void; readonly heldBytes: number },
  passed: readonly Buffer[],
  seen: () => string,
): string {
  try {
    for (const chunk of chunks) reader.feed(chunk);
  } catch (error) {
    if (error instanceof ProtocolViolation) return "violation";
    throw error;
  }
  const input = Buffer.concat(chunks);
  const output = Buffer.concat(passed);
  if (!output.equals(input.subarray(0, output.length))) throw new Error("what was passed is not what came in");
  if (output.length + reader.heldBytes !== input.length) throw new Error("bytes were lost or held twice");
  return `${seen()} passed ${output.length}`;
}

/** Each decoder gives the same with other bytes behind the message as with none. */
function decodeWithin(bytes: Buffer, random: Random): void {
  const behind = Buffer.concat([
    bytes,
    Buffer.from(random.pick(["\0\0\0\0\0\0\0\0", "behind", "\xff\0\x01\0"]), "latin1"),
  ]);
  const decoders = [
    decodeParse,
    decodeBind,
    decodeExecute,
    decodeNamed,
    decodeFunctionCall,
    decodeParameterStatus,
    decodeError,
  ];
  for (const decode of decoders) {
    const [exact, more] = [bytes, behind].map((from) => attempt(() => JSON.stringify(decode(from, 0, bytes.length))));
    if (exact !== more) throw new Error(`${decode.name} reads past the message: ${exact} became ${more}`);
  }
}

function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof ProtocolViolation || error instanceof ScramError) return undefined;
    throw error;
  }
}
