import type { Secret } from "../core/secret.ts";
import { isSshUrl, type GitSource } from "./config.ts";

/**
 * How git is run: only what is said here counts. Neither the machine's configuration nor the user's nor anything that lies
 * in a repository has a say, and no protocol is spoken but the one of the address.
 */

/** Settings that leave nothing of what a repository, a user or a machine could add. */
export const SAFE: readonly string[] = [
  ...["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.attributesFile=/dev/null"],
  ...["-c", "core.excludesFile=/dev/null", "-c", "core.askPass=", "-c", "credential.helper=", "-c", "core.pager=cat"],
  ...["-c", "protocol.allow=never", "-c", "submodule.recurse=false", "-c", "fetch.recurseSubmodules=false"],
  ...["-c", "transfer.fsckObjects=true", "-c", "fetch.fsckObjects=true", "-c", "fetch.unpackLimit=1"],
  ...["-c", "core.bigFileThreshold=4m", "-c", "gc.auto=0", "-c", "maintenance.auto=false"],
  ...["-c", "http.followRedirects=false", "-c", "http.lowSpeedLimit=100", "-c", "http.lowSpeedTime=20"],
  ...["-c", "log.showSignature=false", "-c", "log.mailmap=false", "-c", "core.quotePath=true"],
];

/** The one protocol that git may use for it. */
export function schemeOf(url: string): "https" | "ssh" | "file" {
  return isSshUrl(url) ? "ssh" : url.startsWith("https:") ? "https" : "file";
}

/** Settings for a fetch from it. */
export function transport(source: GitSource): readonly string[] {
  return source.ca === undefined ? [] : ["-c", `http.sslCAInfo=${source.ca}`];
}

/** Through the environment: arguments of a process are shown to everybody on the machine. */
export function authorization(token: Secret): Readonly<Record<string, string>> {
  return {
    GIT_CONFIG_COUNT: "1",
    GIT_CONFIG_KEY_0: "http.extraHeader",
    GIT_CONFIG_VALUE_0: `Authorization: Basic ${basicOf(token)}`,
  };
}

function basicOf(token: Secret): string {
  return Buffer.from(`x-access-token:${token.reveal()}`).toString("base64");
}

/** A text without the token, in both forms in which it was sent. */
export function withoutToken(text: string, token: Secret): string {
  return text.replaceAll(basicOf(token), "***").replaceAll(token.reveal(), "***");
}

/** Nothing of the server's own environment but what finds programs and proxies. `home` is an empty private folder. */
export function environment(home: string, source: GitSource): Readonly<Record<string, string>> {
  const kept = ["PATH", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"];
  const passed = kept.flatMap((name) => {
    const value = process.env[name];
    return value === undefined ? [] : [[name, value] as const];
  });
  const quoted = (path: string): string => `'${path}'`; // config.ts lets no quote into a path
  const ssh =
    source.ssh === undefined
      ? "false"
      : [
          ...["ssh", "-F", "none", "-i", quoted(source.ssh.key), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"],
          ...["-o", "StrictHostKeyChecking=yes", "-o", quoted(`UserKnownHostsFile="${source.ssh.knownHosts}"`)],
          ...["-o", "GlobalKnownHostsFile=none", "-o", "ConnectTimeout=20", "-o", "ForwardAgent=no"],
        ].join(" ");
  return {
    ...Object.fromEntries(passed),
    ...{ HOME: home, XDG_CONFIG_HOME: home, LC_ALL: "C", TZ: "UTC" },
    ...{ GIT_CONFIG_NOSYSTEM: "1", GIT_CONFIG_SYSTEM: "/dev/null", GIT_CONFIG_GLOBAL: "/dev/null" },
    ...{ GIT_ATTR_NOSYSTEM: "1", GIT_TERMINAL_PROMPT: "0", GIT_ASKPASS: "false", SSH_ASKPASS: "false" },
    ...{ GIT_NO_REPLACE_OBJECTS: "1", GIT_NO_LAZY_FETCH: "1", GIT_OPTIONAL_LOCKS: "0", GIT_PROTOCOL_FROM_USER: "0" },
    ...{ GIT_SSH_COMMAND: ssh, GIT_SSH_VARIANT: "ssh" },
  };
}
