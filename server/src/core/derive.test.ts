import { expect, test } from "vitest";
import { deriveSecret } from "./derive.ts";

const KEY = Uint8Array.from({ length: 32 }, (_, i) => i);

test("a lease's secrets are the same in every process, and differ by lease and by purpose", () => {
  // The value is pinned: a change of it locks every live lease's credential out after a restart.
  const password = deriveSecret(KEY, "password").reveal();
  expect(password).toBe("mKSWfjwez8j5r0yemsq6W2B1jxddyiwLv6CbjV_vr4w");
  expect(deriveSecret(KEY, "password2").reveal()).not.toBe(password);
  expect(
    deriveSecret(
      KEY.map((byte) => byte ^ 1),
      "password",
    ).reveal(),
  ).not.toBe(password);
});

test("a key of another length derives nothing", () => {
  for (const length of [0, 16, 31, 33]) expect(() => deriveSecret(new Uint8Array(length), "x")).toThrow(/32 bytes/);
});
