import { FormatError, parseVerifierKey, witnessPolicy } from "@glasskey/verify";
import { z } from "zod";

/** Who cosigns the log's checkpoints, and how many of them must. */
export interface WitnessesConfig {
  /** How many of `of` make a checkpoint a witnessed one; at least 1. */
  readonly need: number;
  readonly of: readonly WitnessConfig[];
}

export interface WitnessConfig {
  /** Its verifier key, of a cosignature type. */
  readonly key: string;
  /** What `add-checkpoint` is appended to; https, or http on this machine. */
  readonly url: string;
  /** File with the PEM of the CA that its certificate must chain to; undefined: the public ones. */
  readonly ca?: string | undefined;
}

const MAX_WITNESSES = 16; // each is asked about every checkpoint, and each line is in every proof

const url = z.string().transform((text, context): string => {
  const parsed = URL.canParse(text) ? new URL(text) : undefined;
  const local = parsed?.protocol === "http:" && /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(parsed.hostname);
  // By the text: an empty query or fragment, and a space, are not in what is parsed, and a path is put behind them.
  const plain = parsed !== undefined && parsed.username === "" && parsed.password === "" && !/[?#\s]/.test(text);
  if ((parsed?.protocol === "https:" || local) && plain) return text.replace(/\/+$/, "");
  context.addIssue({ code: "custom", message: "must be an https:// URL, or http:// on this machine" });
  return z.NEVER;
});

const key = z.string().superRefine((text, context) => {
  try {
    if (parseVerifierKey(text).roles.includes("witness")) return;
    context.addIssue({ code: "custom", message: "is not the key of a witness; `glass witness` prints one" });
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    context.addIssue({ code: "custom", message: `is not a verifier key: ${error.message}` });
  }
});

const witness = z.strictObject({ key, url, ca: z.string().min(1).optional() });

/** `log: witnesses:` in glasskey.yaml. Paths stay as they are written; {@link locateWitnesses} resolves them. */
export const witnessesSchema = z
  .strictObject({ need: z.number().int().min(1, "must be at least 1"), of: z.array(witness).min(1).max(MAX_WITNESSES) })
  .superRefine(({ need, of }, context) => {
    try {
      witnessPolicy(
        need,
        of.map((each) => each.key),
      ); // the same rules as the verifier's
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      context.addIssue({ code: "custom", path: [], message: `cannot be a policy: ${error.message}` });
    }
  });

/** The keys that may stand there, for suggestions. @param path below `log.witnesses`. */
export function witnessKeys(path: readonly (string | number)[]): readonly string[] {
  if (path.length === 0) return ["need", "of"];
  return path[0] === "of" && path.length === 2 ? ["key", "url", "ca"] : [];
}

export function locateWitnesses(
  value: z.infer<typeof witnessesSchema>,
  absolute: (path: string) => string,
): WitnessesConfig {
  const of = value.of.map(({ ca, ...rest }) => ({ ...rest, ...(ca === undefined ? {} : { ca: absolute(ca) }) }));
  return { need: value.need, of };
}
