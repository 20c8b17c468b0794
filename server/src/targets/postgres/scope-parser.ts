import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { JsonObject } from "../../core/json.ts";
import { MAX_NAME_BYTES, measureText } from "./scope-cost.ts";

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

/** Longest text that is looked at, in UTF-16 units. Most are refused earlier, for what they would cost. */
export const MAX_SQL_LENGTH = 16 * 1024 * 1024;
/**
 * Most that checking one text may cost, as scope-cost.ts tells it: some 26,000 words and signs, or 5 MiB of plain string.
 * Checking holds up every session of the process, and with them the end of a session whose time has come.
 */
export const MAX_COST_MS = 50;
/** An instance reserves 128 MiB of addresses (not of memory) from its start; one that has grown past this is replaced. */
const MAX_INSTANCE_BYTES = 160 * 1024 * 1024;

/** The part of the Emscripten module that is used. Pinned by the exact version of libpg-query in package.json. */
interface Instance {
  _malloc(bytes: number): number;
  _free(pointer: number): void;
  _wasm_parse_query_raw(text: number): number;
  _wasm_free_parse_result(result: number): void;
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
  const { costMs, longName } = measureText(sql);
  if (costMs > MAX_COST_MS) return refuse(TOO_COSTLY);
  if (longName !== undefined) {
    return refuse(`the name ${longName}… is longer than ${MAX_NAME_BYTES} bytes, and the server would cut it off`);
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

export const TOO_COSTLY = "the text is too long to be checked while others wait; split it, or use COPY for data";

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
  const bytes = Buffer.from(sql, "utf8");
  const text = instance._malloc(bytes.length + 1);
  if (text === 0) throw new Error("out of memory");
  instance.HEAPU8.set(bytes, text);
  instance.HEAPU8[text + bytes.length] = 0;
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
