import { describe } from "vitest";
import { testConformance } from "../conformance.ts";
import { startHarness } from "./fixtures/harness.ts";
import { missingHost } from "./fixtures/host.ts";

describe.skipIf(missingHost() !== undefined)("a host of its own", () => {
  // The way to the script is another than in conformance.test.ts; the driver, and what is lost on the way, are the same.
  testConformance("SSH, a host set up by the text of glass target setup", () => startHarness("setup"), {
    atEachStep: false,
  });
});
