import type { ClientCommand, ClientEndpoint, TargetKind } from "../target.ts";
import { parseConfig } from "./config.ts";
import { createDriver } from "./credentials.ts";
import { clientCertificate, identity } from "./entry.ts";
import { hostSetup } from "./host-setup.ts";
import { promisesOf } from "./promises.ts";
import { compareScopes } from "./scope-compare.ts";
import { parseScope } from "./scope.ts";
import { createServe } from "./session.ts";

/** As sshd's LoginGraceTime: a person may have to find and type the secret. The gateway bounds how many may wait. */
const HANDSHAKE_MS = 120_000;

/** SSH: hosts opened by certificates that never leave the gateway, and plain OpenSSH clients through it. */
export const ssh: TargetKind = {
  kind: "ssh",
  parseConfig,
  parseScope,
  compareScopes,
  promises: promisesOf,
  driver: createDriver,
  hostSetup,
  identity,
  clientCertificate,
  serve: createServe(),
  handshakeMs: HANDSHAKE_MS,
  clientCommand,
};

/** Plain ssh, for a person who types the secret. `glass connect` adds its own private files. */
function clientCommand(endpoint: ClientEndpoint): ClientCommand {
  const port = endpoint.port === 22 ? [] : ["-p", String(endpoint.port)];
  return { argv: ["ssh", ...port, `${endpoint.grant}@${endpoint.host}`], env: {}, secretEnv: "GLASSKEY_SECRET" };
}
