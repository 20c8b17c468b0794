import { expect, test } from "vitest";
import { complaint, policyOf, SMALL } from "./fixtures/folder.ts";
import type { Hours } from "./policy.ts";

const READ = String(SMALL["playbooks/read.yaml"]);
const withHours = (hours: string): Record<string, string> => ({
  "playbooks/read.yaml": READ.replace("reason: [outage]", `reason: [outage], hours: ${hours}`),
});

async function read(hours: string): Promise<readonly Hours[] | undefined> {
  return (await policyOf(withHours(hours))).playbook("read")?.when.hours;
}

test("hours are days and times of day, with ranges of days, and all of what is left out", async () => {
  expect(await read('{ days: [mon, wed-fri], from: "08:00", to: "18:30" }')).toEqual([
    { days: [1, 3, 4, 5], fromMinute: 480, toMinute: 1_110 },
  ]);
  expect(await read("{ days: sun }")).toEqual([{ days: [7], fromMinute: 0, toMinute: 1_440 }]);
  expect(await read("{ from: 18:00 }")).toEqual([{ days: [1, 2, 3, 4, 5, 6, 7], fromMinute: 1_080, toMinute: 1_440 }]);
  expect(await read("{ to: 24:00 }")).toEqual([{ days: [1, 2, 3, 4, 5, 6, 7], fromMinute: 0, toMinute: 1_440 }]);
});

test("a night passes midnight, a range of days passes the end of the week, and a list means any of them", async () => {
  expect(await read("[{ days: fri-mon, from: 22:00, to: 06:00 }, { days: [tue], to: 00:00, from: 12:00 }]")).toEqual([
    { days: [1, 5, 6, 7], fromMinute: 1_320, toMinute: 360 },
    { days: [2], fromMinute: 720, toMinute: 1_440 },
  ]);
});

test("hours that are none, or that say nothing, are refused: empty never means always", async () => {
  for (const wrong of [
    ...["{}", "[]", "~", "[{}]", "always", "{ days: [] }", "{ days: mon-tue-wed }", "{ days: Monday }", "{ days: 1 }"],
    ...["{ from: 8:00 }", "{ from: 08:60 }", "{ from: 25:00 }", "{ to: 24:01 }", "{ from: 8 }", "{ from: '08:00 ' }"],
    ...["{ from: 09:00, to: 09:00 }", "{ from: 24:00 }", "{ from: 00:00, to: 24:00, zone: UTC }"],
    `[${"{ days: mon }, ".repeat(17)}]`,
  ]) {
    expect(await complaint(withHours(wrong)), wrong).toMatch(/read\.yaml:6:\d+: .*(?:hours|item)/);
  }
});

test("a zone is an IANA name, of the playbook, or else of policy.yaml, or else UTC; an offset is none", async () => {
  const zone = async (files: Record<string, string>): Promise<string | undefined> =>
    (await policyOf(files)).playbook("read")?.when.zone;
  const policy = `${String(SMALL["policy.yaml"])}zone: Europe/Berlin\n`;
  const own = READ.replace("reason: [outage]", "reason: [outage], zone: America/New_York");
  expect(await zone({})).toBe("UTC");
  expect(await zone({ "policy.yaml": policy })).toBe("Europe/Berlin");
  expect(await zone({ "policy.yaml": policy, "playbooks/read.yaml": own })).toBe("America/New_York");
  for (const wrong of ["+01:00", "UTC+1", "europe/berlin", "Europe/Berln", "CET; drop", "''", "1", "Etc/"]) {
    const text = await complaint({ "policy.yaml": policy.replace("Europe/Berlin", wrong) });
    expect(text, wrong).toMatch(/policy\.yaml:2:\d+: zone (?:is not a time zone|must be text)/);
  }
});
