import type { Reporter, TestModule } from "vitest/node";

/** Ends a test run with one line for machines: `N passed, N failed`. A file that does not load counts as one failure. */
export default function createReporter(): Reporter {
  return {
    onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[]) {
      const tests = modules.flatMap((module) => [...module.children.allTests()]);
      const count = (state: "passed" | "failed" | "skipped"): number =>
        tests.filter((test) => test.result().state === state).length;
      const broken = modules.filter((module) => module.errors().length > 0).length;
      const skipped = count("skipped");
      const line = `${count("passed")} passed, ${count("failed") + broken + unhandledErrors.length} failed`;
      process.stdout.write(`${line}${skipped > 0 ? `, ${skipped} skipped` : ""}\n`);
    },
  };
}
