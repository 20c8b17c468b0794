import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkBoundaries, partOf, violations } from "./boundaries.ts";
import { importsOf } from "./imports.ts";

const root = join(import.meta.dirname, "..");
const check = (path: string, text: string): readonly string[] => violations(new Map([[path, text]]));

describe("the import table", () => {
  test("holds for the code as it is", async () => {
    const { files, problems } = await checkBoundaries(root);
    expect(problems).toEqual([]);
    expect(files).toBeGreaterThan(20);
  });

  test("is violated by a folder where no files are found", async () => {
    const { problems } = await checkBoundaries(join(root, "docs"));
    expect(problems).toContain("no files found in core: the check has lost sight of the code");
  });

  test.each([
    ["server/src/core/x.ts", 'import { a } from "../store/a.ts";', "core may not import store"],
    ["server/src/core/x.ts", 'import type { A } from "../store/a.ts";', "core may not import store"],
    ["server/src/core/x.ts", 'export { a } from "../store/a.ts";', "core may not import store"],
    ["server/src/core/x.ts", 'export * from "../store/a.ts";', "core may not import store"],
    ["server/src/core/x.ts", 'const a = await import("../store/a.ts");', "core may not import store"],
    ["server/src/core/x.ts", 'type A = import("../store/a.ts").A;', "core may not import store"],
    ["server/src/core/x.ts", "const a = await import(name);", "computed at run time"],
    ["server/src/core/x.ts", 'import { readFile } from "node:fs/promises";', "core does no I/O"],
    [
      "server/src/access/x.ts",
      'new Worker(new URL("../gateway/a.ts", import.meta.url));',
      "access may not import gateway",
    ],
    ["server/src/targets/ssh/x.ts", 'import { a } from "../postgres/config.ts";', "may not import targets/postgres"],
    ["server/src/targets/ssh/x.ts", 'import { a } from "../../access/open.ts";', "may not import access"],
    ["server/src/targets/ssh/wire.ts", 'import { a } from "node:net";', "wire code does no I/O"],
    ["server/src/access/x.ts", 'import { a } from "../targets/postgres/index.ts";', "may not import targets/postgres"],
    ["server/src/access/x.ts", 'import { a } from "../targets/registry.ts";', "registry.ts is only for"],
    ["server/src/access/x.ts", 'import { a } from "../main.ts";', "main.ts is only for"],
    ["server/src/access/x.ts", 'import { a } from "../../testing/target.ts";', "testing is only for"],
    ["server/src/access/x.ts", 'import { a } from "../targets/conformance.ts";', "testing is only for"],
    ["server/src/access/x.ts", 'import { a } from "./open.test.ts";', "nothing imports a test"],
    ["server/src/access/x.ts", 'import { a } from "@glasskey/contract";', "access may not import contract"],
    ["server/src/access/x.ts", 'import { a } from "../nowhere/a.ts";', "in no part of the import table"],
    ["cli/src/x.ts", 'import { a } from "../../server/src/core/a.ts";', "cli may not import core"],
    ["contract/src/x.ts", 'import { randomBytes } from "node:crypto";', "contract is browser-safe"],
    ["verify/src/x.ts", 'import pg from "pg";', "verify has no dependencies"],
    ["verify/src/x.ts", 'import { a } from "../../../elsewhere/a.ts";', "outside the project"],
    ["server/src/misc/x.ts", "", "not in the import table"],
    ["server/src/stray.ts", "", "not in the import table"],
    ["server/src/targets/stray.ts", "", "not in the import table"],
  ])("finds the violation in %s: %s", (path, text, expected) => {
    expect(check(path, text)).toEqual([expect.stringContaining(expected)]);
  });

  test.each([
    [
      "server/src/core/x.ts",
      'import { ERRORS } from "@glasskey/contract/errors"; import { createHash } from "node:crypto";',
    ],
    ["server/src/core/x.ts", 'import { isIP } from "node:net";'],
    ["server/src/gateway/x.ts", 'import type { ErrorCode } from "@glasskey/contract/errors";'],
    ["server/src/gateway/x.ts", 'import { a } from "../access/a.ts"; import type { B } from "../targets/target.ts";'],
    ["server/src/main.ts", 'import { a } from "./targets/registry.ts"; import { b } from "./api/b.ts";'],
    ["server/src/data-plane.ts", 'import { a } from "./targets/registry.ts"; import { b } from "./gateway/b.ts";'],
    [
      "server/src/targets/ssh/x.test.ts",
      'import { a } from "../../../testing/target.ts"; import { b } from "../conformance.ts";',
    ],
    ["cli/src/x.ts", 'import { a } from "@glasskey/verify"; import { spawn } from "node:child_process";'],
    ["verify/src/x.ts", 'import { readFile } from "node:fs/promises"; import { a } from "./note.ts";'],
  ])("allows what %s imports: %s", (path, text) => {
    expect(check(path, text)).toEqual([]);
  });

  test("keeps the store out of the data plane through any number of files", () => {
    const sources = (clause: string): Map<string, string> =>
      new Map([
        ["server/src/data-plane.ts", 'import { a } from "./gateway/a.ts";'],
        ["server/src/gateway/a.ts", 'import { b } from "../audit/b.ts";'],
        ["server/src/audit/b.ts", `${clause} { c } from "../store/c.ts";`],
      ]);
    expect(violations(sources("import"))).toEqual([
      expect.stringContaining("server/src/gateway/a.ts → server/src/audit/b.ts → server/src/store/c.ts"),
    ]);
    expect(violations(sources("import type"))).toEqual([]);
  });

  test("gives every file its part", () => {
    expect(partOf("server/src/targets/postgres/wire.ts")).toBe("targets/postgres");
    expect(partOf("server/src/targets/postgres/fixtures/a.ts")).toBe("testing");
    expect(partOf("server/src/targets/target.ts")).toBe("target.ts");
    expect(partOf("server/testing/a.ts")).toBe("testing");
    expect(partOf("server/src/config.test.ts")).toBe("config.ts");
    expect(partOf("server/src/init.test.ts")).toBe("main.ts");
    expect(partOf("server/src/another.test.ts")).toBeUndefined();
    expect(partOf("elsewhere/a.ts")).toBeUndefined();
  });
});

