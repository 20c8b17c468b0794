import { testConformance } from "../conformance.ts";
import { startHarness } from "./fixtures/harness.ts";

for (const admin of ["superuser", "createrole"] as const) {
  testConformance(`PostgreSQL 18, administrator with ${admin}`, () => startHarness({ version: 18, admin }));
}
