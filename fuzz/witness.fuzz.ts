import { generateKeyPairSync } from "node:crypto";
import {
  createCosigner,
  createSigner,
  FormatError,
  openWitnessed,
  parseVerifierKeys,
  parseWitnessPolicy,
  signatureLine,
  signCheckpoint,
  VerifyError,
  witnessPolicy,
} from "../verify/src/index.ts";
import { parseAddCheckpoint } from "../witness/src/request.ts";

const log = createSigner("example.org/log", generateKeyPairSync("ed25519").privateKey);
const witness = createCosigner("w.example.org/1", generateKeyPairSync("ed25519").privateKey);
const other = createCosigner("w.example.org/2", generateKeyPairSync("ml-dsa-44").privateKey);
const checkpoint = signCheckpoint({ origin: log.name, size: 20_852_163, root: Buffer.alloc(32, 7) }, [log]);
const text = Buffer.from(checkpoint.slice(0, checkpoint.indexOf("\n\n") + 1));
const witnessed = checkpoint + signatureLine(witness, text) + signatureLine(other, text);
const hash = Buffer.alloc(32, 1).toString("base64");
const keys = parseVerifierKeys(log.vkey);
const policy = witnessPolicy(2, [witness.vkey, other.vkey]);
const policyText = `log ${log.vkey}\nwitness W1 ${witness.vkey} https://w.example.org/\nwitness W2 ${createCosigner("w.example.org/3", generateKeyPairSync("ed25519").privateKey).vkey}\ngroup G all W1 W2\nquorum G\n`;

export const seeds: readonly Uint8Array[] = [
  Buffer.from(`old 20852014\n${hash}\n${hash}\n\n${checkpoint}`),
  Buffer.from(`old 0\n\n${checkpoint}`),
  Buffer.from(witnessed),
  Buffer.from(policyText),
];
export const words: readonly string[] = [
  ...["\n\n", "\n", "old ", "— ", "+", "=", "\0", "\r", "\t", "1e9", "18446744073709551616"],
  ...["quorum none\n", "quorum W1\n", "group G any W1\n", "witness W1 ", "#"],
];

/** Nothing but the declared errors; nothing is witnessed except what was, and no policy is met by nobody. */
export function one(input: Uint8Array): void {
  const request = attempt(() => parseAddCheckpoint(input));
  if (request !== undefined) {
    if (request.proof.length > 63 || request.proof.some(({ length }) => length !== 32)) {
      throw new Error("a proof that is none was taken");
    }
    if (!Buffer.from(input).toString("utf8").endsWith(request.note)) throw new Error("the note is not what was sent");
  }
  const seen = attempt(() => openWitnessed(input, keys, policy));
  if (seen !== undefined && (seen.size !== 20_852_163 || !Buffer.from(seen.root).equals(Buffer.alloc(32, 7)))) {
    throw new Error("a checkpoint that nobody saw was called witnessed");
  }
  if (attempt(() => parseWitnessPolicy(input))?.isMetBy([]) === true) throw new Error("nobody met a policy");
}

function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof FormatError || error instanceof VerifyError) return undefined;
    throw error;
  }
}
