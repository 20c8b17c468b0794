import { authorize } from "../server/src/targets/ssh/authorize.ts";
import { createTestTape, scopeFor } from "../server/src/targets/ssh/fixtures/file-proxies.ts";
import { createSftpProxy } from "../server/src/targets/ssh/sftp.ts";
import type { Random } from "./random.ts";

const scope = scopeFor({ sftp: { read: ["/r/**"], write: ["/w/**"] } });

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
const text = (value: string): Buffer => Buffer.concat([u32(Buffer.byteLength(value)), Buffer.from(value)]);
const packet = (type: number, ...body: Buffer[]): Buffer => {
  const all = Buffer.concat([Buffer.from([type]), ...body]);
  return Buffer.concat([u32(all.length), all]);
};
const NONE = u32(0);

export const seeds: readonly Uint8Array[] = [
  Buffer.concat([packet(3, u32(1), text("/r/x"), u32(1), NONE), packet(5, u32(2), text("h"), NONE, NONE, u32(9))]),
  Buffer.concat([
    packet(3, u32(1), text("/w/x"), u32(26), NONE),
    packet(6, u32(2), text("h"), NONE, NONE, text("abc")),
  ]),
  Buffer.concat([packet(18, u32(3), text("/w/a"), text("/w/b")), packet(20, u32(4), text("b"), text("/w/c"))]),
  packet(200, u32(5), text("posix-rename@openssh.com"), text("/w/a"), text("/w/../etc/x")),
  Buffer.concat([packet(11, u32(6), text("/r")), packet(12, u32(7), text("h")), packet(4, u32(8), text("h"))]),
  Buffer.concat([
    packet(102, u32(1), text("h")),
    packet(103, u32(2), text("abc")),
    packet(101, u32(3), NONE, text(""), text("")),
  ]),
  packet(104, u32(7), u32(1), text("name"), text("long"), u32(15), Buffer.alloc(28)),
];
export const words: readonly string[] = [
  "/r/",
  "/w/",
  "/../",
  "\0\0\0\x04",
  "\x03",
  "\x06",
  "\x65",
  "\x68",
  "h",
  "\xff\xff\xff\xff",
  "/etc/passwd",
];

/** Whatever either side sends: no crash, the same however it is cut, and no path outside of the scope reaches the target. */
export async function one(input: Uint8Array, random: Random): Promise<void> {
  const size = random.pick([1, 3, 7, 64, 4096]);
  const [whole, pieces] = [await play(input, input.length), await play(input, size)];
  if (whole !== pieces) throw new Error(`cut into ${size}: ${pieces}; whole: ${whole}`);
}

async function play(input: Uint8Array, size: number): Promise<string> {
  const { tape, mask } = createTestTape({ commit: (committed) => queueMicrotask(committed) });
  const [seen, failures]: string[][] = [[], []];
  const proxy = createSftpProxy({
    ...{ n: 1, scope, tape, mask, decide: (question) => authorize(question, scope) },
    ends: {
      toTarget(data, sent) {
        const bytes = Buffer.from(data);
        const path = bytes.subarray(13).toString();
        if (bytes[4] === 16 && !seen?.includes("ready")) {
          proxy.fromTarget(packet(104, bytes.subarray(5, 9), u32(1), text("/home"), text("/home"), NONE), 0);
          seen?.push("ready");
        } else if (bytes[4] === 16) {
          // The proxy's own question has a number of its choice: what it asks is told, not the number.
          queueMicrotask(() =>
            proxy.fromTarget(packet(104, bytes.subarray(5, 9), u32(1), text(path), text(path), NONE), 0),
          );
        } else {
          if (bytes.includes("/etc/passwd") && bytes[4] === 3)
            throw new Error("a path outside of the scope was forwarded");
          seen?.push(bytes.toString("hex"));
        }
        sent?.();
      },
      toClient: (_data, _stream, sent) => sent?.(),
      ...{ targetEof: () => {}, clientDone: () => {}, targetDone: () => {} },
      refuse: (_via, _text, { reason }) => reason,
      fail: (why) => void failures?.push(why),
      defect: (error) => {
        throw error;
      },
    },
  });
  proxy.fromClient(packet(1, u32(3)));
  proxy.fromTarget(packet(2, u32(3)), 0);
  await new Promise((resolve) => void setImmediate(resolve));
  // The target's answers follow what the client sent; a mutation may make either of it.
  const bytes = Buffer.from(input);
  for (let at = 0; at < bytes.length; at += size) proxy.fromClient(bytes.subarray(at, at + size));
  for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => void setImmediate(resolve));
  const asked = seen?.join(" ") ?? "";
  for (let at = 0; at < bytes.length; at += size) proxy.fromTarget(bytes.subarray(at, at + size), 0);
  await new Promise((resolve) => void setImmediate(resolve));
  proxy.over();
  return `${asked} ${failures?.length === 0 ? "" : "failed"}`;
}
