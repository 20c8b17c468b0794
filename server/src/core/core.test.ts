import { execFile } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { createAuthority, issueServerCertificate } from "./certificates.ts";
import { within } from "./clock.ts";
import { formatDuration, parseDuration } from "./duration.ts";
import { describe } from "./errors.ts";
import { isId, newId } from "./ids.ts";
import { Secret } from "./secret.ts";

test("durations are strict, and round-trip", () => {
  expect(parseDuration("1h30m")).toBe(5_400_000);
  expect(formatDuration(5_400_000)).toBe("1h30m");
  for (const bad of ["", "30", "30 m", "1.5h", "30m1h", "-5m", "0m", "400d", "30M", "٣m"]) {
    expect(() => parseDuration(bad), bad).toThrow(/is not a duration/);
  }
});

test("ids say what they name and are not taken for another kind", () => {
  const id = newId("grant");
  expect(isId("grant", id)).toBe(true);
  expect(isId("lease", id)).toBe(false);
  expect(isId("grant", `${id}'`)).toBe(false);
});

test("an error that a stranger wrote is one line of plain text: it moves no cursor, hides nothing and begins no line", () => {
  const hostile = new Error("gone\u001B[2J\u001B]0;title\u0007\r\n2026-11-20 ALARM over\u202E\u2028\u009B1m\uD800");
  expect(describe(hostile)).toBe("gone [2J ]0;title 2026-11-20 ALARM over 1m\uFFFD");
  expect(describe(new AggregateError([hostile, new Error("b")], ""))).not.toMatch(/[\p{Cc}\p{Cf}]/u);
});

test("a secret does not show itself", () => {
  const secret = new Secret("hunter2");
  expect(`${secret} ${JSON.stringify({ secret })}`).not.toContain("hunter2");
  expect(secret.reveal()).toBe("hunter2");
});

test("an issued certificate verifies against its authority, for its hosts only", async () => {
  const authority = await createAuthority("test CA", 1);
  const server = new X509Certificate((await issueServerCertificate(authority, ["localhost", "127.0.0.1"], 1)).cert);
  expect(server.verify(new X509Certificate(authority.cert).publicKey)).toBe(true);
  expect(server.checkHost("localhost")).toBe("localhost");
  expect(server.checkIP("127.0.0.1")).toBe("127.0.0.1");
  expect(server.checkHost("example.com")).toBeUndefined();
});

test("what waits for something with a limit gives what came first, and keeps no process from ending", async () => {
  expect(await within(60_000, Promise.resolve("done"), () => "late")).toBe("done");
  expect(await within(1, new Promise(() => {}), () => "late")).toBe("late");
  await expect(within(60_000, Promise.reject(new Error("broken")), () => "late")).rejects.toThrow("broken");
  const clock = JSON.stringify(join(import.meta.dirname, "clock.ts"));
  const script = `const { within } = await import(${clock}); await within(3_600_000, Promise.resolve(), () => {});`;
  await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script], { timeout: 60_000 });
});
