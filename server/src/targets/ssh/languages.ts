import type { CommandWord } from "./patterns.ts";

/**
 * What a glob or a word of a command pattern matches, as a finite automaton over characters (UTF-16 code units, as paths.ts
 * and patterns.ts count them). With it two scopes can be compared for all paths there are, and not only for some.
 */
export interface Language {
  readonly nodes: readonly Node[];
  /** Nodes at which a text may end. */
  readonly ends: ReadonlySet<number>;
  /** Characters that it tells from others of their class. */
  readonly letters: ReadonlySet<string>;
}
interface Node {
  readonly on: { readonly is: (c: string) => boolean; readonly to: number }[];
  /** Nodes that are reached by no character at all. */
  readonly free: number[];
}

/** Steps that a comparison may take in all; what is not decided by then counts as not known. */
export interface Budget {
  left: number;
}

const isName = (c: string): boolean => c !== "/";

function create(): { nodes: Node[]; letters: Set<string>; node: () => number; at: (i: number) => Node } {
  const nodes: Node[] = [];
  const at = (i: number): Node => {
    const found = nodes[i];
    if (found === undefined) throw new Error("no such node");
    return found;
  };
  return { nodes, letters: new Set(), node: () => nodes.push({ on: [], free: [] }) - 1, at };
}

/** Clean absolute paths that a glob of paths.ts matches. @param glob a good one by `globProblem`. */
export function languageOfGlob(glob: string): Language {
  const { nodes, letters, node, at } = create();
  let end = node();
  const text = (c: string): void => {
    letters.add(c);
    const to = node();
    at(end).on.push({ is: (other) => other === c, to });
    end = to;
  };
  if (glob === "/") {
    text("/");
    return { nodes, letters, ends: new Set([end]) };
  }
  const parts = glob.slice(1).split("/");
  for (const [i, part] of parts.entries()) {
    if (part === "**") {
      const [slash, name] = [node(), node()];
      at(end).on.push({ is: (c) => c === "/", to: slash });
      at(slash).on.push({ is: (c) => isName(c) && c !== ".", to: name });
      at(name).on.push({ is: isName, to: name }, { is: (c) => c === "/", to: slash });
      if (i === parts.length - 1) end = name;
      else {
        const next = node();
        at(end).free.push(next);
        at(name).free.push(next);
        end = next;
      }
      continue;
    }
    text("/");
    // Twice the same chain: before the name's first character, which has rules of its own, and behind it.
    let [fresh, within] = [end, node()];
    const isFirst = part.startsWith(".") ? isName : (c: string): boolean => isName(c) && c !== ".";
    for (let k = 0; k < part.length; k++) {
      const c = part[k] ?? "";
      const [nextFresh, nextWithin] = [node(), node()];
      if (c === "*") {
        at(fresh).free.push(nextFresh);
        at(within).free.push(nextWithin);
        at(fresh).on.push({ is: isFirst, to: within });
        at(within).on.push({ is: isName, to: within });
      } else {
        if (c !== "?") letters.add(c);
        const is = c === "?" ? isName : (other: string): boolean => other === c;
        at(fresh).on.push({ is: (other) => isFirst(other) && is(other), to: nextWithin });
        at(within).on.push({ is, to: nextWithin });
      }
      [fresh, within] = [nextFresh, nextWithin];
    }
    end = within;
  }
  return { nodes, letters, ends: new Set([end]) };
}

/** Arguments that a word's pieces match; what no wildcard matches (patterns.ts) is left to the caller. */
export function languageOfWord({ pieces }: CommandWord): Language {
  const { nodes, letters, node, at } = create();
  let end = node();
  const once = (is: (c: string) => boolean): void => {
    const to = node();
    at(end).on.push({ is, to });
    end = to;
  };
  const many = (is: (c: string) => boolean): void => {
    const to = node();
    at(end).free.push(to);
    at(to).on.push({ is, to });
    end = to;
  };
  for (const piece of pieces) {
    if (piece.is === "text") {
      for (let i = 0; i < piece.text.length; i++) {
        const c = piece.text[i] ?? "";
        letters.add(c);
        once((other) => other === c);
      }
    } else if (piece.is === "star") many(isName);
    else if (piece.is === "deep") many(() => true);
    else if (piece.is === "number") {
      once((c) => /[0-9]/.test(c));
      many((c) => /[0-9]/.test(c));
    } else {
      once((c) => /[A-Za-z0-9_]/.test(c));
      many((c) => /[A-Za-z0-9_.@:-]/.test(c));
    }
  }
  return { nodes, letters, ends: new Set([end]) };
}

export type Found = { readonly is: "none" | "unknown" } | { readonly is: "text"; readonly text: string };

