import { isUtf8 } from "node:buffer";
import type { FileOp } from "./authorize.ts";
import type { ScpCommand } from "./classify.ts";
import { type FileProxy, type FileProxyParts, KEPT_FILE_BYTES } from "./file-proxy.ts";
import { onStderr } from "./notices.ts";
import { joinPath, matchesName, splitPath } from "./paths.ts";
import { createPassed, type Passed } from "./sftp-transfer.ts";
import { printable } from "./wire.ts";

export interface ScpProxyParts extends FileProxyParts {
  readonly command: ScpCommand;
  /** Whether each path is asked about; not under a shell, which reaches them all. */
  readonly judged: boolean;
}

/**
 * Between the two halves of scp's old protocol, that of BSD's rcp (no RFC; as `scp -t` and `scp -f` speak it). One side is
 * the source, the other the sink: the source sends a line (`T` times, `C` file, `D` folder, `E` end of folder), then a file's
 * bytes and a status; each is acknowledged by the sink before the source goes on, and this proxy holds both sides to that.
 *
 * Each file and folder is judged by its path and recorded before its line is passed on. A refused one is answered in the
 * place of the sink, so the source leaves it out, and the other side never hears of it.
 */

const MAX_LINE_BYTES = 8 * 1024;
const MAX_DEPTH = 256;
const ACK = Buffer.alloc(1);

interface Item {
  readonly n: number;
  readonly path: string;
  readonly passed: Passed | undefined;
  kept: number;
  error?: { code: string; message: string };
}

type State =
  | { readonly is: "line" }
  /** A line is being recorded. */
  | { readonly is: "recording" }
  /** The sink owes an acknowledgement. */
  | { readonly is: "ack"; readonly then: (error: string | undefined, fatal: boolean) => void }
  | { readonly is: "data"; readonly file: Item; left: number }
  /** After a file's bytes: whether the source could read them all. */
  | { readonly is: "status"; readonly file: Item }
  | { readonly is: "over" };

