import { randomInt } from "node:crypto";
import { unreachable } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { FileProxy, FileProxyParts } from "./file-proxy.ts";
import { onStderr } from "./notices.ts";
import { cleanPath, joinPath, splitPath } from "./paths.ts";
import { askOf, encodeRequest, expand, question, secondPath } from "./sftp-ask.ts";
import { createHandle, type Handle } from "./sftp-handles.ts";
import {
  createPacketReader,
  damaged,
  encodeInit,
  encodeName,
  encodePacket,
  encodeStatus,
  encodeString,
  filterVersion,
  FX,
  FXP,
  idOf,
  isFolderOf,
  namesOf,
  parseRequest,
  realPathOf,
  type Request,
  statusOf,
} from "./sftp-wire.ts";
import { SshError } from "./types.ts";
import { Reader } from "./wire.ts";

/**
 * Between an SFTP client and the target's SFTP server. Every request is judged by the one function and recorded before it
 * is forwarded; what is refused is answered here and never seen by the target. Requests that name a path go one after the
 * other, because each is recorded first; reads and writes of what is open flow beside them.
 *
 * The path that is forwarded is the one that the target says is real: links were followed by asking it (REALPATH), and what
 * they lead to is judged too. Between that answer and its use somebody on the host can still put a link in the place
 * (docs/ssh-scope.md).
 */

/** Requests in flight, and requests with paths that wait; above them the client is not read. */
const MAX_IN_FLIGHT = 1_024;
const MAX_WAITING = 64;
const MAX_HANDLES = 1_024;
/** Answers of our own that the client has not taken; above it the client is not read. */
const MAX_UNTAKEN_BYTES = 64 * 1024;
/** Sentences on stderr, for clients that show no more of a refusal than its code. */
const MAX_SAID = 20;

/** What an answer is for. */
type Pending =
  | { readonly for: "own"; readonly answer: (packet: Buffer | undefined) => void }
  | { readonly for: "open"; readonly n: number; readonly path: string; readonly flags: number | "folder" }
  | { readonly for: "read"; readonly handle: Handle; readonly offset: number; readonly length: number }
  | { readonly for: "change" | "close" | "readdir"; readonly handle: Handle }
  | { readonly for: "statement"; readonly n: number }
  | { readonly for: "look" };

type State =
  | { readonly is: "init" | "version" | "home" }
  | { readonly is: "ready"; readonly home: string }
  | { readonly is: "over" };

