import fc from "fast-check";
import { isIPv6 } from "node:net";
import { expect, test } from "vitest";
import { addressGroup, createCounter, isLoopback } from "./throttle.ts";

function clock(): { now(): Date; monotonicMs(): number; ms: number } {
  const held = { ms: 0, now: () => new Date(held.ms), monotonicMs: () => held.ms };
  return held;
}

test("the window slides: what was a minute ago counts less and less", () => {
  const time = clock();
  const counter = createCounter(time, 10);
  for (let i = 0; i < 60; i++) counter.add("a");
  expect(counter.count("a")).toBe(60);
  time.ms = 90_000;
  expect(counter.count("a")).toBe(30);
  time.ms = 120_000;
  expect(counter.count("a")).toBe(0);
  expect(counter.count("b")).toBe(0);
});

test("memory is bounded, and a flood of names does not push out one that keeps failing", () => {
  const counter = createCounter(clock(), 100);
  for (let i = 0; i < 5_000; i++) {
    counter.add(`stranger ${i}`);
    counter.add("attacker");
  }
  expect(counter.count("attacker")).toBe(5_000);
  expect(counter.count("stranger 1")).toBe(0);
});

test("an IPv6 host with a /64 is one address, and an IPv4 address is one however it is written", () => {
  expect(addressGroup("2001:db8:1:2:3:4:5:6")).toBe(addressGroup("2001:0db8:1:2::1"));
  expect(addressGroup("2001:db8:1:2::1")).not.toBe(addressGroup("2001:db8:1:3::1"));
  expect(addressGroup("::ffff:192.0.2.7")).toBe(addressGroup("192.0.2.7"));
  expect(addressGroup("192.0.2.7")).not.toBe(addressGroup("192.0.2.8"));
  expect(addressGroup("fe80::1%eth0")).toBe("fe80:0:0:0::/64");
  expect(addressGroup("::1")).toBe("0:0:0:0::/64");
  expect(addressGroup("64:ff9b::192.0.2.7")).toBe("64:ff9b:0:0::/64");
});

test("any address has a group, and the group does not depend on its last 64 bits", () => {
  fc.assert(
    fc.property(fc.ipV6(), fc.ipV4(), (six, four) => {
      fc.pre(isIPv6(six));
      expect(addressGroup(four)).toBe(four);
      const group = addressGroup(six);
      expect(addressGroup(group.replace("::/64", "::1"))).toBe(group);
    }),
  );
});

test("loopback is loopback only", () => {
  for (const yes of ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]) expect(isLoopback(yes), yes).toBe(true);
  for (const no of ["0.0.0.0", "::", "192.0.2.1", "::2", "128.0.0.1", "localhost"]) {
    expect(isLoopback(no), no).toBe(false);
  }
});
