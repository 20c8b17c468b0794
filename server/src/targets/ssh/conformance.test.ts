import { describe } from "vitest";
import { testConformance } from "../conformance.ts";
import { startHarness } from "./fixtures/harness.ts";
import { missingSshd } from "./fixtures/sshd.ts";

describe.skipIf(missingSshd() !== undefined)("OpenSSH as it is installed here", () => {
  testConformance("SSH, root as the control login", () => startHarness("root"));
});
