import { join } from "node:path";
import { expect, test } from "vitest";
import { watchRoom, type RoomWatch } from "./room.ts";
import { testFolder } from "./testing/journal.ts";

const MIB = 1 << 20;

function watched(): {
  room: RoomWatch;
  free: Map<string, number | Error>;
  open: Map<string, string>;
  store: { away: boolean };
} {
  const free = new Map<string, number | Error>([
    ["/chunks", 1_000 * MIB],
    ["/log", 1_000 * MIB],
  ]);
  const open = new Map<string, string>();
  const store = { away: false };
  const change = async (act: () => void): Promise<void> => {
    if (store.away) throw new Error("the store is away");
    act();
  };
  const room = watchRoom({
    node: "nd_1",
    folders: [...free.keys()],
    alarms: { raise: (key, text) => change(() => open.set(key, text)), clear: (key) => change(() => open.delete(key)) },
    freeBytes: async (folder) => {
      const bytes = free.get(folder);
      if (typeof bytes !== "number") throw bytes ?? new Error("no such folder");
      return bytes;
    },
  });
  return { room, free, open, store };
}

test("a disk with little room refuses what is new, with an alarm, until there is clearly enough again", async () => {
  const { room, free, open } = watched();
  await room.look();
  expect(room.refusal()).toBeUndefined();
  free.set("/log", 255 * MIB);
  await room.look();
  expect(room.refusal()).toMatchObject({
    code: "recording_unavailable",
    message: "the disk of /log has 255 MiB left, and 256 is the least",
    next: expect.stringContaining("Make room"),
  });
  expect([...open.keys()]).toEqual(["room nd_1"]);
  free.set("/log", 300 * MIB);
  await room.look();
  expect(room.refusal()).toBeDefined(); // not back and forth
  free.set("/log", 320 * MIB);
  await room.look();
  expect(room.refusal()).toBeUndefined();
  expect(open.size).toBe(0);
});

test("a disk whose room is not known is not taken for one that has some", async () => {
  const { room, free } = watched();
  free.set("/chunks", new Error("EIO"));
  await room.look();
  expect(room.refusal()?.message).toBe("how much room there is in /chunks is not known: EIO");
});

test("what the journal says refuses at once, and its alarm is stored when the store can take it", async () => {
  const { room, open, store } = watched();
  await room.look();
  store.away = true;
  room.journal({ unavailable: { text: "there is no room in /journal", next: "Make room." }, degraded: "without /two" });
  expect(room.refusal()).toMatchObject({
    code: "recording_unavailable",
    message: "there is no room in /journal",
    next: "Make room.",
  });
  await expect(room.look()).rejects.toThrow("away");
  store.away = false;
  await room.look();
  expect([...open.values()].map((text) => text.slice(0, 22))).toEqual(["nothing new is opened:", "without /two"]);
  room.stopped("the disk is full");
  await room.look();
  expect(open.get("recording nd_1")).toBe("nothing can be recorded, so nothing is opened: the disk is full");
  room.journal({ unavailable: null, degraded: null });
  expect(room.refusal()).toBeUndefined();
  await room.look();
  expect(open.size).toBe(0);
});

test("the room of a folder that is not made yet is that of the one above", async () => {
  await using folder = await testFolder();
  const seen: string[] = [];
  const room = watchRoom({
    node: "nd_1",
    folders: [join(folder.path, "not", "there", "yet")],
    alarms: { raise: async (_, text) => seen.push(text), clear: async () => {} },
  });
  await room.look();
  expect(seen.filter((text) => text.includes("not known"))).toEqual([]);
});

test("an alarm says why nothing is opened now, also where that has changed since, and is not written again for each byte", async () => {
  const { room, free, open } = watched();
  await room.look();
  free.set("/log", 255 * MIB);
  await room.look();
  const first = open.get("room nd_1");
  free.set("/log", 254 * MIB);
  await room.look();
  expect(open.get("room nd_1")).toBe(first);
  room.journal({ unavailable: { text: "the recording could not be written" }, degraded: null });
  room.stopped("the disk is full");
  await room.look();
  expect(open.get("room nd_1")).toBe("nothing new is opened: the recording could not be written");
  room.stopped("the disk is broken");
  await room.look();
  expect(open.get("recording nd_1")).toContain("the disk is broken");
  room.journal({ unavailable: null, degraded: null });
  await room.look();
  expect([...open.values()]).toEqual([expect.stringContaining("the disk of /log")]);
});
