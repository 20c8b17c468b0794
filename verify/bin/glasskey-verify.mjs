#!/usr/bin/env node
// Plain JavaScript, so that an old Node says what it lacks instead of failing on the first type.
const [major, minor] = process.versions.node.split(".").map(Number);
if (major > 22 || (major === 22 && minor >= 18)) {
  const { runCli } = await import("../src/cli.ts");
  process.exitCode = await runCli(
    process.argv.slice(2),
    (text) => process.stdout.write(text),
    (text) => process.stderr.write(text),
  );
} else {
  process.stderr.write(
    `glasskey-verify needs Node 22.18 or later; this is ${process.versions.node}.\n` +
      "In a clone of Glasskey npm ci brings one: put node_modules/.bin first in your PATH.\n",
  );
  process.exitCode = 2;
}
