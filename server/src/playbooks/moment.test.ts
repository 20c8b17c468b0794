import { expect, test } from "vitest";
import { isMoment, localMoment } from "./moment.ts";

const at = (zone: string, text: string): string => {
  const { day, minute } = localMoment(zone, Date.parse(text));
  return `${day} ${Math.floor(minute / 60)}:${minute % 60}`;
};

test("a moment is told in its zone, in summer as in winter, to the minute", () => {
  expect(at("UTC", "2026-11-20T12:34:56Z")).toBe("5 12:34");
  expect(at("Europe/Berlin", "2026-11-20T23:30:00Z")).toBe("6 0:30");
  expect(at("Europe/Berlin", "2026-07-20T22:30:00Z")).toBe("2 0:30");
  expect(at("America/St_Johns", "2026-01-05T03:15:00Z")).toBe("7 23:45");
  expect(at("Asia/Kathmandu", "2026-01-04T18:15:00Z")).toBe("1 0:0");
});

test("the hour that summer time leaves out does not come, and the one in autumn comes twice", () => {
  expect(at("Europe/Berlin", "2026-03-29T00:59:00Z")).toBe("7 1:59");
  expect(at("Europe/Berlin", "2026-03-29T01:00:00Z")).toBe("7 3:0");
  expect(at("Europe/Berlin", "2026-10-25T00:30:00Z")).toBe("7 2:30");
  expect(at("Europe/Berlin", "2026-10-25T01:30:00Z")).toBe("7 2:30");
});

test("what was told for one minute or zone is not told for another", () => {
  for (let minute = 0; minute < 120; minute += 1) {
    const atMs = Date.UTC(2026, 10, 20, 12, 0, 59) + minute * 60_000;
    expect(localMoment("UTC", atMs).minute).toBe(720 + minute);
    expect(localMoment("Asia/Tokyo", atMs).minute).toBe((720 + 540 + minute) % 1_440);
  }
});

test("what is no moment is known as none, and a zone that is none is refused", () => {
  expect([0, -1, Date.UTC(2026, 0, 1), 8.64e15].every(isMoment)).toBe(true);
  expect([Number.NaN, Number.POSITIVE_INFINITY, 0.5, 8.64e15 + 1].some(isMoment)).toBe(false);
  expect(() => localMoment("Mars/Olympus", 0)).toThrow(RangeError);
});
