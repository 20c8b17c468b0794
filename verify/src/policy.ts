import { decodeUtf8 } from "./encoding.ts";
import { FormatError } from "./errors.ts";
import { parseVerifierKey, type NoteVerifier } from "./note.ts";

/** Which witnesses must have cosigned a checkpoint. There is no policy that nobody meets, and none that anybody does. */
export interface WitnessPolicy {
  /** The keys that count. No two have the same public key. */
  readonly keys: readonly NoteVerifier[];
  /** `2 of 3 witnesses`. */
  readonly description: string;
  /** Verifier keys of the logs that the policy's text names; none where it was not made from a text. */
  readonly logs: readonly string[];
  /** Whether cosignatures by these verifier keys are enough. Others are ignored. */
  isMetBy(vkeys: Iterable<string>): boolean;
}

type Node =
  | { readonly kind: "witness"; readonly name: string; readonly key: NoteVerifier }
  | { readonly kind: "group"; readonly name: string; readonly need: number; readonly members: readonly Node[] };

const MAX_POLICY_BYTES = 1 << 20;
const MAX_NAMES = 256; // the specification asks for 32 of each kind
const MAX_DEPTH = 32;

/**
 * `need` of these witnesses. Keys of one key name are one witness, such as its old and its new key.
 * @throws FormatError unless 1 ≤ need ≤ the number of witnesses, and each key is a witness's and there once.
 */
export function witnessPolicy(need: number, vkeys: readonly string[]): WitnessPolicy {
  const byName = new Map<string, Node[]>();
  for (const vkey of vkeys) {
    const key = witnessKey(vkey);
    byName.set(key.name, [...(byName.get(key.name) ?? []), { kind: "witness", name: key.name, key }]);
  }
  const members = [...byName].map(([name, keys]): Node =>
    keys.length === 1 && keys[0] ? keys[0] : group(name, 1, keys),
  );
  return policyOf(group("witnesses", need, members), []);
}

/**
 * Reads a policy file (https://c2sp.org/tlog-policy): lines `log VKEY [URL]`, `witness NAME VKEY [URL]`,
 * `group NAME all|any|K NAME…` and one `quorum NAME`. Two keys of one key name must be members of one `any` group, so that
 * they count once. `quorum none` is refused: who wants no witnesses gives no policy.
 * @throws FormatError that names the line.
 */
export function parseWitnessPolicy(input: Uint8Array | string): WitnessPolicy {
  const text = typeof input === "string" ? input : decodeUtf8(input, "the witness policy");
  if (text.length > MAX_POLICY_BYTES) throw new FormatError("a witness policy has at most a megabyte");
  const nodes = new Map<string, Node>();
  const taken = new Set<string>();
  const logs: string[] = [];
  let quorum: Node | undefined;
  for (const [index, line] of text.split("\n").entries()) {
    const fail = (why: string): FormatError => new FormatError(`line ${index + 1} of the witness policy: ${why}`);
    if (/[\u0000-\u0008\u000b-\u001f\u007f]/.test(line)) throw fail("has a control character");
    const words = line.split(/[ \t]+/).filter((word) => word !== "");
    const [keyword, name = "", ...rest] = words;
    if (keyword === undefined || keyword.startsWith("#")) continue;
    const define = (make: () => Node): void => {
      if (name === "" || name === "none" || nodes.has(name)) throw fail(`"${name}" is no name, or there already`);
      if (nodes.size >= MAX_NAMES) throw fail(`there are more than ${MAX_NAMES} names`);
      nodes.set(name, named(make, fail));
    };
    const member = (of: string): Node => {
      const node = nodes.get(of);
      if (node === undefined) throw fail(`"${of}" is not defined above`);
      if (taken.has(of)) throw fail(`"${of}" is in a group already`);
      taken.add(of);
      return node;
    };
    if (keyword === "log" && rest.length <= 1) {
      if (!named(() => parseVerifierKey(name), fail).roles.includes("log")) throw fail("is not the key of a log");
      logs.push(name);
    } else if (keyword === "witness" && (rest.length === 1 || rest.length === 2)) {
      define(() => ({ kind: "witness", name, key: witnessKey(rest[0] ?? "") }));
    } else if (keyword === "group") {
      const [threshold = "", ...names] = rest;
      const members = names.map(member);
      define(() => group(name, needOf(threshold, members.length), members));
    } else if (keyword === "quorum" && rest.length === 0) {
      if (quorum !== undefined) throw fail("there is a quorum already");
      if (name === "none") throw fail("`quorum none` asks for no witness; leave the policy out");
      quorum = nodes.get(name);
      if (quorum === undefined) throw fail(`"${name}" is not defined above`);
    } else {
      throw fail("is not: log VKEY [URL], witness NAME VKEY [URL], group NAME all|any|K NAME…, quorum NAME");
    }
  }
  if (quorum === undefined) throw new FormatError("the witness policy has no quorum");
  return policyOf(quorum, logs);
}

