import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { sha256 } from "../core/bytes.ts";
import { describe } from "../core/errors.ts";
import type { Signers } from "./config.ts";
import { run } from "./program.ts";

/** What git says of one commit's signature. */
export interface Signed {
  readonly commit: string;
  /** Fingerprint of the key. */
  readonly key: string;
}

export type Trust =
  | { readonly ok: true; readonly signed: readonly Signed[] }
  | { readonly ok: false; readonly commit: string; readonly why: string };

/** How git is told whom to believe: settings for `-c`, and environment. */
export interface Believed {
  readonly settings: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const IMPORT_MS = 30_000;
const KEYS_BYTES = 1024 * 1024;

/** Git's letters (git-log(1), `%G?`). Only `G` is a yes. */
const LETTERS: Readonly<Record<string, string>> = {
  B: "its signature is bad",
  U: "it is signed by a key that is not listed",
  X: "its signature has expired",
  Y: "it is signed by a key that has expired",
  R: "it is signed by a key that is revoked",
  E: "it is signed by a key that is not listed",
  N: "it is not signed, or by a key that is not valid",
};

export const SIGNATURE_FORMAT = "%H %G? %GF";

/**
 * Reads what git printed with {@link SIGNATURE_FORMAT} about these commits. Every one of them must be there, with a good
 * signature; whatever cannot be read is a no.
 */
export function judgeSignatures(output: string, commits: readonly string[]): Trust {
  const lines = new Map(
    output.split("\n").flatMap((line) => {
      const match = /^([0-9a-f]{40}) ([A-Z])(?: (\S{1,200}))?\s*$/.exec(line);
      return match === null ? [] : [[match[1] ?? "", { letter: match[2] ?? "", key: match[3] ?? "" }] as const];
    }),
  );
  const signed: Signed[] = [];
  for (const commit of commits) {
    const { letter = "?", key = "" } = lines.get(commit) ?? {};
    if (letter !== "G") return { ok: false, commit, why: LETTERS[letter] ?? "git does not say who signed it" };
    if (key === "") return { ok: false, commit, why: "git does not say which key signed it" };
    signed.push({ commit, key });
  }
  return { ok: true, signed };
}

/**
 * Makes git believe the listed keys and no other. Git chooses by what the commit carries whether it is SSH or PGP, so the
 * one that is not listed is given nobody to believe.
 * @throws when the list cannot be read or has no key in it.
 */
export async function believe(
  signers: Signers,
  home: string,
  env: Readonly<Record<string, string>>,
): Promise<Believed> {
  const gnupg = join(home, "gnupg");
  const never = ["-c", "gpg.x509.program=false", "-c", "gpg.minTrustLevel=undefined"];
  if (signers.ssh !== undefined) {
    await readFile(signers.ssh); // git would say of a missing file only that a commit is not signed
    if (signers.revoked !== undefined) await readFile(signers.revoked);
    return {
      settings: [
        ...[...never, "-c", "gpg.program=false", "-c", "gpg.ssh.program=ssh-keygen"],
        ...["-c", `gpg.ssh.allowedSignersFile=${signers.ssh}`],
        ...["-c", `gpg.ssh.revocationFile=${signers.revoked ?? ""}`],
      ],
      env: { GNUPGHOME: gnupg },
    };
  }
  const keys = await readFile(signers.gpg);
  if (keys.length > KEYS_BYTES) throw new Error(`${signers.gpg} is larger than ${KEYS_BYTES} bytes`);
  // A keyring of its own for each content of the file: a key that was taken off the list is in none that is used.
  const ring = join(gnupg, sha256(keys).toString("hex").slice(0, 16));
  const gpgEnv = { ...env, GNUPGHOME: ring };
  const complete = join(ring, "complete");
  if (
    await readFile(complete).then(
      () => false,
      () => true,
    )
  ) {
    await rm(gnupg, { recursive: true, force: true });
    await mkdir(ring, { recursive: true, mode: 0o700 });
    // The keyring has listed keys only, so each of them is trusted; nothing is fetched from anywhere.
    await writeFile(
      join(ring, "gpg.conf"),
      "batch\nno-tty\ntrust-model always\nno-auto-key-retrieve\nno-auto-key-import\ndisable-dirmngr\nno-autostart\n",
    );
    const imported = await run("gpg", ["--homedir", ring, "--import", "--", signers.gpg], {
      ...{ env: gpgEnv, cwd: home, timeoutMs: IMPORT_MS, maxBytes: KEYS_BYTES },
    });
    if (imported.code !== 0) throw new Error(`gpg cannot read ${signers.gpg}: ${imported.stderr}`);
    await writeFile(complete, "");
  }
  return {
    settings: [
      ...[...never, "-c", "gpg.program=gpg", "-c", "gpg.ssh.program=ssh-keygen"],
      ...["-c", "gpg.ssh.allowedSignersFile=/dev/null"], // nobody: of an SSH signature git says that its key is unknown
    ],
    env: { GNUPGHOME: ring },
  };
}

/**
 * Whether the key behind an SSH signature is listed and valid at this moment. Git asks about the commit's own date, which
 * whoever holds an expired key can set back; gpg looks at today by itself.
 * @param object the commit, as git stores it.
 */
export async function validToday(
  object: string,
  options: { allowed: string; home: string; env: Readonly<Record<string, string>> },
): Promise<boolean> {
  const header = object.slice(0, object.indexOf("\n\n"));
  const signature = /(?:^|\n)gpgsig (.*(?:\n .*)*)/.exec(header)?.[1]?.replaceAll("\n ", "\n");
  if (signature === undefined) return false;
  const file = join(options.home, "signature");
  await writeFile(file, `${signature}\n`, { mode: 0o600 });
  try {
    const found = await run("ssh-keygen", ["-Y", "find-principals", "-s", file, "-f", options.allowed], {
      ...{ env: options.env, cwd: options.home, timeoutMs: IMPORT_MS, maxBytes: KEYS_BYTES },
    });
    return found.code === 0 && found.stdout.length > 0;
  } finally {
    await rm(file, { force: true });
  }
}

/** Why a list of signers cannot be used, in words. */
export function signersFault(signers: Signers, error: unknown): string {
  return `the list of signers ${signers.ssh ?? signers.gpg} cannot be used: ${describe(error)}`;
}
