import { createSocket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { once } from "node:events";
import { GlassError } from "../../core/errors.ts";
import type { SshConfig } from "./config.ts";

const MAX_ADDRESSES = 8; // of one name; each may be reached from another address of ours

/**
 * The addresses from which the host sees this machine: as its target file says, else as the routes to it say. No packet is
 * sent: a UDP socket that is connected has taken the address that packets would leave from.
 * @throws GlassError `target_unreachable` when there is no way to it
 */
export async function sourceAddresses(to: Pick<SshConfig, "host" | "port" | "from">): Promise<readonly string[]> {
  if (to.from.length > 0) return to.from;
  const found = new Set<string>();
  for (const { address, family } of (await addressesOf(to.host)).slice(0, MAX_ADDRESSES)) {
    const own = await ownAddress(address, family, to.port);
    if (own !== undefined) found.add(own);
  }
  if (found.size > 0) return [...found].toSorted();
  throw new GlassError("target_unreachable", `there is no way to ${to.host}:${to.port}`, {
    next: "Check `host:` in the target file, routes and firewalls; or say with `from:` how the host sees the gateway.",
  });
}

async function addressesOf(host: string): Promise<readonly { address: string; family: number }[]> {
  const version = isIP(host);
  if (version !== 0) return [{ address: host, family: version }];
  try {
    return await lookup(host, { all: true });
  } catch (error) {
    throw new GlassError("target_unreachable", `the name ${host} cannot be looked up`, {
      next: "Correct `host:` in the target file, or the name service of this machine.",
      cause: error,
    });
  }
}

async function ownAddress(address: string, family: number, port: number): Promise<string | undefined> {
  const socket = createSocket(family === 6 ? "udp6" : "udp4");
  try {
    const connected = once(socket, "connect"); // rejects on "error"
    socket.connect(port, address);
    await connected;
    const own = socket.address().address.replace(/%.*$/, "");
    return isIP(own) === 0 ? undefined : own;
  } catch {
    return undefined; // no route in this family
  } finally {
    socket.close();
  }
}
