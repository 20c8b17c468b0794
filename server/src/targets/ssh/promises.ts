import type { JsonObject } from "../../core/json.ts";
import type { Promises } from "../target.ts";
import { CERTIFICATE_MS, configOf } from "./config.ts";

/**
 * With a control login Glasskey ends what a lease's sessions left on the host, and sshd itself refuses the lease. Without one
 * the gateway cuts the connection, but nobody can say what goes on running; proof waits until the last certificate has expired.
 */
export function promisesOf(config: JsonObject): Promises {
  const { control } = configOf(config);
  return control === null
    ? { nativeExpiry: "login", killsLiveSessions: false, worstCaseRevokeMs: 2 * CERTIFICATE_MS }
    : { nativeExpiry: "login", killsLiveSessions: true, worstCaseRevokeMs: 60_000 };
}
