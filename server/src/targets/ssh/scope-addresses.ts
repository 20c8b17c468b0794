import { isIP } from "node:net";

/**
 * Where forwards may go or listen, as a scope writes it: `host:port`, `[2001:db8::1]:5432`, or the absolute path of a
 * socket. No wildcards: what passes in a forward is not recorded, so each one is named.
 */

/** What is wrong with an address; undefined for a good one. */
export function addressProblem(text: string): string | undefined {
  if (text.startsWith("/")) {
    const clean = !/[\p{C}*?]/u.test(text) && !text.split("/").some((part) => part === "." || part === "..");
    return clean && text.length > 1 ? undefined : "must be the absolute path of a socket, without wildcards, . and ..";
  }
  return parseAddress(text) === undefined
    ? "must be host:port, [IPv6 address]:port, or the absolute path of a socket, without wildcards"
    : undefined;
}

/** Whether the list names exactly that host and port. Names are compared as written, in lower case; none is looked up. */
export function listsAddress(list: readonly string[], host: string, port: number): boolean {
  const wanted = `${canonical(host)} ${port}`;
  return list.some((text) => {
    const known = text.startsWith("/") ? undefined : parseAddress(text);
    return known !== undefined && `${canonical(known.host)} ${known.port}` === wanted;
  });
}

export function listsSocket(list: readonly string[], path: string): boolean {
  return path.startsWith("/") && list.includes(path);
}

/** `host:port` of a scope in its parts. */
export function parseAddress(text: string): { host: string; port: number } | undefined {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port < 1 || port > 65_535) return undefined;
  if (match?.[1] !== undefined && isIP(host) !== 6) return undefined;
  return { host, port };
}

/** One spelling of an address: an IPv6 address has many. */
function canonical(host: string): string {
  const name = host.toLowerCase();
  return isIP(name) === 6 && !name.includes("%") ? new URL(`http://[${name}]`).hostname : name;
}
