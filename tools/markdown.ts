import { glob, readFile } from "node:fs/promises";
import { join } from "node:path";

/** Every Markdown file of the project, path → text. */
export async function markdownFiles(root: string): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  for await (const path of glob("**/*.md", {
    cwd: root,
    exclude: (name) => name === "node_modules" || name === ".git",
  })) {
    found.set(path.split("\\").join("/"), await readFile(join(root, path), "utf8"));
  }
  return found;
}

/** Targets of the links in a text that lead to files or headings of this project; code is left out. */
export function localLinks(markdown: string): readonly string[] {
  const prose = withoutCode(markdown);
  const inline = [...prose.matchAll(/\]\(\s*<?([^)\s>]+)>?[^)]*\)/g)].map((match) => match[1] ?? "");
  const references = [...prose.matchAll(/^\[[^\]]+\]:\s*(\S+)/gm)].map((match) => match[1] ?? "");
  return [...inline, ...references].filter((link) => !/^[a-z][a-z+.-]*:/i.test(link)).map(decodeURIComponent);
}

/** The anchors that a text's headings have on GitHub. */
export function anchors(markdown: string): ReadonlySet<string> {
  const seen = new Map<string, number>();
  const found = new Set<string>();
  for (const [, heading = ""] of markdown
    .replaceAll(/^(```|~~~)[\s\S]*?^\1/gm, "")
    .matchAll(/^#{1,6}\s+(.+?)\s*#*$/gm)) {
    const plain = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase();
    const slug = plain.replaceAll(/[^\p{L}\p{N}\s_-]/gu, "").replaceAll(" ", "-");
    const count = seen.get(slug) ?? 0;
    seen.set(slug, count + 1);
    found.add(count === 0 ? slug : `${slug}-${count}`);
  }
  return found;
}

/** Names that a document gives as proof, written `test: "name"`, in prose or in code. */
export function quotedTests(markdown: string): readonly string[] {
  return [...markdown.matchAll(/test: "([^"\n]+)"/g)].map((match) => match[1] ?? "");
}

/** npm scripts that a document tells its reader to run. */
export function quotedScripts(markdown: string): readonly string[] {
  const runs = [...markdown.matchAll(/npm (?:run )(?:--silent )?([a-z][\w:-]*)/g)].map((match) => match[1] ?? "");
  return /npm test\b/.test(markdown) ? ["test", ...runs] : runs;
}

function withoutCode(markdown: string): string {
  return markdown.replaceAll(/^(```|~~~)[\s\S]*?^\1/gm, "").replaceAll(/`[^`\n]*`/g, "");
}