function policyOf(quorum: Node, logs: readonly string[]): WitnessPolicy {
  const keys: NoteVerifier[] = [];
  const parentOf = new Map<string, string>(); // key name → where its keys are
  const collect = (node: Node, parent: string, shared: boolean, depth: number): void => {
    if (depth > MAX_DEPTH) throw new FormatError("the groups of the witness policy are nested too deep");
    if (node.kind === "group") {
      for (const each of node.members) collect(each, node.name, node.need === 1, depth + 1);
      return;
    }
    const { key } = node;
    if (keys.some((other) => Buffer.compare(other.publicKey, key.publicKey) === 0)) {
      throw new FormatError(`the public key of ${key.name} is in the witness policy twice`);
    }
    const elsewhere = parentOf.get(key.name);
    if (elsewhere !== undefined && !(elsewhere === parent && shared)) {
      throw new FormatError(`two keys of ${key.name} are one witness: make them a group of their own, with \`any\``);
    }
    parentOf.set(key.name, parent);
    keys.push(key);
  };
  collect(quorum, "", false, 0);
  return {
    ...{ keys, logs },
    description: describe(quorum),
    isMetBy(vkeys) {
      const given = new Set(vkeys);
      const met = (node: Node): boolean =>
        node.kind === "witness" ? given.has(node.key.vkey) : node.members.filter(met).length >= node.need;
      return met(quorum);
    },
  };
}

/** `2 of 3 witnesses`; where groups are nested, the group's name as well. */
function describe(node: Node): string {
  if (node.kind === "witness") return `the witness ${node.key.name}`;
  const keyNames = new Set(node.members.map((each) => (each.kind === "witness" ? each.key.name : each.name)));
  const plain = node.members.every((each) => each.kind === "witness" || each.name === each.members[0]?.name);
  return `${node.need} of ${keyNames.size} ${plain ? "witnesses" : `members of ${node.name}`}`;
}

function group(name: string, need: number, members: readonly Node[]): Node {
  if (!Number.isInteger(need) || need < 1 || need > members.length) {
    throw new FormatError(`a policy needs 1 to ${members.length} of its ${members.length} witnesses, and not ${need}`);
  }
  return { kind: "group", name, need, members };
}

function needOf(threshold: string, members: number): number {
  if (threshold === "any") return 1;
  if (threshold === "all") return members;
  return /^[1-9]\d{0,5}$/.test(threshold) ? Number(threshold) : NaN;
}

function witnessKey(vkey: string): NoteVerifier {
  const key = parseVerifierKey(vkey);
  if (key.roles.includes("witness")) return key;
  throw new FormatError(`${key.name} is the key of a log, and not of a witness`);
}

/** The same error, with its line. */
function named<T>(make: () => T, fail: (why: string) => FormatError): T {
  try {
    return make();
  } catch (error) {
    throw error instanceof FormatError ? fail(error.message) : error;
  }
}
