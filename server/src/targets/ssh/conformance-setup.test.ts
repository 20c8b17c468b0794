import { describe } from "vitest";
import { testConformance } from "../conformance.ts";
import { startHarness } from "./fixtures/harness.ts";
import { missingHost } from "./fixtures/host.ts";

describe.skipIf(missingHost() !== undefined)("a host of its own", () => {
  testConformance("SSH, a host set up by the text of glass target setup", () => startHarness("setup"));
});