export function createSftpProxy(parts: FileProxyParts): FileProxy {
  const { tape, ends, decide } = parts;
  let state: State = { is: "init" };
  const pending = new Map<number, Pending>();
  const handles = new Map<string, Handle>();
  const openStatements = new Set<number>();
  /** Numbers of requests that wait for their turn, before they are forwarded. */
  const reserved = new Set<number>();
  const waiting: (() => Promise<void>)[] = [];
  let running = false;
  let held: { packet: Buffer; bytes: number }[] = [];
  let clientOver = false;
  /** What was taken from the client and waits for its commit, beside requests with paths. */
  let unsent = 0;
  let untakenBytes = 0;
  let eofPassed = false;
  const said = new Set<string>();

  const isOver = (): boolean => state.is === "over";

  // ---------------------------------------------------------------------------------------------- the two streams

  /** The channel cannot go on. */
  const fail = (text: string): void => {
    if (isOver()) return;
    over();
    ends.fail(text);
  };

  const guarded = (act: () => void): void => {
    try {
      act();
    } catch (error) {
      if (!(error instanceof SshError)) throw error;
      fail(`SFTP: ${error.message}`);
    }
  };

  const over = (): void => {
    if (isOver()) return;
    state = { is: "over" };
    const error = { code: "cut", message: "the channel ended before it" };
    for (const handle of handles.values()) handle.end(error);
    for (const item of pending.values()) {
      if (item.for === "own") item.answer(undefined);
      if (item.for === "close") item.handle.end(error);
    }
    for (const n of openStatements) tape.end(n, { error });
    [held, waiting.length] = [[], 0];
    pending.clear();
    handles.clear();
    openStatements.clear();
  };

  const isFull = (): boolean =>
    state.is !== "ready" ||
    pending.size >= MAX_IN_FLIGHT ||
    waiting.length >= MAX_WAITING ||
    untakenBytes > MAX_UNTAKEN_BYTES;

  /** @param bytes of the client's window that this packet holds. */
  const take = (packet: Buffer, bytes: number): void => {
    if (isOver()) return ends.clientDone(bytes);
    if (state.is === "init") {
      ends.clientDone(bytes);
      return startUp(packet);
    }
    if (held.length > 0 || isFull()) return void held.push({ packet: Buffer.from(packet), bytes });
    handle(packet, bytes);
  };

  const resume = (): void => {
    while (held.length > 0 && !isFull()) {
      const next = held.shift();
      if (next !== undefined) guarded(() => handle(next.packet, next.bytes));
    }
    const idle = held.length === 0 && waiting.length === 0 && !running && unsent === 0;
    if (!clientOver || !idle || isOver() || eofPassed) return;
    eofPassed = true;
    ends.targetEof();
  };

  /** Counts what waits, so that the end of the client's stream is passed on after it. */
  const later = (act: () => void): (() => void) => {
    unsent += 1;
    return () => {
      unsent -= 1;
      if (!isOver()) act();
      if (clientOver && unsent === 0) resume();
    };
  };

  const startUp = (packet: Buffer): void => {
    if (packet[4] !== FXP.init || packet.readUInt32BE(5) < 3)
      throw damaged("an SFTP client that does not begin with version 3");
    state = { is: "version" };
    ends.toTarget(encodeInit());
  };

  const reply = (packet: Buffer): void => {
    if (isOver()) return;
    const { length } = packet;
    untakenBytes += length;
    ends.toClient(packet, 0, () => {
      untakenBytes -= length;
      if (held.length > 0) resume();
    });
  };

  const refuse = (id: number, text: string, verdict: { reason: string; next?: string }): void => {
    const sentence = ends.refuse("sftp", text, verdict);
    if (!said.has(sentence) && said.size < MAX_SAID) {
      said.add(sentence);
      ends.toClient(onStderr(sentence), 1);
    }
    reply(encodeStatus(id, FX.permissionDenied, sentence));
  };

  // ----------------------------------------------------------------------------------------------- what is asked

  const handle = (packet: Buffer, bytes: number): void => {
    const id = idOf(packet);
    if (pending.has(id) || reserved.has(id)) {
      ends.clientDone(bytes);
      if (pending.get(id)?.for !== "own") throw damaged("two SFTP requests with one number");
      return reply(encodeStatus(id, FX.failure, "try again with another number"));
    }
    const request = parseRequest(packet);
    switch (request.is) {
      case "close":
      case "read":
      case "write":
      case "fstat":
      case "readdir":
      case "fsync":
      case "fstatvfs":
      case "fsetstat":
      case "copy":
        return onHandle(id, request, packet, bytes);
      case "limits":
      case "users-groups":
        pending.set(id, { for: "look" });
        return ends.toTarget(packet, () => ends.clientDone(bytes));
      case "unknown":
        ends.clientDone(bytes);
        refuse(id, request.what, refusalOf(decide({ ask: "unknown", what: `SFTP ${request.what}` })));
        return;
      default:
        inTurn(id, bytes, () => onPath(id, request));
    }
  };

  const inTurn = (id: number, bytes: number, act: () => Promise<void>): void => {
    reserved.add(id);
    waiting.push(async () => {
      try {
        await act();
      } finally {
        reserved.delete(id);
        ends.clientDone(bytes);
      }
    });
    void work();
  };

  /** What goes on after an answer came: a damaged one ends this channel, and must never be nobody's to catch. */
  const carriedOut = async (act: () => Promise<void>): Promise<void> => {
    try {
      await act();
    } catch (error) {
      if (error instanceof SshError) fail(`SFTP: ${error.message}`);
      else ends.defect(error);
    }
  };

  /** Requests with paths, one after the other. */
  const work = async (): Promise<void> => {
    if (running) return;
    running = true;
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      await carriedOut(next);
    }
    running = false;
    resume();
  };

  type OnHandle = Extract<Request, { handle: string }>;

  const onHandle = (id: number, request: OnHandle, packet: Buffer, bytes: number): void => {
    const file = handles.get(request.handle);
    const other = request.is === "copy" ? handles.get(request.to) : undefined;
    const wrong = (): void => {
      ends.clientDone(bytes);
      reply(encodeStatus(id, FX.failure, "no such handle"));
    };
    if (file === undefined || (request.is === "copy" && other === undefined)) return wrong();
    /** Forwards it in the order of the requests for this file. A packet that has to wait is kept. */
    const pass = (item: Pending, inOrder: (forward: () => void) => void = file.after): void => {
      pending.set(id, item);
      let now = true;
      let sent = false;
      let copy: Buffer | undefined;
      const forward = (): void => {
        ends.toTarget(now ? packet : (copy ?? packet), () => ends.clientDone(bytes));
        sent = true;
      };
      inOrder(later(forward));
      now = false;
      if (!sent) copy = Buffer.from(packet);
    };
    /** It changes the file by a statement of its own, which what follows waits for. */
    const change = (act: () => Promise<void>, ...files: readonly Handle[]): void => {
      const releases = files.map((held) => held.hold());
      inTurn(id, bytes, async () => {
        try {
          await act();
        } finally {
          for (const release of releases) release();
        }
      });
    };
    switch (request.is) {
      case "read":
        if (!file.read || file.folder) return wrong();
        return pass({ for: "read", handle: file, offset: request.offset, length: request.length });
      case "write": {
        if (!file.write) return wrong();
        const { offset, body } = request;
        return pass({ for: "change", handle: file }, (forward) => file.give(offset, body, forward));
      }
      case "close":
        handles.delete(request.handle);
        return pass({ for: "close", handle: file });
      case "readdir":
        if (!file.folder) return wrong();
        return pass({ for: "readdir", handle: file });
      case "copy": {
        if (!file.read || file.folder || other?.write !== true) return wrong();
        const copy = Buffer.from(packet);
        const { offset, length } = request;
        // A length of 0 is all that there is (OpenSSH's PROTOCOL, 4.10).
        const detail = { ...(offset === 0 ? {} : { offset }), ...(length === 0 ? {} : { length }) };
        const forward = (): void => {
          other.copied();
          ends.toTarget(copy);
        };
        return change(
          () => begun(id, "copy", file.path, detail, forward, undefined, other.path),
          ...new Set([file, other]),
        );
      }
      case "fsetstat": {
        if (!file.write) {
          ends.clientDone(bytes);
          return refuse(id, `change ${file.path}`, { reason: `${file.path} was not opened for writing` });
        }
        const { path } = file;
        const copy = Buffer.from(packet);
        const { attributes } = request;
        return change(async () => {
          const verdict = decide(question("attributes", path, undefined, attributes));
          if (!verdict.ok) refuse(id, `change ${path}`, verdict);
          else await begun(id, "change", path, { ...attributes }, () => ends.toTarget(copy));
        }, file);
      }
      case "fsync":
        return pass({ for: "change", handle: file });
      case "fstat":
      case "fstatvfs":
        return pass({ for: "look" });
    }
  };

  type OnPath = Exclude<Request, OnHandle | { is: "limits" | "users-groups" | "unknown" }>;

  const onPath = async (id: number, request: OnPath): Promise<void> => {
    if (state.is !== "ready") return;
    const { home } = state;
    const text = request.is === "expand-path" ? expand(request.path) : request.path;
    const path = text === undefined ? undefined : cleanPath(text, home);
    if (path?.ok !== true) {
      return refuse(id, request.is, {
        reason: path?.reason ?? "the path is not text in UTF-8, or names another's home",
      });
    }
    const two = "path2" in request ? secondPath(request, path.path, home) : undefined;
    if (two?.ok === false) return refuse(id, request.is, { reason: two.reason });
    const ask = askOf(request, path.path, two?.path);
    if (ask === undefined)
      return refuse(id, `open ${path.path}`, { reason: "it is opened neither to be read nor to be written" });
    // Where the account is at home is known already, and every client asks.
    if ((request.is === "realpath" || request.is === "expand-path") && path.path === home)
      return reply(encodeName(id, home));

    const first = ask.questions.find((asked) => !decide(asked).ok);
    if (first !== undefined) return refuse(id, ask.text, refusalOf(decide(first)));
    if (request.is === "realpath" || request.is === "expand-path") {
      return looked(id, ask, encodePacket(FXP.realpath, id, encodeString(path.path)));
    }
    const real = await realOf(path.path, ask.follows, ask.makes);
    if (isOver()) return;
    if (typeof real !== "string") return reply(real === undefined ? noSuch(id) : withId(real, id));
    // Of a second path only the folder can be asked for; what a link points to is text, and was judged as such.
    const linked = request.is === "symlink" ? secondPath(request, real, home) : undefined;
    if (linked?.ok === false) return refuse(id, ask.text, { reason: linked.reason });
    const real2 = linked?.path ?? (two === undefined ? undefined : await realOf(two.path, false, true));
    if (isOver()) return;
    if (real2 !== undefined && typeof real2 !== "string") return reply(withId(real2, id));
    if (real !== path.path || (two !== undefined && real2 !== two.path)) {
      const second = askOf(request, real, real2)?.questions.find((asked) => !decide(asked).ok);
      if (second !== undefined) {
        const verdict = refusalOf(decide(second));
        return refuse(id, ask.text, { ...verdict, reason: `${verdict.reason} (a link leads there from ${path.path})` });
      }
    }
    if (real2 !== undefined && (request.is === "rename" || request.is === "posix-rename")) {
      const strict = decide({ ask: "file", op: "rename", path: real, path2: real2 });
      // It may be a folder, and more of it could be read or written under its new name.
      const what = strict.ok ? undefined : await own(FXP.lstat, real);
      if (isOver()) return;
      if (!strict.ok) {
        if (what !== undefined && statusOf(what) !== undefined) return reply(withId(what, id));
        if (what === undefined || isFolderOf(what) !== false) return refuse(id, ask.text, strict);
      }
    }
    const packet = encodeRequest(id, request, real, real2);
    if (!ask.recorded) return looked(id, ask, packet);
    const detail = {
      ...ask.detail,
      ...(real === path.path ? {} : { real }),
      ...(two === undefined || real2 === undefined || real2 === two.path ? {} : { real2 }),
    };
    await begun(id, ask.verb, path.path, detail, () => ends.toTarget(packet), ask.open, two?.path);
  };

  /** A look at something is no statement of its own, but it is on record before the target sees it. */
  const looked = (id: number, { text }: { text: string }, packet: Buffer): Promise<void> =>
    new Promise((resolve) => {
      resolvers.add(resolve);
      tape.action({ what: "sftp", n: parts.n, text }, () => {
        resolvers.delete(resolve);
        if (!isOver()) {
          pending.set(id, { for: "look" });
          ends.toTarget(packet);
        }
        resolve();
      });
    });
  /** Of promises whose commit never comes once the recording has failed: nothing waits for ever on them. */
  const resolvers = new Set<() => void>();

  const begun = (
    id: number,
    verb: string,
    path: string,
    detail: JsonObject,
    forward: () => void,
    open?: number | "folder",
    path2?: string,
  ): Promise<void> =>
    new Promise((resolve) => {
      resolvers.add(resolve);
      const text = path2 === undefined ? `${verb} ${path}` : `${verb} ${path} ${path2}`;
      const all = { verb, path, ...(path2 === undefined ? {} : { path2 }), ...detail };
      const n = tape.begin("sftp", text, all, () => {
        resolvers.delete(resolve);
        if (!isOver()) {
          pending.set(id, open === undefined ? { for: "statement", n } : { for: "open", n, path, flags: open });
          forward();
        }
        resolve();
      });
      openStatements.add(n);
    });

  // ---------------------------------------------------------------------------------------- asking the target

  const own = (type: number, path: string): Promise<Buffer | undefined> => {
    let id = randomInt(2 ** 32);
    while (pending.has(id) || reserved.has(id)) id = randomInt(2 ** 32);
    const { promise, resolve } = Promise.withResolvers<Buffer | undefined>();
    pending.set(id, { for: "own", answer: resolve });
    ends.toTarget(encodePacket(type, id, encodeString(path)));
    return promise;
  };

  /**
   * Where a path really is. @param follows whether its last name is followed too, @param makes whether it may not be there.
   * @returns the target's own status where it cannot say, undefined once all is over.
   */
  const realOf = async (path: string, follows: boolean, makes: boolean): Promise<string | Buffer | undefined> => {
    if (path === "/") return path;
    const { folder, name } = splitPath(path);
    if (follows) {
      const answer = await own(FXP.realpath, path);
      const real = answer === undefined ? undefined : realPathOf(answer);
      if (real !== undefined) return cleanReal(real);
      if (!makes || answer === undefined || statusOf(answer)?.code !== FX.noSuchFile) return answer ?? undefined;
      // A server that resolves only what is there. A link to nowhere is there, and would be written through.
      const there = await own(FXP.lstat, path);
      if (there === undefined || statusOf(there)?.code !== FX.noSuchFile) return answer;
    }
    const answer = await own(FXP.realpath, folder);
    const real = answer === undefined ? undefined : realPathOf(answer);
    return real === undefined ? answer : joinPath(cleanReal(real), name);
  };

  const cleanReal = (path: string): string => {
    const clean = cleanPath(path);
    if (!clean.ok || clean.path !== path) throw damaged("the SFTP server resolved a path to one that is not resolved");
    return path;
  };

  // --------------------------------------------------------------------------------------------- what is answered

  const answered = (packet: Buffer, bytes: number): void => {
    if (isOver()) return ends.targetDone(bytes);
    if (state.is === "version") {
      ends.targetDone(bytes);
      if (packet[4] !== FXP.version) throw damaged("an SFTP server that does not begin with its version");
      const version = filterVersion(packet);
      state = { is: "home" };
      void carriedOut(async () => {
        const answer = await own(FXP.realpath, ".");
        const home = answer === undefined ? undefined : realPathOf(answer);
        if (isOver()) return;
        if (home === undefined) return fail("SFTP: the server does not say where the account is at home");
        state = { is: "ready", home };
        ends.toClient(version, 0);
        resume();
      });
      return;
    }
    const id = idOf(packet);
    const item = pending.get(id);
    if (item === undefined) throw damaged("the SFTP server answered what nobody asked");
    pending.delete(id);
    if (item.for === "own") {
      ends.targetDone(bytes);
      item.answer(Buffer.from(packet));
    } else if (settle(item, packet)) ends.toClient(packet, 0, () => ends.targetDone(bytes));
    else {
      ends.targetDone(bytes);
      reply(encodeStatus(id, FX.failure, "the target sent names that no folder can hold"));
    }
    if (held.length > 0) resume();
  };

  /** @returns whether the client may have this answer. */
  const settle = (item: Exclude<Pending, { for: "own" }>, packet: Buffer): boolean => {
    const type = packet[4] ?? 0;
    const status = statusOf(packet);
    const failed = status !== undefined && status.code !== FX.ok ? status : undefined;
    switch (item.for) {
      case "open": {
        openStatements.delete(item.n);
        if (type !== FXP.handle) {
          if (failed === undefined) throw damaged("an open that was answered by neither a handle nor an error");
          tape.end(item.n, { error: { code: "target_refused", message: failed.message } });
          return true;
        }
        const key = new Reader(packet, 9).string(256).toString("latin1");
        if (handles.has(key) || handles.size >= MAX_HANDLES)
          throw damaged("the SFTP server gave a handle twice, or too many");
        handles.set(key, createHandle(parts, item.n, item.path, item.flags));
        return true;
      }
      case "read": {
        // What comes after the close was counted in nothing.
        if (item.handle.over) throw damaged("the SFTP server answered for a file after it had closed it");
        if (type === FXP.data) {
          const body = new Reader(packet, 9).string(packet.length);
          if (body.length > item.length) throw damaged("the SFTP server sent more than was asked for");
          item.handle.took(item.offset, body);
        } else if (failed === undefined) throw damaged("a read that was answered by neither data nor an error");
        else if (failed.code !== FX.eof) item.handle.failed(failed.message);
        return true;
      }
      case "readdir": {
        if (type !== FXP.name) {
          if (failed === undefined) throw damaged("a listing that was answered by neither names nor an error");
          return true;
        }
        const names = namesOf(packet);
        item.handle.listed(names.length);
        // A name that is a path would be written elsewhere by a client that believes it.
        const good = names.every((name) => name.length > 0 && !name.includes(0x2f) && !name.includes(0));
        if (!good) item.handle.failed("the target sent names that no folder can hold");
        return good;
      }
      case "close":
        if (status === undefined) throw damaged("a close that was answered by no status");
        item.handle.end(failed === undefined ? undefined : { code: "target_refused", message: failed.message });
        return true;
      case "change":
        if (status === undefined) throw damaged("a change that was answered by no status");
        if (failed !== undefined) item.handle.failed(failed.message);
        return true;
      case "statement":
        if (status === undefined) throw damaged("a change that was answered by no status");
        openStatements.delete(item.n);
        tape.end(
          item.n,
          failed === undefined ? { tag: "ok" } : { error: { code: "target_refused", message: failed.message } },
        );
        return true;
      case "look":
        if (type === FXP.data || type === FXP.handle) throw damaged("a question that was answered by something else");
        return true;
      default:
        return unreachable(item);
    }
  };

  const fromClient = createPacketReader(take, ends.clientDone);
  const fromTarget = createPacketReader(answered, ends.targetDone);
  return {
    fromClient(data) {
      if (isOver()) return ends.clientDone(data.length);
      guarded(() => fromClient.feed(data));
    },
    clientEof() {
      clientOver = true;
      resume();
    },
    fromTarget(data, stream) {
      if (stream === 1) {
        const { length } = data;
        tape.output(parts.n, 2, data);
        return ends.toClient(data, 1, () => ends.targetDone(length));
      }
      if (isOver()) return ends.targetDone(data.length);
      guarded(() => fromTarget.feed(data));
    },
    targetEof() {},
    over() {
      over();
      for (const resolve of resolvers) resolve();
      resolvers.clear();
    },
  };
}

/** An answer to a question of ours, as one to the client's. */
function withId(packet: Buffer, id: number): Buffer {
  const status = statusOf(packet);
  return encodeStatus(id, status?.code ?? FX.failure, status?.message ?? "the target does not say where it is");
}

function noSuch(id: number): Buffer {
  return encodeStatus(id, FX.noSuchFile, "no such file");
}

function refusalOf(verdict: { ok: boolean; reason?: string; next?: string }): { reason: string; next?: string } {
  const { reason = "it is not known", next } = verdict;
  return next === undefined ? { reason } : { reason, next };
}
