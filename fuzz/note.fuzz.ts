import { generateKeyPairSync } from "node:crypto";
import {
  createSigner,
  FormatError,
  openCheckpoint,
  parseProof,
  parseVerifierKey,
  signCheckpoint,
  VerifyError,
} from "../verify/src/index.ts";
import { parseNote } from "../verify/src/note.ts";

const signer = createSigner("example.org/log", generateKeyPairSync("ed25519").privateKey);
const verifier = parseVerifierKey(signer.vkey);
const checkpoint = signCheckpoint({ origin: "example.org/log", size: 20_852_163, root: Buffer.alloc(32, 7) }, [signer]);
const genuine = Buffer.from(checkpoint);

export const seeds: readonly Uint8Array[] = [
  genuine,
  Buffer.from("any text\n\n— somebody AAAAAAAA\n— another BBBBBBBBBBBB\n"),
  Buffer.from(`c2sp.org/tlog-proof@v1\nindex 3\n${Buffer.alloc(32, 1).toString("base64")}\n\n${checkpoint}`),
  Buffer.from(signer.vkey),
];
export const words: readonly string[] = [
  "\n\n",
  "\n",
  "— ",
  "+",
  "=",
  "\0",
  "\u2028",
  "\ud800",
  "-0",
  "1e9",
  "18446744073709551616",
];

/** Nothing but the declared errors, and nothing is authentic except what was signed. */
export function one(input: Uint8Array): void {
  const note = attempt(() => parseNote(input));
  if (note !== undefined && !Buffer.from(input).toString("utf8").startsWith(note.text)) {
    throw new Error("the text of a note is not what it begins with");
  }
  const opened = attempt(() => openCheckpoint(input, [verifier]));
  if (opened !== undefined && (opened.size !== 20_852_163 || !Buffer.from(opened.root).equals(Buffer.alloc(32, 7)))) {
    throw new Error("a checkpoint that nobody signed was accepted");
  }
  attempt(() => parseProof(input));
  attempt(() => parseVerifierKey(Buffer.from(input).toString("latin1")));
}

function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof FormatError || error instanceof VerifyError) return undefined;
    throw error;
  }
}
