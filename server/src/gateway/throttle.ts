import { isIPv4, isIPv6 } from "node:net";
import type { Clock } from "../core/clock.ts";

/** Counts events per key over the last minute or so, in bounded memory. */
export interface Counter {
  add(key: string): void;
  /** Events in the sliding window, rounded up. */
  count(key: string): number;
}

const WINDOW_MS = 60_000;

/**
 * A sliding window of one minute by two buckets: the current minute, and what is left of the one before, weighted.
 * When `maxKeys` are held, the key not touched for longest is forgotten.
 */
export function createCounter(clock: Clock, maxKeys: number): Counter {
  const keys = new Map<string, { window: number; current: number; previous: number }>();
  const read = (key: string): { window: number; current: number; previous: number } => {
    const window = Math.floor(clock.monotonicMs() / WINDOW_MS);
    const held = keys.get(key);
    if (held?.window === window) return held;
    return { window, current: 0, previous: held?.window === window - 1 ? held.current : 0 };
  };
  return {
    add(key) {
      const entry = read(key);
      entry.current++;
      keys.delete(key);
      keys.set(key, entry);
      if (keys.size > maxKeys) {
        const [oldest] = keys.keys();
        if (oldest !== undefined) keys.delete(oldest);
      }
    },
    count(key) {
      const { current, previous } = read(key);
      const passed = (clock.monotonicMs() % WINDOW_MS) / WINDOW_MS;
      return Math.ceil(current + previous * (1 - passed));
    },
  };
}

/** An address as people write it: IPv4 without the prefix of a socket that serves both, IPv6 without a zone. */
export function plainAddress(address: string): string {
  return address.replace(/%.*$/, "").replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, "");
}

/**
 * What counts as one address: an IPv4 address, however it is written, or the /64 of an IPv6 address, since one host
 * commonly holds a whole /64 (RFC 6177).
 */
export function addressGroup(address: string): string {
  const plain = plainAddress(address);
  if (isIPv4(plain) || !isIPv6(plain)) return plain;
  const [head = "", tail] = plain.toLowerCase().split("::");
  const left = head === "" ? [] : head.split(":");
  const right = tail === undefined || tail === "" ? [] : tail.split(":");
  const dotted = right.at(-1)?.includes(".") === true || left.at(-1)?.includes(".") === true ? 1 : 0;
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length - dotted;
  const groups = [...left, ...Array.from({ length: zeros }, () => "0"), ...right];
  return `${groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(":")}::/64`;
}

/** Whether only this machine can reach a socket bound to that address. */
export function isLoopback(address: string): boolean {
  const group = addressGroup(address);
  return address === "::1" || (isIPv4(group) && group.startsWith("127."));
}
