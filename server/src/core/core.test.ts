import { X509Certificate } from "node:crypto";
import { expect, test } from "vitest";
import { createAuthority, issueServerCertificate } from "./certificates.ts";
import { formatDuration, parseDuration } from "./duration.ts";
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
