import fc from "fast-check";
import { expect, test } from "vitest";
import { createLinks, type LinkClaim } from "./links.ts";

const keyringOf = (fill: number) => ({
  derive: (purpose: string, id: string) => Buffer.alloc(32, fill + purpose.length + id.length),
});
const links = createLinks(keyringOf(1));
const claim: LinkClaim = {
  grant: "gr_7kq2m9x4tbzc",
  round: 0,
  person: "pe_0123456789ab",
  expiresAtMs: 2_000_000_000_000,
};
const NOW = 1_900_000_000_000;

test("a token gives back the claim that it was made for, and shows nothing of itself where it is printed", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 24 - 1 }),
      fc.integer({ min: 1, max: 2 ** 48 - 1 }),
      (round, expiresAtMs) => {
        const whole = { ...claim, round, expiresAtMs };
        const token = links.make(whole);
        expect(links.read(token.reveal(), expiresAtMs - 1)).toEqual(whole);
        expect(links.read(token.reveal(), expiresAtMs)).toBeUndefined();
        expect(`${token} ${JSON.stringify(token)}`).toBe('[secret] "[secret]"');
      },
    ),
  );
  expect(links.make(claim).reveal()).toMatch(/^[A-Za-z0-9_-]{88}$/);
});

test("a token that is forged, changed in any character, cut, longer, or of another installation is not read", () => {
  const token = links.make(claim).reveal();
  expect(links.read(token, NOW)).toEqual(claim);
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  for (let place = 0; place < token.length; place += 1) {
    const other = alphabet[(alphabet.indexOf(token[place] ?? "") + 1) % 64] ?? "";
    expect(
      links.read(token.slice(0, place) + other + token.slice(place + 1), NOW),
      `character ${place}`,
    ).toBeUndefined();
    expect(links.read(token.slice(0, place), NOW)).toBeUndefined();
  }
  for (const wrong of [
    `${token}A`,
    `${token}=`,
    ` ${token}`,
    `${token}\n`,
    token.toUpperCase(),
    "",
    "A".repeat(88),
    "💣".repeat(44),
  ]) {
    expect(links.read(wrong, NOW)).toBeUndefined();
  }
  expect(createLinks(keyringOf(2)).read(token, NOW)).toBeUndefined();
});

test("tokens of one grant do not pass for another grant, round or person by moving their parts about", () => {
  const mine = Buffer.from(links.make(claim).reveal(), "base64url");
  const other = Buffer.from(
    links.make({ ...claim, grant: "gr_zzzzzzzzzzzz", person: "pe_zzzzzzzzzzzz", round: 3 }).reveal(),
    "base64url",
  );
  for (const [from, to] of [
    [0, 1],
    [1, 4],
    [4, 10],
    [10, 22],
    [22, 34],
    [0, 34],
    [34, 66],
  ] as const) {
    const mixed = Buffer.concat([mine.subarray(0, from), other.subarray(from, to), mine.subarray(to)]);
    const read = links.read(mixed.toString("base64url"), NOW);
    expect(read, `bytes ${from} to ${to}`).toEqual(mixed.equals(mine) ? claim : undefined);
  }
});

test("a claim that is not whole makes no token", () => {
  for (const wrong of [
    { grant: "gr_../../../etc" },
    { person: "bob" },
    { round: -1 },
    { round: 2 ** 24 },
    { expiresAtMs: Number.POSITIVE_INFINITY },
    { expiresAtMs: 0 },
    { expiresAtMs: Number.NaN },
  ]) {
    expect(() => links.make({ ...claim, ...wrong })).toThrow(/a link needs/);
  }
});