export function createScpProxy(parts: ScpProxyParts): FileProxy {
  const { tape, ends, command, judged, scope, mask, decide } = parts;
  const upload = command.direction === "toTarget";
  const keep = scope.files === "keep";
  const toSink = (bytes: Uint8Array, sent?: () => void): void =>
    upload ? ends.toTarget(bytes, sent) : ends.toClient(bytes, 0, sent);
  const toSource = (bytes: Uint8Array): void => (upload ? ends.toClient(bytes, 0) : ends.toTarget(bytes));
  const sourceDone = (bytes: number): void => (upload ? ends.clientDone(bytes) : ends.targetDone(bytes));
  const sinkDone = (bytes: number): void => (upload ? ends.targetDone(bytes) : ends.clientDone(bytes));

  let state: State = { is: "ack", then: (error, fatal) => begin(error, fatal) };
  /** Of the source, what could not be dealt with yet: at most its window. */
  const held: Buffer[] = [];
  let line: Buffer[] = [];
  let lineBytes = 0;
  let answer: Buffer[] = [];
  let answerBytes = 0;
  /** Folders that were entered; of each, what it is called, and where it may be else (below). */
  const folders: (readonly string[])[] = [];
  const open = new Set<Item>();
  let eof = false;
  let eofPassed = false;

  /** What the command is to say of its path first; undefined where that is not known. */
  let telling = command.tells;
  let intoFolder: boolean | undefined = command.folder ? true : undefined;

  const isOver = (): boolean => state.is === "over";

  const begin = (error: string | undefined, fatal: boolean): void => {
    state = fatal && error !== undefined ? { is: "over" } : { is: "line" };
  };

  const over = (): void => {
    state = { is: "over" };
    for (const item of open) finish(item, { code: "cut", message: "the channel ended before it" });
    for (const chunk of held.splice(0)) sourceDone(chunk.length);
  };

  const fail = (text: string): void => {
    if (isOver()) return;
    over();
    ends.fail(`scp: ${text}`);
  };

  const finish = (item: Item, error?: { code: string; message: string }): void => {
    open.delete(item);
    const why = item.error ?? error;
    tape.end(item.n, {
      ...(why === undefined ? { tag: "ok" } : { error: why }),
      ...(item.passed === undefined ? {} : { bytes: item.passed.bytes, detail: item.passed.result() }),
    });
  };

  // ------------------------------------------------------------------------------------------------- the source

  const run = (): void => {
    while (held.length > 0) {
      const [chunk] = held;
      if (chunk === undefined) return;
      let used = 0;
      switch (state.is) {
        case "over":
          held.shift();
          sourceDone(chunk.length);
          continue;
        case "ack":
        case "recording":
          return;
        case "line":
        case "status":
          used = takeLine(chunk);
          break;
        case "data":
          used = takeData(state, chunk);
          break;
      }
      if (used === chunk.length) held.shift();
      else held[0] = chunk.subarray(used);
    }
    if (!eof || !upload || eofPassed || isOver() || state.is === "recording") return;
    eofPassed = true;
    ends.targetEof();
  };

  /** @returns how many bytes of the chunk belong to this line. */
  const takeLine = (chunk: Buffer): number => {
    const first = line[0]?.[0] ?? chunk[0];
    if (state.is === "status" && first === 0) {
      onStatus(state.file, ACK);
      sourceDone(1);
      return 1;
    }
    const end = chunk.indexOf(0x0a);
    const used = end < 0 ? chunk.length : end + 1;
    lineBytes += used;
    if (lineBytes > MAX_LINE_BYTES) fail("a line that is too long");
    sourceDone(used);
    if (isOver()) return used;
    line.push(Buffer.from(chunk.subarray(0, used)));
    if (line.length > 64) line = [Buffer.concat(line)];
    if (end < 0) return used;
    const whole = Buffer.concat(line);
    [line, lineBytes] = [[], 0];
    if (state.is === "status") onStatus(state.file, whole);
    else onLine(whole);
    return used;
  };

  const onLine = (whole: Buffer): void => {
    const body = whole.subarray(0, -1);
    if (body[0] === 1 || body[0] === 2) {
      // What the source says of a file that it cannot send; nobody answers that.
      const next: State = body[0] === 2 ? { is: "over" } : { is: "line" };
      const message = messageOf(body);
      if (!upload) {
        toSink(message);
        state = next;
        return;
      }
      state = { is: "recording" };
      const text = printable(body.subarray(1).toString("utf8"), 200);
      tape.action({ what: "scp", n: parts.n, text: `error: ${text}` }, () => {
        if (isOver()) return;
        // Not before it is sent: a target that does not read must not fill this side.
        toSink(message, () => {
          if (isOver()) return;
          state = next;
          run();
        });
      });
      return;
    }
    if (!isUtf8(body)) return refuseLine("a file", { reason: "a name that is not text in UTF-8" });
    const text = body.toString("utf8");
    if (/^T\d{1,20} \d{1,6} \d{1,20} \d{1,6}$/.test(text)) {
      if (!command.preserve) return fail("times that nobody asked for");
      state = { is: "recording" };
      return tape.action({ what: "scp", n: parts.n, text }, () => pass(whole, () => {}));
    }
    if (text === "E") {
      if (folders.pop() === undefined) return fail("the end of a folder that was not begun");
      return pass(whole, () => {});
    }
    const match = /^([CD])([0-7]{4,5}) (\d{1,15}) ([^]+)$/.exec(text);
    if (match === null) return fail("a line that is none of its protocol");
    const [, type = "", mode = "", size = "", name = ""] = match;
    onEntry(whole, type === "D", Number.parseInt(mode, 8), Number(size), name);
  };

  const onEntry = (whole: Buffer, folder: boolean, mode: number, size: number, name: string): void => {
    if (name === "." || name === ".." || name.includes("/") || /\p{Cc}/u.test(name))
      return fail("a name that is a path");
    if (folder && !command.recursive) return fail("a folder that nobody asked for");
    if (!upload && folders.length === 0 && !wasAsked(name))
      return fail(`the target sent ${printable(name, 100)}, which nobody asked for`);
    if (folders.length >= MAX_DEPTH) return fail("too many folders in each other");
    const paths = placesOf(name, folder);
    const [path = ""] = paths;
    const op: FileOp = upload ? (folder ? "mkdir" : "write") : folder ? "list" : "read";
    const verb = folder ? (upload ? "mkdir" : "list") : op;
    const text = `${verb} ${path}`;
    if (judged) {
      for (const one of paths) {
        const verdict = decide({ ask: "file", op, path: one, ...(upload ? { mode } : {}) });
        if (!verdict.ok) return refuseLine(text, verdict);
      }
    }
    state = { is: "recording" };
    const detail = {
      verb,
      path,
      name,
      mode: (mode & 0o7777).toString(8).padStart(4, "0"),
      ...(folder ? {} : { size }),
    };
    const n = tape.begin("scp", text, detail, () => pass(whole, (error) => entered(item, paths, folder, size, error)));
    const item: Item = { n, path, passed: folder ? undefined : createPassed(mask), kept: 0 };
    open.add(item);
  };

  /** The sink has answered a C or a D. */
  const entered = (
    item: Item,
    paths: readonly string[],
    folder: boolean,
    size: number,
    error: string | undefined,
  ): void => {
    if (error !== undefined) return finish(item, { code: "target_refused", message: error });
    if (folder) {
      folders.push(paths);
      return finish(item);
    }
    state = size > 0 ? { is: "data", file: item, left: size } : { is: "status", file: item };
  };

  /** Gives a line to the sink and waits for its answer. */
  const pass = (bytes: Buffer, then: (error: string | undefined) => void): void => {
    if (isOver()) return;
    state = {
      is: "ack",
      then(error, fatal) {
        state = fatal ? { is: "over" } : { is: "line" };
        then(error);
      },
    };
    toSink(bytes);
  };

  const refuseLine = (text: string, verdict: { reason: string; next?: string }): void => {
    const sentence = ends.refuse("scp", text, verdict);
    toSource(Buffer.from(`\u0001scp: glasskey: ${printable(sentence, 500)}\n`));
    // The source at a client prints what it was answered; one at the target prints nothing that the person would see.
    if (!upload) ends.toClient(onStderr(sentence), 1);
    state = { is: "line" };
  };

  const takeData = (data: Extract<State, { is: "data" }>, chunk: Buffer): number => {
    const part = chunk.subarray(0, Math.min(chunk.length, data.left));
    const { file } = data;
    const { length } = part; // it may be gone once it is sent
    file.passed?.add(file.passed.bytes, part);
    data.left -= part.length;
    const next: State = data.left > 0 ? data : { is: "status", file };
    if (keep && upload && file.kept < KEPT_FILE_BYTES) {
      file.kept += part.length;
      state = { is: "recording" };
      const copy = Buffer.from(part);
      tape.data(file.n, copy, () => {
        if (isOver()) return;
        toSink(copy, () => sourceDone(copy.length));
        state = next;
        run();
      });
      return part.length;
    }
    if (keep && !upload && !mask.parameters) tape.output(file.n, 1, part);
    toSink(part, () => sourceDone(length));
    state = next;
    return length;
  };

  const onStatus = (file: Item, status: Buffer): void => {
    const failed = status[0] !== 0;
    if (failed) file.error = { code: "source_failed", message: printable(status.subarray(1).toString("utf8"), 200) };
    pass(failed ? messageOf(status.subarray(0, -1)) : ACK, (error) =>
      finish(file, error === undefined ? undefined : { code: "sink_failed", message: error }),
    );
  };

  // --------------------------------------------------------------------------------------------------- the sink

  const fromSink = (chunk: Buffer): void => {
    for (let at = 0; at < chunk.length && !isOver();) {
      if (telling) {
        if (chunk[at] !== 0x44 && chunk[at] !== 0x46)
          return fail("the target does not say whether the path is a folder");
        [telling, intoFolder] = [false, chunk[at] === 0x44];
        at += 1;
        continue;
      }
      if (state.is !== "ack") return fail("an answer to nothing");
      const { then } = state;
      if (answerBytes === 0 && chunk[at] === 0) {
        at += 1;
        toSource(ACK);
        then(undefined, false);
        run();
        continue;
      }
      const end = chunk.indexOf(0x0a, at);
      const part = chunk.subarray(at, end < 0 ? chunk.length : end + 1);
      at += part.length;
      answer.push(Buffer.from(part));
      answerBytes += part.length;
      if (answerBytes > MAX_LINE_BYTES) return fail("an answer that is too long");
      if (answer.length > 64) answer = [Buffer.concat(answer)];
      if (end < 0) return;
      const whole = Buffer.concat(answer).subarray(0, -1);
      [answer, answerBytes] = [[], 0];
      if (whole[0] !== 1 && whole[0] !== 2) return fail("an answer that is none of its protocol");
      toSource(messageOf(whole));
      then(printable(whole.subarray(1).toString("utf8"), 200), whole[0] === 2);
      run();
    }
  };

  // --------------------------------------------------------------------------------------------------- the paths

  /**
   * Where an entry is on the host, the likeliest first. The one that was named may be a folder, into which it goes, or be
   * made by this: the host said so. Under a shell it did not, and nothing is judged.
   */
  const placesOf = (name: string, folder: boolean): readonly string[] => {
    const into = folders.at(-1);
    if (into !== undefined) return into.map((path) => joinPath(path, name));
    const { path } = command;
    if (!upload) return [/[*?[\]{}]/.test(path) ? joinPath(splitPath(path).folder, name) : path];
    if (intoFolder !== undefined) return [intoFolder ? joinPath(path, name) : path];
    return folder ? [path, joinPath(path, name)] : [path];
  };

  /** A target's own choice of names overwrites files of whoever asked for another (CVE-2019-6111). */
  const wasAsked = (name: string): boolean => {
    const asked = splitPath(command.path.replace(/\/+$/, "")).name || command.path;
    if (asked === "" || asked === "." || asked === ".." || asked === "/" || asked === "~") return true;
    // Braces and brackets of a shell are not read here; such a path exists under a shell only.
    return /[[\]{}\\$`'"~]/.test(asked) || matchesName(asked, name);
  };

  const receive = (isSource: boolean, data: Buffer): void => {
    if (isOver()) return isSource ? sourceDone(data.length) : sinkDone(data.length);
    if (isSource) {
      held.push(data);
      run();
      // Only what has to wait is copied: it is the end of these bytes.
      const left = held.pop();
      if (left !== undefined) held.push(Buffer.from(left));
      return;
    }
    sinkDone(data.length);
    fromSink(data);
  };

  return {
    fromClient: (data) => receive(upload, data),
    clientEof() {
      eof = true;
      if (!upload) return ends.targetEof();
      run();
    },
    fromTarget(data, stream) {
      if (stream !== 1) return receive(!upload, data);
      const { length } = data;
      tape.output(parts.n, 2, data);
      ends.toClient(data, 1, () => ends.targetDone(length));
    },
    targetEof() {},
    over,
  };
}

/** An error line of the protocol, fit for the other side's terminal. */
function messageOf(body: Buffer): Buffer {
  return Buffer.concat([body.subarray(0, 1), Buffer.from(`${printable(body.subarray(1).toString("utf8"), 500)}\n`)]);
}