describe("the import scanner", () => {
  const specifiers = (source: string): readonly (string | undefined)[] => importsOf(source).map((i) => i.specifier);

  test("is not misled by comments, strings, templates and regular expressions", () => {
    const source = [
      '// import { a } from "comment-1";',
      '/* import { a } from "comment-2"; */',
      "const s = 'import x from \"string\"';",
      'const t = `import { a } from "template" ${f({ a: `${1}` })} import("x")`;',
      'const r = /["\'`/*]/.test(s) ? 4 / 2 / 1 : /[/"]/;',
      'import { real } from "found";',
    ];
    expect(specifiers(source.join("\n"))).toEqual(["found"]);
    expect(importsOf(source.join("\n"))[0]?.line).toBe(6);
  });

  test("finds imports inside a template's expression and across lines", () => {
    expect(specifiers('`${await import("inner")}`')).toEqual(["inner"]);
    expect(specifiers('import a, {\n  type B,\n  from as c,\n} from\n  "far";')).toEqual(["far"]);
    expect(specifiers('import "effect"; import * as n from \'single\'; require("old");')).toEqual([
      "effect",
      "single",
      "old",
    ]);
    expect(specifiers('import.meta.resolve("asset"); import.meta.url; x.import("method");')).toEqual(["asset"]);
  });

  test("tells imports of types from imports that exist at run time", () => {
    const types = (source: string): readonly boolean[] => importsOf(source).map((i) => i.typeOnly);
    expect(types('import type { A } from "a"; export type { B } from "b"; type C = typeof import("c");')).toEqual([
      ...[true, true, true],
    ]);
    expect(types('import { type A, b } from "a"; import type from "b"; import("c");')).toEqual([false, false, false]);
  });
});
