import { existsSync } from "node:fs";
import { glob, readFile } from "node:fs/promises";
import { dirname, join, posix } from "node:path";
import { describe, expect, test } from "vitest";
import { ERRORS } from "../contract/src/errors.ts";
import { anchors, localLinks, markdownFiles, quotedScripts, quotedTests } from "./markdown.ts";

const root = dirname(import.meta.dirname);
const documents = await markdownFiles(root);

describe("the documents", () => {
  test("are found", () => {
    expect([...documents.keys()]).toEqual(expect.arrayContaining(["CONTRIBUTING.md", "docs/errors.md"]));
  });

  test("link only to files and headings that exist", () => {
    const broken: string[] = [];
    for (const [path, text] of documents) {
      for (const link of localLinks(text)) {
        const [file = "", anchor] = link.split("#");
        const target =
          file === "" ? path : posix.normalize(posix.join(file.startsWith("/") ? "" : dirname(path), file));
        const headings = anchor === undefined ? undefined : documents.get(target);
        const ok = existsSync(join(root, target)) && (headings === undefined || anchors(headings).has(anchor ?? ""));
        if (!ok) broken.push(`${path}: ${link}`);
      }
    }
    expect(broken).toEqual([]);
  });

  test("name only tests that exist", async () => {
    let tests = "";
    for await (const path of glob("{contract,verify,witness,server,cli,tools,bench,fuzz,soak}/**/*.ts", {
      cwd: root,
      exclude: (name) => name === "node_modules",
    })) {
      if (/\.test\.ts$|conformance/.test(path)) tests += await readFile(join(root, path), "utf8");
    }
    const missing: string[] = [];
    for (const [path, text] of documents) {
      for (const name of quotedTests(text)) {
        const written = [`"${name}"`, `'${name}'`, `\`${name}\``, JSON.stringify(name)];
        if (!written.some((literal) => tests.includes(literal))) missing.push(`${path}: ${name}`);
      }
    }
    expect(missing).toEqual([]);
  });

  test("tell the reader to run only npm scripts that exist", async () => {
    const { scripts } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as { scripts: object };
    const missing = [...documents].flatMap(([path, text]) =>
      quotedScripts(text)
        .filter((script) => !Object.hasOwn(scripts, script))
        .map((script) => `${path}: npm run ${script}`),
    );
    expect(missing).toEqual([]);
  });
});

test("docs/errors.md lists every error code with its status, exit code and meaning, and no other", () => {
  const rows = [
    ...(documents.get("docs/errors.md") ?? "").matchAll(/^\| `(\w+)`\s+\| (\d+)\s+\| (\d)\s+\| (.+?)\s+\|/gm),
  ];
  const listed = rows.map(([, code, status, exit, means]) => [code, Number(status), Number(exit), means]);
  expect(listed).toEqual(Object.entries(ERRORS).map(([code, { status, exit, means }]) => [code, status, exit, means]));
});

describe("the reader of documents", () => {
  test("finds links in prose and references, not in code or to other places", () => {
    const text =
      "[a](x.md#h) `[b](no.md)` [c](https://example.org)\n```\n[d](no.md)\n```\n[e]: ../y.md\n[f](<z%20z.md>)";
    expect(localLinks(text)).toEqual(["x.md#h", "z z.md", "../y.md"]);
  });

  test("makes anchors as GitHub does", () => {
    expect([...anchors("# One `two`, three!\n## A\n## A\n```\n# no\n```")]).toEqual(["one-two-three", "a", "a-1"]);
  });

  test("finds quoted tests and scripts", () => {
    expect(quotedTests('shown by test: "a thing holds"; and so on')).toEqual(["a thing holds"]);
    expect(quotedScripts("`npm test`, `npm run demo -- --once`, `npm run --silent bench`")).toEqual([
      "test",
      "demo",
      "bench",
    ]);
  });
});
