import { Lexer } from "yaml";
import { type Document, type Node, type Place, readDocument } from "./document.ts";
import { compare } from "./problem.ts";
import { locate, startOf } from "./shape.ts";

/** Where something stands in a policy folder; lines and columns from 1, columns in UTF-16 units as editors count. */
export interface Spot {
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

export interface Comment extends Spot {
  /** With its `#`. */
  readonly text: string;
}

type Path = readonly (string | number)[];

/** The files of a policy that has been loaded, to tell where each key stands and what the comments beside it say. */
export interface Sources {
  /** Where a playbook says this, itself, by its template or by policy.yaml's defaults; else where its own name stands. */
  playbook(name: string, path?: Path): Spot;
  /** In policy.yaml: a rule of `forbid`, a reason code. */
  rule(name: string, path?: Path): Spot;
  reason(code: string): Spot;
  /** The file that a playbook is in. */
  fileOf(playbook: string): string;
  /** Every template, and whether a playbook extends it. */
  readonly templates: readonly { readonly name: string; readonly spot: Spot; readonly used: boolean }[];
  readonly comments: readonly Comment[];
}

interface Source {
  readonly document: Document;
  readonly text: string;
  readonly root: Node | undefined;
}

/** Keys whose own keys are inherited one by one. */
const SECTIONS: ReadonlySet<string> = new Set(["when", "approve", "time", "limit"]);

/** @param files path below the policy folder → content. They were loaded, so they have no mistakes; others are left out. */
export function readSources(files: ReadonlyMap<string, string>): Sources {
  const policy = files.has("policy.yaml") ? read("policy.yaml", files.get("policy.yaml") ?? "") : undefined;
  const playbooks = new Map<string, Source>();
  const templates = new Map<string, Source>();
  const comments: Comment[] = [];
  for (const [file, text] of [...files].toSorted(([a], [b]) => compare(a, b))) {
    if (!/^(?:(?:playbooks|targets)\/)?[^/]+\.yaml$/.test(file)) continue;
    comments.push(...commentsOf(text).map(({ text: words, start }) => ({ ...spotOf(file, text, start), text: words })));
    if (!file.startsWith("playbooks/")) continue;
    const source = read(file, text);
    const [name, template] = [textAt(source.root, "playbook"), textAt(source.root, "template")];
    if (name !== undefined) playbooks.set(name, source);
    else if (template !== undefined) templates.set(template, source);
  }
  const at = (source: Source | undefined, root: Node | undefined, path: Path): Spot | undefined => {
    if (source === undefined || root === undefined || !has(root, path)) return undefined;
    return spotOf(source.document.file, source.text, locate(root, path).start);
  };
  const extended = new Set([...playbooks.values()].map(({ root }) => textAt(root, "extends")));
  return {
    playbook: (name, path = []) => {
      const own = playbooks.get(name);
      const template = templates.get(textAt(own?.root, "extends") ?? "");
      return (
        (path.length === 0 ? undefined : at(own, own?.root, path)) ??
        (path.length === 0 ? undefined : at(template, template?.root, path)) ??
        (path.length === 0 ? undefined : at(policy, policy?.root, ["defaults", ...path])) ??
        at(own, own?.root, ["playbook"]) ?? { file: "playbooks", line: 1, column: 1 }
      );
    },
    rule: (name, path = []) => {
      const list = valueAt(policy?.root, "forbid");
      const index = list?.type === "list" ? list.items.findIndex((item) => textAt(item, "rule") === name) : -1;
      const rule = index === -1 ? [] : ["forbid", index];
      return (
        at(policy, policy?.root, [...rule, ...path]) ??
        at(policy, policy?.root, rule) ?? { file: "policy.yaml", line: 1, column: 1 }
      );
    },
    reason: (code) => {
      const reasons = valueAt(policy?.root, "reasons");
      const entry = reasons?.type === "map" ? reasons.entries.find(({ key }) => key === code) : undefined;
      return spotOf("policy.yaml", policy?.text ?? "", entry?.keyPlace.start ?? 0);
    },
    fileOf: (name) => playbooks.get(name)?.document.file ?? "",
    templates: [...templates].map(([name, { document, text, root }]) => ({
      name,
      spot: spotOf(document.file, text, root === undefined ? 0 : startOf(root).start),
      used: extended.has(name),
    })),
    comments,
  };
}

/** All comments of a YAML text with their offsets, found by YAML's own lexer: a `#` within a text is none. */
export function commentsOf(source: string): readonly { readonly text: string; readonly start: number }[] {
  const found: { text: string; start: number }[] = [];
  let at = 0;
  let scalar = false;
  for (const token of new Lexer().lex(source)) {
    // The lexer's own marks: a document's beginning, a broken flow, and "the next one is a scalar".
    if (token === "\u0002" || token === "\u0018") continue;
    if (token === "\u001F") {
      scalar = true;
      continue;
    }
    if (!scalar && token.startsWith("#")) found.push({ text: token.trimEnd(), start: at });
    scalar = false;
    at += token.length;
  }
  return found;
}

function read(file: string, text: string): Source {
  const document = readDocument(file, text);
  return { document, text, root: document.root };
}

function spotOf(file: string, text: string, start: Place["start"]): Spot {
  const before = text.slice(0, start);
  const line = before.split("\n").length;
  return { file, line, column: start - (before.lastIndexOf("\n") + 1) + 1 };
}

/** Whether a file speaks of this key itself; further in, the nearest place that there is will do. */
function has(root: Node, path: Path): boolean {
  const start = path[0] === "defaults" ? path.slice(1) : path;
  const deep = SECTIONS.has(String(start[0])) ? 2 : 1;
  let node: Node | undefined = root;
  for (const step of path.slice(0, path.length - start.length + deep)) {
    if (typeof step === "number") node = node?.type === "list" ? node.items[step] : undefined;
    else node = valueAt(node, step);
    if (node === undefined) return false;
  }
  return true;
}

function valueAt(node: Node | undefined, key: string): Node | undefined {
  return node?.type === "map" ? node.entries.find((entry) => entry.key === key)?.value : undefined;
}

function textAt(node: Node | undefined, key: string): string | undefined {
  const value = valueAt(node, key);
  return value?.type === "scalar" && typeof value.value === "string" ? value.value : undefined;
}
