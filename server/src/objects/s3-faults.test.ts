import { expect, test } from "vitest";
import { Secret } from "../core/secret.ts";
import { createFaults } from "./s3-faults.ts";

test("keys that are read again at each attempt, as long as a bucket refuses them, are kept once, and still hidden", () => {
  const faults = createFaults("s3://bucket");
  let looked = 0;
  class Counted extends Secret {
    override reveal(): string {
      looked += 1;
      return super.reveal();
    }
  }
  for (let attempt = 0; attempt < 200; attempt += 1) {
    faults.hide(new Counted("the-access-key"));
    faults.hide(new Counted("the-secret-key"));
  }
  faults.hide(new Counted("a-new-secret-key"));
  looked = 0;
  const { message } = faults.of("writing x", new Error("the-access-key the-secret-key a-new-secret-key"));
  expect(message).toContain("no answer ([secret] [secret] [secret])");
  expect(looked).toBe(3);
});
