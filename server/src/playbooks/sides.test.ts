import fc from "fast-check";
import { expect, test } from "vitest";
import type { Person } from "./policy.ts";
import { approversOf, crowdOf, sidesMet } from "./sides.ts";

/** The most sides that different people can speak for, by trying everything. */
function most(sidesOf: readonly (readonly number[])[], taken: ReadonlySet<number> = new Set()): number {
  const [first, ...rest] = sidesOf;
  if (first === undefined) return taken.size;
  const ways = first.filter((side) => !taken.has(side)).map((side) => most(rest, new Set([...taken, side])));
  return Math.max(most(rest, taken), ...ways);
}

const sidesOfPeople = fc.array(fc.uniqueArray(fc.nat(3), { maxLength: 4 }), { maxLength: 6 });

test("the matching is as large as any, and speaks only for sides that somebody may speak for", () => {
  fc.assert(
    fc.property(sidesOfPeople, (sidesOf) => {
      const met = sidesMet(sidesOf);
      expect(met).toHaveLength(most(sidesOf));
      expect(new Set(met).size).toBe(met.length);
      for (const side of met) expect(sidesOf.some((sides) => sides.includes(side))).toBe(true);
    }),
    { numRuns: 500 },
  );
});

test("one person speaks for one side, and gives way to whom only that side has", () => {
  expect(sidesMet([[0, 1]])).toEqual([0]);
  expect(sidesMet([[0, 1], [0]])).toEqual([0, 1]);
  expect(sidesMet([[0, 1], [0], [0]])).toEqual([0, 1]);
  expect(sidesMet([[0, 1], [1, 2], [0]])).toEqual([0, 1, 2]);
  expect(sidesMet([])).toEqual([]);
});

test("what could be reached without the requester is found among thousands as among few", () => {
  const groups = ["a", "b", "c"];
  fc.assert(
    fc.property(fc.array(fc.subarray(groups), { minLength: 1, maxLength: 9 }), fc.nat(8), (memberships, who) => {
      const people = memberships.map((member, i): Person => ({
        ...{ name: `p${i}`, enabled: true, roles: ["approver"], groups: member, aliases: [], notify: [] },
      }));
      const crowd = crowdOf(people, () => undefined);
      const approvers = approversOf(
        groups.map((name) => [{ by: "group", name }]),
        crowd,
      );
      const requester = people[who % people.length];
      if (requester === undefined) throw new Error("there is always one");
      const others = people.filter((person) => person !== requester);
      const reach = most(others.map((person) => person.groups.map((group) => groups.indexOf(group))));
      expect(approvers.reach(requester)).toBe(reach);
      expect(approvers.people).toEqual(people.filter((person) => person.groups.length > 0));
    }),
    { numRuns: 300 },
  );
});
