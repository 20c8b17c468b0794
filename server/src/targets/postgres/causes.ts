import { describe } from "../../core/errors.ts";
import type { Endpoint } from "./admin.ts";

/** What went wrong in the words of whoever runs the target, and what to do about it. */
export interface Cause {
  readonly detail: string;
  readonly fix: string;
}

const UNTRUSTED = new Set([
  ...["UNABLE_TO_VERIFY_LEAF_SIGNATURE", "UNABLE_TO_GET_ISSUER_CERT", "UNABLE_TO_GET_ISSUER_CERT_LOCALLY"],
  ...["SELF_SIGNED_CERT_IN_CHAIN", "DEPTH_ZERO_SELF_SIGNED_CERT", "CERT_SIGNATURE_FAILURE", "CERT_UNTRUSTED"],
  ...["INVALID_CA", "CERT_CHAIN_TOO_LONG", "PATH_LENGTH_EXCEEDED", "CERT_REJECTED"],
]);

/**
 * Why a target was not reached over verified TLS: the name, the network, its certificate. Undefined for what the target
 * itself answered, and for anything unknown. The TLS library's own words are not repeated: they advise on another program.
 */
export function causeOnTheWay(endpoint: Endpoint, error: unknown): Cause | undefined {
  const { host, port, tls } = endpoint;
  const where = `${host}:${port}`;
  const code = codeOf(error);
  const text = describe(error);
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID") {
    return {
      detail: `the certificate of ${host} is for another name than ${tls.servername}${namesOf(error)}`,
      fix: "Set tls.servername in the target file to a name that the certificate carries, or give the target a certificate for this one.",
    };
  }
  if (code !== undefined && UNTRUSTED.has(code)) {
    return tls.ca === null
      ? {
          detail: `the certificate of ${host} is not signed by an authority that this machine trusts (tls.ca: system)`,
          fix: "Set tls.ca in the target file to the PEM file of the authority that signed it.",
        }
      : {
          detail: `the certificate of ${host} is not signed by tls.ca`,
          fix: "Set tls.ca in the target file to the PEM file of the authority that signed it, and load the policy again.",
        };
  }
  if (code === "CERT_HAS_EXPIRED" || code === "CERT_NOT_YET_VALID") {
    return {
      detail: `the certificate of ${host}, or of who signed it, ${code === "CERT_HAS_EXPIRED" ? "has expired" : "is not valid yet"}`,
      fix: "Renew it on the target. If it is in order, correct the clock of this machine.",
    };
  }
  if (code !== undefined && (/^CERT_|^CRL_|^HOSTNAME_/.test(code) || /certificate/i.test(text))) {
    return {
      detail: `the certificate of ${host} cannot be verified (${code})`,
      fix: "Give the target a certificate that tls.ca signed, for the name in tls.servername.",
    };
  }
  if (/does not support SSL/i.test(text)) {
    return {
      detail: `${where} does not speak TLS`,
      fix: "Turn it on there: ssl = on in postgresql.conf, with a certificate.",
    };
  }
  return causeOnTheNetwork(host, port, code, text);
}

/** As `pg` says it of a login and of a query, and Node of a signal. */
const TIMEOUTS =
  /^(?:timeout expired|Connection terminated due to connection timeout|Query read timeout)$|due to timeout$/;

function causeOnTheNetwork(host: string, port: number, code: string | undefined, text: string): Cause | undefined {
  const where = `${host}:${port}`;
  switch (code ?? "") {
    case "ENOTFOUND":
      return {
        detail: `there is no host named ${host}`,
        fix: "Correct `host:` in the target file, or the name service of this machine.",
      };
    case "EAI_AGAIN":
      return { detail: `the name ${host} cannot be looked up now`, fix: "Check the name service of this machine." };
    case "ECONNREFUSED":
      return {
        detail: `nothing listens on ${where}: the connection was refused`,
        fix: "Start the target, or correct `host:` and `port:` in the target file. PostgreSQL listens where its listen_addresses says.",
      };
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EADDRNOTAVAIL":
      return { detail: `there is no way to ${where}`, fix: "Check `host:` in the target file, routes and firewalls." };
    case "ECONNRESET":
    case "EPIPE":
      return {
        detail: `${where} hung up before the login was done`,
        fix: "Check that it is the target itself and no pooler or proxy, and what the target's own log says.",
      };
  }
  if (code === "ETIMEDOUT" || TIMEOUTS.test(text)) {
    return {
      detail: `${where} does not answer`,
      fix: "Check `host:` and `port:` in the target file, that the target is up, and firewalls on the way.",
    };
  }
  if (text === "Connection terminated unexpectedly") return causeOnTheNetwork(host, port, "ECONNRESET", "");
  return undefined;
}

/** The names that a certificate does carry, as far as they can be shown. */
function namesOf(error: unknown): string {
  const altnames = error instanceof Error && "cert" in error ? (error.cert as { subjectaltname?: unknown }) : {};
  const { subjectaltname: names } = altnames;
  if (typeof names !== "string" || !/^[\w .:,*-]{1,300}$/.test(names)) return "";
  return `; it has ${names.replaceAll(/DNS:|IP Address:/g, "")}`;
}

/** The code of a system or TLS error; of several attempts, of the first. */
export function codeOf(error: unknown): string | undefined {
  if (error instanceof Error && "code" in error && typeof error.code === "string") return error.code;
  return error instanceof AggregateError ? codeOf(error.errors[0]) : undefined;
}
