import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["{contract,verify,witness,server,cli,tools,bench,fuzz,soak}/**/*.test.ts"],
    globalSetup: ["server/testing/global.ts"],
    pool: "forks",
    testTimeout: 60_000,
    hookTimeout: 120_000,
    maxWorkers: 3,
  },
});
