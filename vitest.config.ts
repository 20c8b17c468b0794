import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["{contract,verify,server,cli,tools,bench,fuzz}/**/*.test.ts"],
    globalSetup: ["server/testing/global.ts"],
    pool: "forks",
    testTimeout: 60_000,
    hookTimeout: 120_000,
    maxWorkers: 3,
  },
});