/**
 * A shortest text that is wanted, by which of the sets it is in; a set is the union of its languages. Only texts in the first
 * set are looked at.
 * @returns `unknown` where the budget did not suffice to tell whether there is one.
 */
export function findText(
  sets: readonly (readonly Language[])[],
  isWanted: (isIn: readonly boolean[]) => boolean,
  budget: Budget,
): Found {
  const found = eachKind(sets, budget, (text, isIn) => (isWanted(isIn) ? { is: "text" as const, text } : undefined));
  return found === "unknown" ? { is: "unknown" } : (found ?? { is: "none" });
}

/**
 * One text of each kind in the first set: two texts are of a kind if every language is in the same state behind both, so
 * that whatever follows, each takes both or neither. `unknown` where there are too many.
 */
export function textsOf(
  sets: readonly (readonly Language[])[],
  most: number,
  budget: Budget,
): readonly string[] | "unknown" {
  const texts: string[] = [];
  const ended = eachKind(sets, budget, (text, [isIn]) => {
    if (isIn === true) texts.push(text);
    return texts.length > most ? "unknown" : undefined;
  });
  return ended ?? texts;
}

/** Goes through all kinds of texts, shortest first, until `visit` returns something. */
function eachKind<T>(
  sets: readonly (readonly Language[])[],
  budget: Budget,
  visit: (text: string, isIn: readonly boolean[]) => T | undefined,
): T | "unknown" | undefined {
  const alphabet = alphabetOf(sets.flat());
  const unions = sets.map(joined);
  const start = unions.map((union) => closed(union, union.starts, budget));
  const seen = new Set([start.map(String).join("|")]);
  let edge: { readonly at: readonly (readonly number[])[]; readonly text: string }[] = [{ at: start, text: "" }];
  while (edge.length > 0) {
    const next: typeof edge = [];
    for (const { at, text } of edge) {
      const isIn = at.map((nodes, i) => nodes.some((node) => unions[i]?.ends.has(node)));
      const visited = visit(text, isIn);
      if (visited !== undefined) return visited;
      for (const c of alphabet) {
        const to = at.map((nodes, i) => stepped(unions[i] ?? NOTHING, nodes, c, budget));
        if (budget.left <= 0) return "unknown";
        // The first set is what the text has to be in, whatever else is wanted.
        const key = to.map(String).join("|");
        if (to[0]?.length === 0 || seen.has(key)) continue;
        seen.add(key);
        next.push({ at: to, text: text + c });
      }
    }
    edge = next;
  }
  return undefined;
}

const NOTHING: Union = { nodes: [], starts: [], ends: new Set() };

interface Union {
  readonly nodes: readonly Node[];
  readonly starts: readonly number[];
  readonly ends: ReadonlySet<number>;
}

function joined(languages: readonly Language[]): Union {
  const nodes: Node[] = [];
  const starts: number[] = [];
  const ends = new Set<number>();
  for (const language of languages) {
    const from = nodes.length;
    starts.push(from);
    for (const end of language.ends) ends.add(from + end);
    for (const { on, free } of language.nodes)
      nodes.push({ on: on.map(({ is, to }) => ({ is, to: from + to })), free: free.map((to) => from + to) });
  }
  return { nodes, starts, ends };
}

function stepped(union: Union, nodes: readonly number[], c: string, budget: Budget): readonly number[] {
  const reached: number[] = [];
  for (const node of nodes) {
    for (const { is, to } of union.nodes[node]?.on ?? []) {
      budget.left--;
      if (is(c)) reached.push(to);
    }
  }
  return reached.length === 0 ? reached : closed(union, reached, budget);
}

function closed(union: Union, nodes: readonly number[], budget: Budget): readonly number[] {
  const all = new Set(nodes);
  // A set that grows while it is gone through.
  for (const node of all) {
    budget.left--;
    for (const to of union.nodes[node]?.free ?? []) all.add(to);
  }
  return [...all].toSorted((a, b) => a - b);
}

/** Every character that some language tells from others, and one of each class that none does. */
function alphabetOf(languages: readonly Language[]): readonly string[] {
  const letters = new Set(["/", ".", "_", "@", ":", "-"]);
  for (const language of languages) for (const c of language.letters) letters.add(c);
  const another = (from: string): string[] =>
    from
      .split("")
      .filter((c) => !letters.has(c))
      .slice(0, 1);
  let other = 0x4e00;
  while (letters.has(String.fromCharCode(other))) other++;
  return [
    ...another("xyzabcdefghijklmnopqrstuvwABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ...another("1234567890"),
    ...letters,
    String.fromCharCode(other),
  ];
}
