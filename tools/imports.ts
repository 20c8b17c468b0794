/** One import in a source file. */
export interface Import {
  /** What is imported, as written; undefined where it is computed and so cannot be checked. */
  specifier: string | undefined;
  /** Whether only types are imported: such an import is gone at run time. */
  typeOnly: boolean;
  /** The names between braces; empty for every other form of import. */
  names: readonly string[];
  line: number;
}

type Token = { kind: "word" | "punct" | "string"; text: string; line: number };

/**
 * Every import of a TypeScript source: `import`, `import type`, `export … from`, `import()`, `import("x").Type`,
 * `require()`, `import.meta.resolve()` and `new URL("…", import.meta.url)`, through which a worker thread is started.
 */
export function importsOf(source: string): readonly Import[] {
  const tokens = tokenise(source);
  const found: Import[] = [];
  const at = (i: number): string => tokens[i]?.text ?? "";
  const add = (i: number, typeOnly: boolean, names: readonly string[] = []): void => {
    const token = tokens[i];
    found.push({
      specifier: token?.kind === "string" ? token.text : undefined,
      typeOnly,
      names,
      line: token?.line ?? tokens.at(-1)?.line ?? 1,
    });
  };
  for (let i = 0; i < tokens.length; i += 1) {
    const token = tokens[i];
    if (token?.kind !== "word") continue;
    const before = at(i - 1);
    if (before === "." || before === "?.") continue; // a property of that name
    if (token.text === "import") {
      if (at(i + 1) === "(") add(i + 2, ["typeof", ":", "<", "|", "&"].includes(before));
      else if (at(i + 1) === "." && at(i + 2) === "meta" && at(i + 4) === "resolve" && at(i + 5) === "(")
        add(i + 6, false);
      else if (tokens[i + 1]?.kind === "string") add(i + 1, false);
      else if (at(i + 1) !== "." && at(i + 1) !== ":") addFrom(i);
    } else if (token.text === "export" && ["{", "*", "type"].includes(at(i + 1))) {
      addFrom(i);
    } else if (token.text === "require" && at(i + 1) === "(") {
      add(i + 2, false);
    } else if (
      token.text === "URL" &&
      before === "new" &&
      at(i + 1) === "(" &&
      at(i + 3) === "," &&
      at(i + 4) === "import"
    ) {
      add(i + 2, false);
    }
  }
  return found;

  /** `import … from "x"` and `export … from "x"`: only names, commas, braces and stars stand before `from`. */
  function addFrom(start: number): void {
    const names: string[] = [];
    for (let i = start + 1; i < tokens.length; i += 1) {
      if (at(i) === "from" && tokens[i + 1]?.kind === "string" && at(i - 1) !== "{" && at(i - 1) !== ",") {
        return add(i + 1, at(start + 1) === "type" && at(start + 2) !== "from", names);
      }
      const token = tokens[i];
      if (token?.kind === "word" && ["{", ","].includes(at(i - 1))) names.push(token.text);
      const partOfNames = token?.kind === "word" || token?.kind === "string" || ["{", "}", ",", "*"].includes(at(i));
      if (!partOfNames) return;
    }
  }
}

const REGEX_MAY_FOLLOW = /^(?:return|typeof|case|in|of|void|delete|do|else|throw|new|await|yield)$/;

/** Words, strings and single punctuation marks; comments, templates' texts and regular expressions are left out. */
function tokenise(source: string): readonly Token[] {
  const tokens: Token[] = [];
  const templates: number[] = []; // depth of braces inside each open `${`
  let [i, line] = [0, 1];
  const push = (kind: Token["kind"], text: string): void => {
    tokens.push({ kind, text, line });
  };
  const skipTo = (end: number): void => {
    for (; i < end && i < source.length; i += 1) if (source[i] === "\n") line += 1;
  };
  const template = (): void => {
    while (i < source.length) {
      if (source[i] === "\\") skipTo(i + 2);
      else if (source[i] === "`") return skipTo(i + 1);
      else if (source[i] === "$" && source[i + 1] === "{") {
        templates.push(0);
        return skipTo(i + 2);
      } else skipTo(i + 1);
    }
  };
  while (i < source.length) {
    const char = source[i] ?? "";
    const next = source[i + 1] ?? "";
    if (char === "/" && next === "/") skipTo(endOf(source.indexOf("\n", i), source));
    else if (char === "/" && next === "*") skipTo(endOf(source.indexOf("*/", i + 2), source) + 2);
    else if (char === '"' || char === "'") {
      const match = /^(["'])((?:\\[\s\S]|(?!\1)[^\\\n])*)\1/.exec(source.slice(i, i + 2_000));
      push("string", match?.[2] ?? "");
      skipTo(i + (match?.[0].length ?? 1));
    } else if (char === "`") {
      push("punct", "`");
      skipTo(i + 1);
      template();
    } else if (char === "/" && regexMayStart(tokens.at(-1))) {
      const match = /^\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/[a-z]*/.exec(source.slice(i, i + 2_000));
      push("punct", "/");
      skipTo(i + (match?.[0].length ?? 1));
    } else if (/[\w$]/.test(char)) {
      const word = /^[\w$]+/.exec(source.slice(i, i + 300))?.[0] ?? char;
      push("word", word);
      skipTo(i + word.length);
    } else {
      const depth = templates.length - 1;
      if (char === "{" && depth >= 0) templates[depth] = (templates[depth] ?? 0) + 1;
      if (char === "}" && depth >= 0) {
        if (templates[depth] === 0) {
          templates.pop();
          skipTo(i + 1);
          template();
          push("punct", "`");
          continue;
        }
        templates[depth] = (templates[depth] ?? 1) - 1;
      }
      if (!/\s/.test(char)) push("punct", char);
      skipTo(i + 1);
    }
  }
  return tokens;
}

function endOf(index: number, source: string): number {
  return index < 0 ? source.length : index;
}

/** A slash after a value divides; anywhere else it begins a regular expression. */
function regexMayStart(before: Token | undefined): boolean {
  if (before === undefined) return true;
  if (before.kind === "string") return false;
  if (before.kind === "word") return REGEX_MAY_FOLLOW.test(before.text);
  return !["", ")", "]", "}", "`", "/"].includes(before.text);
}
