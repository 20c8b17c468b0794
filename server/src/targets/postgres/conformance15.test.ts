import { describe } from "vitest";
import { testConformance } from "../conformance.ts";
import { missing, startHarness } from "./fixtures/harness.ts";

describe.runIf(missing({ version: 15, admin: "superuser" }) === undefined)("where PostgreSQL 15 is installed", () => {
  for (const admin of ["superuser", "createrole"] as const) {
    testConformance(`PostgreSQL 15, administrator with ${admin}`, () => startHarness({ version: 15, admin }));
  }
});
