import { posix } from "node:path";
import type { JsonObject, JsonValue } from "../core/json.ts";
import type { Document, Node, Place } from "./document.ts";
import type { Target } from "./policy.ts";
import { suggest } from "./problem.ts";
import { isKindsMap, type Placed, locate, mapTexts, readLine, readMap, readName, readNames, toJson } from "./shape.ts";

/** The part of a target kind that the loader needs: the checks of its two documents. */
export interface KindChecks {
  parseConfig(input: unknown): Checked;
  parseScope(input: unknown): Checked;
  /** For the plan of a change; without it any difference of a scope needs eyes. */
  compareScopes?(before: JsonObject, after: JsonObject): readonly KindScopeChange[];
}
export interface KindScopeChange {
  readonly key: string;
  readonly effect: "same" | "narrower" | "wider" | "other";
  readonly what: string;
}
export type Checked =
  | { ok: true; value: JsonObject }
  | { ok: false; problems: readonly { path: readonly (string | number)[]; message: string }[] };

export interface TargetFile {
  readonly document: Document;
  readonly target: Omit<Target, "hash">;
  readonly namePlace: Place;
}

const KEYS = {
  required: { target: "orders-prod", kind: "postgres", config: "{ … } # the keys of its kind" },
  optional: ["summary", "tags"],
  hideUnknown: true,
};
/** Keys whose values may be shown in a problem; every other text of `config` may be a password in the wrong place. */
const SHOWN = /^(?:host|port|database|databases|user|mode|server_?name|region|cluster|namespace|role|schema|ca)$/i;

/**
 * Reads one file of `targets/`. In `config`, a path at `tls.ca` is replaced by that file's PEM out of `files`, and a
 * relative path in a secret reference `${file:…}`, which is relative to the YAML file, by one that is relative to the
 * policy folder. References are not resolved.
 */
export function readTarget(
  document: Document,
  kinds: ReadonlyMap<string, KindChecks>,
  files: ReadonlyMap<string, string>,
): TargetFile | undefined {
  if (document.root === undefined) return undefined;
  const map = readMap(document, document.root, "a target", KEYS);
  if (map === undefined) return undefined;
  const nameNode = map.get("target")?.value;
  const kindNode = map.get("kind")?.value;
  const configNode = map.get("config")?.value;
  const summaryNode = map.get("summary")?.value;
  const tagsNode = map.get("tags")?.value;
  const name = nameNode && readName(document, nameNode, "target");
  const kind = kindNode && readName(document, kindNode, "kind");
  const summary = summaryNode && readLine(document, summaryNode, "summary", 200);
  const tags = tagsNode && readNames(document, tagsNode, "tags", { single: false, empty: "Leave the key out." });
  const checks = kind === undefined ? undefined : kinds.get(kind);
  if (kind !== undefined && kindNode !== undefined && checks === undefined) {
    document.report(kindNode.place, `there is no target kind "${kind}"`, suggest(kind, kinds.keys()));
  }
  let config: JsonObject = {};
  if (configNode !== undefined && isKindsMap(document, configNode, "config")) {
    hideTexts(document, configNode, "");
    const { prepared, caMissing } = prepareConfig(document, configNode, files);
    const checked = checks?.parseConfig(prepared);
    if (checked?.ok === true) config = checked.value;
    else if (checked !== undefined) {
      const problems = checked.problems.filter((problem) => !caMissing || problem.path.join(".") !== "tls.ca");
      reportAll(document, configNode, "config", problems);
    }
  }
  if (name === undefined || nameNode === undefined) return undefined;
  return {
    document,
    target: { name, kind: kind ?? "", summary: summary ?? "", tags: (tags ?? []).map(valueOf), config },
    namePlace: nameNode.place,
  };
}

/** Places what a kind says about a document of its own. */
export function reportAll(
  document: Document,
  node: Node,
  key: string,
  problems: readonly { path: readonly (string | number)[]; message: string }[],
): void {
  for (const { path, message } of problems) {
    document.report(locate(node, path), `${[key, ...path].join(".")}: ${message}`);
  }
}

/** The file that `config.tls.ca` of a target names, as it is called in a bundle; undefined where it names none. */
export function authorityFile(document: Document): string | undefined {
  const { root } = document;
  const config = root?.type === "map" ? root.entries.find(({ key }) => key === "config") : undefined;
  const ca = config === undefined ? undefined : caOf(toJson(config.value));
  if (ca === undefined || ca === "system" || ca.includes("-----BEGIN") || ca.startsWith("${")) return undefined;
  return beside(document.file, ca);
}

function prepareConfig(
  document: Document,
  node: Node,
  files: ReadonlyMap<string, string>,
): { prepared: JsonValue; caMissing: boolean } {
  const movable = mapTexts(toJson(node), (text) => {
    const reference = /^\$\{file:(.+)\}$/s.exec(text)?.[1];
    return reference === undefined ? text : `\${file:${beside(document.file, reference)}}`;
  });
  const ca = authorityFile(document);
  if (ca === undefined) return { prepared: movable, caMissing: false };
  const pem = files.get(ca);
  if (pem === undefined) {
    const help = 'A path relative to this file, or "system" for the machine\'s own authorities.';
    document.report(locate(node, ["tls", "ca"]), "config.tls.ca: there is no such file, or it cannot be read", help);
    return { prepared: movable, caMissing: true };
  }
  const isCa = (path: readonly (string | number)[]): boolean => path.length === 2 && path.join(".") === "tls.ca";
  return { prepared: mapTexts(movable, (text, path) => (isCa(path) ? pem : text)), caMissing: false };
}

/** `path`, relative to `file`, as it is called seen from the policy folder; an absolute one stays as it is. */
function beside(file: string, path: string): string {
  return posix.isAbsolute(path) ? path : posix.normalize(posix.join(posix.dirname(file), path));
}

function caOf(config: JsonValue): string | undefined {
  const tls = isObject(config) ? config["tls"] : undefined;
  const ca = tls !== undefined && isObject(tls) ? tls["ca"] : undefined;
  return typeof ca === "string" ? ca : undefined;
}

function isObject(value: JsonValue): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function hideTexts(document: Document, node: Node, key: string): void {
  if (node.type === "scalar") {
    const harmless = typeof node.value === "string" && /^\$\{(?:file|env):/.test(node.value);
    if (typeof node.value === "string" && !SHOWN.test(key) && !harmless) document.mask(node.place);
  } else if (node.type === "list") for (const item of node.items) hideTexts(document, item, key);
  else for (const entry of node.entries) hideTexts(document, entry.value, entry.key);
}

function valueOf<T>(placed: Placed<T>): T {
  return placed.value;
}
