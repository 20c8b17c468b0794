import { expect, test } from "vitest";
import { testSigner, testWitness } from "../testing/log.ts";
import { createCosigner, createSigner } from "./note.ts";
import { parseWitnessPolicy, witnessPolicy } from "./policy.ts";
import { FormatError } from "./errors.ts";
import { generateKeyPairSync } from "node:crypto";

const [x1, x2, x3, y1, y2] = ["x1", "x2", "x3", "y1", "y2"].map((seed) => testWitness(seed).vkey) as [
  string,
  string,
  string,
  string,
  string,
];
const names = `witness X1 ${x1} https://x1.test/\n\twitness\tX2  ${x2}\nwitness X3 ${x3}\n`;

test("a quorum is met by enough of its members, at every level, and by nothing else", () => {
  const policy = parseWitnessPolicy(
    `# two of X and any of Y\nlog ${testSigner("log").vkey}\n${names}witness Y1 ${y1}\nwitness Y2 ${y2}\n` +
      "group X 2 X1 X2 X3\ngroup Y any Y1 Y2\n\ngroup both all X Y\nquorum both",
  );
  expect(policy.keys).toHaveLength(5);
  expect(policy.logs).toEqual([testSigner("log").vkey]);
  const met = (...by: string[]): boolean => policy.isMetBy(by);
  expect([met(x1, x2, y1), met(x2, x3, y2), met(x1, x2, x3, y1, y2)]).toEqual([true, true, true]);
  expect([met(), met(x1, y1, y2), met(x1, x2, x3), met(x1, x1, y1), met(x1, "stranger", y1)]).toEqual(
    Array.from({ length: 5 }, () => false),
  );
  expect(parseWitnessPolicy(`${names}quorum X2\n`).isMetBy([x2])).toBe(true);
  expect(parseWitnessPolicy(`${names}quorum X2\n`).isMetBy([x1, x3])).toBe(false);
});

test("a policy that nobody needs to meet, or that nobody can meet, is refused", () => {
  for (const [text, why] of [
    ["", /no quorum/],
    [`${names}quorum none\n`, /asks for no witness/],
    [`${names}group G 0 X1 X2\nquorum G\n`, /needs 1 to 2/],
    [`${names}group G 3 X1 X2\nquorum G\n`, /needs 1 to 2/],
    [`${names}group G 1.5 X1 X2\nquorum G\n`, /needs 1 to 2/],
    [`${names}group G all\nquorum G\n`, /needs 1 to 0/],
    [`${names}group G any X1 X1\nquorum G\n`, /in a group already/],
    [`${names}group G any X1\ngroup H any X1 G\nquorum H\n`, /in a group already/],
    [`${names}group G any G\nquorum G\n`, /not defined above/],
    [`quorum X1\n${names}`, /line 1 .*not defined above/],
    [`${names}quorum X1\nquorum X2\n`, /a quorum already/],
    [`${names}witness X1 ${y1}\nquorum X1\n`, /there already/],
    [`${names}witness none ${y1}\nquorum X1\n`, /is no name/],
    [`${names}group G any none\nquorum G\n`, /not defined above/],
    [`${names}quorum X1 X2\n`, /is not: log VKEY/],
    [`${names}wittness X4 ${y1}\nquorum X1\n`, /line 4 .*is not: log VKEY/],
    [`witness L ${testSigner("log").vkey}\nquorum L\n`, /key of a log/],
    [`log ${x1}\n${names}quorum X1\n`, /not the key of a log/],
    [`${names}quorum X1\r\n`, /control character/],
    [`${names}witness X1b ${x1}\ngroup G all X1 X1b\nquorum G\n`, /in the witness policy twice/],
  ] as const) {
    expect(() => parseWitnessPolicy(text), text.slice(-60)).toThrow(why);
    expect(() => parseWitnessPolicy(text)).toThrow(FormatError);
  }
  for (const need of [0, 3, -1, 1.5, NaN])
    expect(() => witnessPolicy(need, [x1, x2]), String(need)).toThrow(FormatError);
  expect(() => witnessPolicy(1, [])).toThrow(FormatError);
  expect(() => witnessPolicy(1, [x1, x1])).toThrow(/twice/);
  let deep = `${names}group G0 any X1\n`;
  for (let i = 1; i <= 200; i += 1) deep += `group G${i} any G${i - 1}\n`;
  expect(() => parseWitnessPolicy(`${deep}quorum G200\n`)).toThrow(/too deep/);
});

test("two keys of one witness count once, and one public key under two names is refused", () => {
  const [old, next] = [
    testWitness("old", "ed25519", "w.test/a").vkey,
    testWitness("new", "ml-dsa-44", "w.test/a").vkey,
  ];
  const policy = witnessPolicy(2, [old, next, x1]);
  expect(policy.description).toBe("2 of 2 witnesses");
  expect([policy.isMetBy([old, next]), policy.isMetBy([old, x1]), policy.isMetBy([next, x1])]).toEqual([
    false,
    true,
    true,
  ]);
  expect(() => witnessPolicy(2, [old, next])).toThrow(/needs 1 to 1/);
  const file = (group: string): string => `${names}witness A ${old}\nwitness B ${next}\n${group}quorum Q\n`;
  expect(() => parseWitnessPolicy(file("group Q 2 A B X1\n"))).toThrow(/two keys of w\.test\/a are one witness/);
  expect(() => parseWitnessPolicy(file("group H any A X2\ngroup Q all H B\n"))).toThrow(/are one witness/);
  expect(parseWitnessPolicy(file("group W any A B\ngroup Q all W X1\n")).isMetBy([next, x1])).toBe(true);

  const { privateKey } = generateKeyPairSync("ed25519");
  const twice = ["one.test", "two.test"].map((name) => createCosigner(name, privateKey).vkey);
  expect(() => witnessPolicy(2, twice)).toThrow(/in the witness policy twice/);
  expect(() => witnessPolicy(1, [createSigner("l.test", privateKey).vkey])).toThrow(/key of a log/);
});
