import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { JsonObject } from "../../core/json.ts";

/**
 * PostgreSQL 18's own parser, as WebAssembly (libpg-query), behind bounds.
 *
 * Why not the package's `parseSync`: a statement nested deeply enough overflows the WebAssembly stack. The JavaScript
 * exception unwinds past C code that never cleans up, so the instance may answer wrongly afterwards. The package holds
 * one instance for ever; here an instance that failed in any way other than a syntax error is dropped, and a spare one
 * that stands ready takes its place. One whose memory has grown large is replaced too, since such memory never shrinks.
 */
export type ParseOutcome =
  | { ok: true; statements: readonly RawStatement[] }
  | { ok: false; syntax: true; message: string; position: number | undefined }
  | { ok: false; syntax: false; message: string };

/** One statement of the text: its node, such as `{ SelectStmt: {…} }`, and where it starts, in bytes of UTF-8 from 0. */
export interface RawStatement {
  readonly node: JsonObject;
  readonly startByte: number;
}

/** Longest text that is parsed, in UTF-16 units. Restores send INSERTs of some MiB; nothing honest sends more. */
export const MAX_SQL_LENGTH = 16 * 1024 * 1024;
/**
 * Most words and signs in one text. Parsing holds up every session of the process: 250,000 take about a quarter of a
 * second. Bulk data belongs into COPY or into parameters, which are not parsed.
 */
export const MAX_TOKENS = 250_000;
/** An instance reserves 128 MiB of addresses (not of memory) from its start; one that has grown past this is replaced. */
const MAX_INSTANCE_BYTES = 160 * 1024 * 1024;

/** The part of the Emscripten module that is used. Pinned by the exact version of libpg-query in package.json. */
interface Instance {
  _malloc(bytes: number): number;
  _free(pointer: number): void;
  _wasm_parse_query_raw(text: number): number;
  _wasm_free_parse_result(result: number): void;
  lengthBytesUTF8(text: string): number;
  stringToUTF8(text: string, pointer: number, maxBytes: number): void;
  UTF8ToString(pointer: number): string;
  getValue(pointer: number, type: "i32"): number;
  readonly HEAPU8: Uint8Array;
}

/** The part of the standard that is used; TypeScript's own declaration comes only with the browser's. */
declare const WebAssembly: {
  compile(bytes: Uint8Array): Promise<object>;
  readonly Instance: new (compiled: object, imports: object) => object;
};

interface InstanceOptions {
  instantiateWasm(imports: object, receive: (instance: object) => void): object;
  print(text: string): void;
  printErr(text: string): void;
}
type InstanceFactory = (options: InstanceOptions) => Promise<Instance>;

const require = createRequire(import.meta.url);
// One per thread, not one per scope: an instance is 128 MiB of addresses, and it keeps nothing between two texts.
let create: (() => Promise<Instance>) | undefined;
let current: Instance | undefined;
let spare: Instance | undefined;

/** Makes the parser ready. Idempotent; every check before it is refused. @throws if the WebAssembly file is missing. */
export async function loadParser(): Promise<void> {
  if (create === undefined) {
    const factory = require("libpg-query/wasm/libpg-query.js") as InstanceFactory;
    const compiled = await WebAssembly.compile(readFileSync(require.resolve("libpg-query/wasm/libpg-query.wasm")));
    create ??= () =>
      factory({
        instantiateWasm(imports, receive) {
          receive(new WebAssembly.Instance(compiled, imports));
          return {};
        },
        print: () => {}, // the parser's own notices, such as its stack dump, belong in nobody's log
        printErr: () => {},
      });
  }
  current ??= await create();
  spare ??= await create();
}

/** Parses `sql`. Never throws. */
export function parseSql(sql: string): ParseOutcome {
  if (sql.length > MAX_SQL_LENGTH) {
    return refuse(`the text is ${sql.length} characters long; at most ${MAX_SQL_LENGTH} can be checked`);
  }
  if (sql.includes("\0")) return refuse("the text holds a NUL byte, where PostgreSQL would stop reading");
  if (!sql.isWellFormed()) return refuse("the text is not well-formed Unicode");
  if (sql === "") return { ok: true, statements: [] };
  if (sql.length > MAX_TOKENS && estimateTokens(sql) > MAX_TOKENS) {
    return refuse(`the text has more than ${MAX_TOKENS} words and signs, too many to check at once; send it in parts`);
  }
  const instance = current;
  if (instance === undefined) return refuse("the SQL parser is being restarted; send the statement again");
  try {
    const outcome = parseWith(instance, sql);
    if (instance.HEAPU8.length > MAX_INSTANCE_BYTES) replaceInstance();
    return outcome;
  } catch {
    replaceInstance();
    return refuse("the statement is nested too deeply to be checked");
  }
}

function refuse(message: string): ParseOutcome {
  return { ok: false, syntax: false, message };
}

/** Swaps in the spare at once and prepares another, which needs only microtasks: it is there before the next packet. */
function replaceInstance(): void {
  current = spare;
  spare = undefined;
  void create?.().then((instance) => {
    if (current === undefined) {
      current = instance;
      return create?.().then((second) => {
        spare ??= second;
      });
    }
    spare = instance;
    return undefined;
  });
}

/** Layout of `PgQueryParseResult`: char *tree, char *stderr, PgQueryError *error; error: char *message … int at 16. */
function parseWith(instance: Instance, sql: string): ParseOutcome {
  const bytes = instance.lengthBytesUTF8(sql) + 1;
  const text = instance._malloc(bytes);
  if (text === 0) throw new Error("out of memory");
  instance.stringToUTF8(sql, text, bytes);
  const result = instance._wasm_parse_query_raw(text);
  if (result === 0) throw new Error("out of memory");
  const tree = instance.getValue(result, "i32");
  const error = instance.getValue(result + 8, "i32");
  let outcome: ParseOutcome;
  if (error !== 0) {
    const message = instance.UTF8ToString(instance.getValue(error, "i32"));
    const cursor = instance.getValue(error + 16, "i32");
    outcome = { ok: false, syntax: true, message, position: cursor > 0 ? cursor : undefined };
  } else {
    if (tree === 0) throw new Error("no parse tree");
    const parsed = JSON.parse(instance.UTF8ToString(tree)) as {
      stmts?: readonly { stmt?: JsonObject; stmt_location?: number }[];
    };
    const statements = (parsed.stmts ?? []).map(({ stmt = {}, stmt_location: startByte = 0 }) => ({
      node: stmt,
      startByte,
    }));
    outcome = { ok: true, statements };
  }
  instance._wasm_free_parse_result(result);
  instance._free(text);
  return outcome;
}

/**
 * Words and signs, wherever they stand. Those inside of a string count too: to leave them out would take a lexer, and a
 * simple one could be led to leave out everything.
 */
function estimateTokens(sql: string): number {
  let tokens = 0;
  let inWord = false;
  for (let at = 0; at < sql.length; at++) {
    const code = sql.charCodeAt(at);
    const word = (code >= 48 && code <= 57) || (code >= 65 && code <= 90) || (code >= 97 && code <= 122) || code > 94;
    if (code > 32 && !(word && inWord)) tokens++;
    inWord = word;
  }
  return tokens;
}
