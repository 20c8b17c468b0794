import { unreachable } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { FileOp, Question } from "./authorize.ts";
import { cleanPath, splitPath } from "./paths.ts";
import { accessOf, type Attributes, encodePacket, encodeString, FXP, OPEN, type Request } from "./sftp-wire.ts";
import { uint32 } from "./wire.ts";

/** What an SFTP request with paths comes to: the questions, the record, and the packet for the target. */

export type PathRequest = Extract<Request, { path: string | undefined }>;

export interface Ask {
  readonly questions: readonly Question[];
  /** In the recording: the verb, and the whole. */
  readonly verb: string;
  readonly text: string;
  readonly detail: JsonObject;
  /** A statement of its own, not just a look. */
  readonly recorded: boolean;
  /** Whether the target would follow a link in the last name, and whether the name may be a new one. */
  readonly follows: boolean;
  readonly makes: boolean;
  readonly open?: number | "folder";
}

/** What a request comes to; undefined for an open that asks for nothing. */
export function askOf(request: PathRequest, path: string, path2: string | undefined): Ask | undefined {
  const simple = (op: FileOp, verb: string, more: Partial<Ask> = {}): Ask => ({
    questions: [question(op, path, path2, "attributes" in request ? request.attributes : undefined)],
    ...{ verb, text: path2 === undefined ? `${verb} ${path}` : `${verb} ${path} ${path2}` },
    ...{ detail: {}, recorded: true, follows: false, makes: false },
    ...more,
  });
  switch (request.is) {
    case "open": {
      const access = accessOf(request.flags);
      if (access === undefined) return undefined;
      const ops: readonly FileOp[] = [
        ...(access.read ? (["read"] as const) : []),
        ...(access.write ? (["write"] as const) : []),
      ];
      const verb = ops.join("+");
      const { mode } = request.attributes;
      return {
        questions: ops.map((op) => question(op, path, undefined, access.write ? request.attributes : undefined)),
        ...{ verb, text: `${verb} ${path}`, recorded: true, follows: true, makes: access.write, open: request.flags },
        detail: access.write
          ? { ...(mode === undefined ? {} : { mode: octal(mode) }), flags: flagsOf(request.flags) }
          : {},
      };
    }
    case "opendir":
      return simple("list", "list", { follows: true, open: "folder" });
    case "stat":
    case "statvfs":
      return simple("look", request.is, { follows: true, recorded: false });
    case "lstat":
    case "readlink":
    case "realpath":
    case "expand-path":
      return simple("look", request.is, { recorded: false });
    case "setstat":
    case "lsetstat":
      return simple("attributes", "change", { follows: request.is === "setstat", detail: { ...request.attributes } });
    case "mkdir": {
      const { mode } = request.attributes;
      return simple("mkdir", "mkdir", { makes: true, detail: mode === undefined ? {} : { mode: octal(mode) } });
    }
    case "remove":
    case "rmdir":
      return simple(request.is, request.is);
    case "rename":
    case "posix-rename":
      // What it is, the target is asked where that matters (sftp.ts).
      return simple("rename", "rename", {
        questions: [{ ask: "file", op: "rename", path, folder: false, ...(path2 === undefined ? {} : { path2 }) }],
      });
    case "hardlink":
      return simple("link", "link");
    case "symlink":
      return simple("symlink", "symlink", { makes: true });
    default:
      return unreachable(request);
  }
}

export function question(op: FileOp, path: string, path2?: string, attributes?: Attributes): Question {
  const mode = attributes?.mode;
  return {
    ...{ ask: "file", op, path },
    ...(path2 === undefined ? {} : { path2 }),
    ...(mode === undefined ? {} : { mode }),
  };
}

/**
 * Of `symlink` what it points to, seen from where the link is; of the others a path like the first. `..` behind a name would
 * lead from where that name leads, which the text does not tell.
 */
export function secondPath(
  request: Extract<Request, { path2: string | undefined }>,
  path: string,
  home: string,
): ReturnType<typeof cleanPath> {
  if (request.path2 === undefined) return { ok: false, reason: "the path is not text in UTF-8" };
  if (request.is !== "symlink") return cleanPath(request.path2, home);
  if (/(?:^|\/)(?!\.{1,2}\/)[^/]+\/(?:.*\/)?\.\.(?:\/|$)/s.test(request.path2))
    return { ok: false, reason: "a link to a path with .. behind a name" };
  return cleanPath(request.path2, splitPath(path).folder);
}

/** `~` and `~/x` are the account's home; another's is not resolved. */
export function expand(path: string | undefined): string | undefined {
  if (path === undefined || !path.startsWith("~")) return path;
  if (path === "~") return ".";
  return path.startsWith("~/") ? `./${path.slice(2)}` : undefined;
}

export function encodeRequest(id: number, request: PathRequest, path: string, path2: string | undefined): Buffer {
  const first = encodeString(path);
  switch (request.is) {
    case "open":
      return encodePacket(FXP.open, id, first, uint32(request.flags), encodeAttributes(request.attributes));
    case "setstat":
    case "mkdir":
      return encodePacket(FXP[request.is], id, first, encodeAttributes(request.attributes));
    case "lsetstat":
      return encodePacket(
        FXP.extended,
        id,
        encodeString("lsetstat@openssh.com"),
        first,
        encodeAttributes(request.attributes),
      );
    case "rename":
      return encodePacket(FXP.rename, id, first, encodeString(path2 ?? ""));
    case "posix-rename":
    case "hardlink":
      return encodePacket(
        FXP.extended,
        id,
        encodeString(`${request.is}@openssh.com`),
        first,
        encodeString(path2 ?? ""),
      );
    case "symlink":
      return encodePacket(FXP.symlink, id, encodeString(request.path2 ?? ""), first);
    case "statvfs":
      return encodePacket(FXP.extended, id, encodeString("statvfs@openssh.com"), first);
    case "expand-path":
      return encodePacket(FXP.realpath, id, first);
    default:
      return encodePacket(FXP[request.is], id, first);
  }
}

function encodeAttributes({ size, uid, gid, mode, atime, mtime }: Attributes): Buffer {
  const owner = uid !== undefined && gid !== undefined;
  const times = atime !== undefined && mtime !== undefined;
  const flags = (size === undefined ? 0 : 1) | (owner ? 2 : 0) | (mode === undefined ? 0 : 4) | (times ? 8 : 0);
  const long = Buffer.alloc(8);
  if (size !== undefined) long.writeBigUInt64BE(BigInt(size));
  return Buffer.concat([
    uint32(flags),
    ...(size === undefined ? [] : [long]),
    ...(owner ? [uint32(uid), uint32(gid)] : []),
    ...(mode === undefined ? [] : [uint32(mode)]),
    ...(times ? [uint32(atime), uint32(mtime)] : []),
  ]);
}

function flagsOf(flags: number): string[] {
  return Object.entries(OPEN).flatMap(([name, bit]) => ((flags & bit) === 0 ? [] : [name]));
}

function octal(mode: number): string {
  return (mode & 0o7777).toString(8).padStart(4, "0");
}
