import { createHash } from "node:crypto";
import type { JsonObject } from "../../core/json.ts";
import { keyedHash } from "../../core/keyed-hash.ts";
import type { MaskRules } from "../target.ts";

/** Bytes of one file that passed in one direction: their digest, and where in the file they belong. */
export interface Passed {
  add(offset: number, bytes: Uint8Array): void;
  readonly bytes: number;
  /**
   * `{ sha256 }`, or `{ hmac }` where content is masked. With `ranges` where it was not one piece from the beginning, and
   * with `order: "as passed"` where the digest is of the bytes in another order than the file's.
   */
  result(): JsonObject;
}

const MAX_RANGES = 32;

export function createPassed(mask: MaskRules): Passed {
  const hash = createHash("sha256");
  const ranges: [number, number][] = [];
  let bytes = 0;
  let sequential = true;
  let more = false;
  return {
    add(offset, part) {
      hash.update(part);
      bytes += part.length;
      const last = ranges.at(-1);
      if (last !== undefined && last[1] === offset) last[1] += part.length;
      else {
        if (last !== undefined && offset < last[1]) sequential = false;
        if (ranges.length < MAX_RANGES) ranges.push([offset, offset + part.length]);
        else {
          more = true;
          ranges[MAX_RANGES - 1] = [offset, offset + part.length];
        }
      }
    },
    get bytes() {
      return bytes;
    },
    result() {
      const digest = hash.digest();
      const whole = ranges.length === 0 || (ranges.length === 1 && ranges[0]?.[0] === 0);
      return {
        ...(mask.parameters ? { hmac: keyedHash(mask.key, digest) } : { sha256: digest.toString("hex") }),
        ...(whole ? {} : { ranges: ranges.map(([from, to]) => [from, to]) }),
        ...(more ? { moreRanges: true } : {}),
        ...(sequential ? {} : { order: "as passed" }),
      };
    },
  };
}
