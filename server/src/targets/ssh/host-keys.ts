import { GlassError } from "../../core/errors.ts";
import { parseCertificate, verifyCertificate } from "./certificate.ts";
import type { HostKeys } from "./config.ts";
import {
  fingerprint,
  isCertificateName,
  parsePublicKeyLine,
  plainName,
  SIGNATURE_ALGORITHMS,
  subjectKey,
  certificateName,
} from "./keys.ts";
import { SshError } from "./types.ts";

/** What a host key is judged by. */
export interface KnownHost {
  readonly host: string;
  readonly hostKeys: HostKeys;
}

/**
 * Whether the host is the one that the target file describes: its key is pinned, or it has a host certificate of a pinned
 * authority, for this name, valid now.
 * @throws GlassError `target_untrusted` that names the key that was shown
 */
export function verifyHost(known: KnownHost, shown: { algorithm: string; blob: Buffer }, now: Date): void {
  const { host, hostKeys } = known;
  try {
    if ("ca" in hostKeys) {
      if (!isCertificateName(shown.algorithm))
        throw new SshError(9, "it has no certificate of the authority in the target file");
      const authorities = hostKeys.ca.map((line) => parsePublicKeyLine(line).key.blob);
      verifyCertificate(parseCertificate(shown.blob), { type: "host", authorities, principal: host, now });
      return;
    }
    const pinned = hostKeys.pin.map((line) => parsePublicKeyLine(line).key.blob);
    if (pinned.some((blob) => blob.equals(shown.blob))) return;
    throw new SshError(9, `the key in the target file is ${pinned.map((blob) => fingerprint(blob)).join(" or ")}`);
  } catch (error) {
    if (!(error instanceof SshError)) throw error;
    throw new GlassError("target_untrusted", `${host} shows the host key ${shownAs(shown.blob)}: ${error.message}`, {
      next: "If the host was given a new key on purpose, put its line into hostKeys: of the target file. Otherwise something else answers at this address.",
      cause: error,
    });
  }
}

/** Host key algorithms that the target file's keys can be judged with, so that a host with several keys shows the right one. */
export function wantedAlgorithms(hostKeys: HostKeys): readonly string[] {
  if ("ca" in hostKeys)
    return SIGNATURE_ALGORITHMS.filter((name) => !name.startsWith("sk-")).map((name) => certificateName(name));
  const types = new Set<string>(hostKeys.pin.map((line) => parsePublicKeyLine(line).key.type));
  return SIGNATURE_ALGORITHMS.filter(
    (name) => types.has(name) || (name.startsWith("rsa-sha2-") && types.has("ssh-rsa")),
  );
}

function shownAs(blob: Buffer): string {
  try {
    const { type, blob: key } = subjectKey(blob);
    return `${fingerprint(key)} (${plainName(type)})`;
  } catch {
    return "of a kind that is not taken";
  }
}
