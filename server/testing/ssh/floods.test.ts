import type { KillAnswer } from "@glasskey/contract";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { missingSshd } from "../../src/targets/ssh/fixtures/sshd.ts";
import { eventually, openEstate, type Estate } from "./estate.ts";

const why = missingSshd();

describe.skipIf(why !== undefined)(
  `somebody who asks for far too much${why === undefined ? "" : `, skipped: ${why}`}`,
  () => {
    let estate: Estate;
    beforeAll(async () => {
      estate = await openEstate(inject("pg18"));
    });
    afterAll(() => estate?.[Symbol.asyncDispose]());

    test("types without end into a terminal: others work on meanwhile, and a kill ends it at once", async () => {
      const { grant, config, sessions, end } = await estate.open("shell");
      const typist = estate.work.start("ssh", ["-F", config, "-tt", grant, "stty -echo; echo up; cat > /dev/null"]);
      await typist.until(/up/);
      const [{ id } = { id: "" }] = await sessions();
      const keys = Buffer.from("a\r".repeat(8_192));
      const type = setInterval(() => {
        if ((typist.child.stdin?.writableLength ?? 0) < keys.length) typist.child.stdin?.write(keys);
      }, 1);
      try {
        const other = estate.work.start("ssh", ["-F", config, grant, "echo ready; cat"]);
        await other.until(/ready/);
        for (let line = 0; line < 5; line++) {
          other.write(`line ${line}\n`);
          await other.until(new RegExp(`line ${line}\n`));
        }
        await estate.sam.call<KillAnswer>("POST", "/v1/kill", { id });
        await typist.done;
        other.write("still here\n");
        await other.until(/still here/);
        other.end();
        expect((await other.done).code).toBe(0);
      } finally {
        clearInterval(type);
      }
      await eventually(async () => (await sessions()).every(({ closed_at: at }) => at !== null));
      expect((await sessions()).map(({ cause }) => cause)).toEqual(["killed", "client"]);
      await end();
    });

    test("asks for the longest commands one after the other: the sessions of others live on", async () => {
      const [victim, { grant, config, end }] = [await estate.open("shell"), await estate.open("commands")];
      const other = estate.work.start("ssh", ["-F", victim.config, victim.grant, "echo ready; cat"]);
      await other.until(/ready/);
      const command = `${"a".repeat(65_000)}-${"=".repeat(65_000)}`;
      for (let time = 0; time < 6; time++) {
        const { code, stderr } = await estate.work.run("ssh", ["-F", config, grant, command]);
        expect([code, stderr]).toEqual([254, expect.stringContaining("is not one of this grant's")]);
      }
      other.write("still here\n");
      await other.until(/still here/);
      other.end();
      expect((await other.done).code).toBe(0);
      await victim.end();
      await end();
    });
  },
);
