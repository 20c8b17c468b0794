import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { CliError } from "./errors.ts";

/** What the command line remembers between calls: one file, readable by its owner only. */
export interface Login {
  server: string;
  /** PEM of the CA that the server's certificate must chain to; absent: the machine's own authorities. */
  ca?: string;
  person: string;
  token: string;
  expiresAt: string;
}

/** The folder of everything that `glass` keeps: `GLASSKEY_HOME`, else `~/.config/glasskey`. */
function homeDir(): string {
  const dir =
    process.env["GLASSKEY_HOME"] ?? join(process.env["XDG_CONFIG_HOME"] ?? join(homedir(), ".config"), "glasskey");
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return dir;
}

const file = (): string => join(homeDir(), "login.json");

/** @throws CliError `unauthenticated` when nobody is logged in here. */
export function readLogin(): Login {
  try {
    return JSON.parse(readFileSync(file(), "utf8")) as Login;
  } catch (cause) {
    throw new CliError("unauthenticated", "you are not logged in", {
      next: "Run: glass login NAME --server https://HOST:7443 --ca FILE",
      cause,
    });
  }
}

/** The server and CA of the last login, to log in again without naming them. */
export function lastServer(): Pick<Login, "server" | "ca"> | undefined {
  try {
    return readLogin();
  } catch {
    return undefined;
  }
}

export function saveLogin(login: Login): void {
  writePrivate(file(), `${JSON.stringify(login, null, 2)}\n`);
}

export function forgetToken(): void {
  const login = lastServer();
  if (login === undefined) return;
  saveLogin({
    server: login.server,
    ...(login.ca === undefined ? {} : { ca: login.ca }),
    person: "",
    token: "",
    expiresAt: "",
  });
}

/** Where the folders of all grants are. */
export const grantsDir = (): string => join(homeDir(), "grants");

/** A folder of this grant's own for what native clients must read from files, such as the gateway's CA. */
export function grantDir(grant: string): string {
  const dir = join(grantsDir(), idOf(grant));
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return dir;
}

export function removeGrantDir(grant: string): void {
  rmSync(join(grantsDir(), idOf(grant)), { recursive: true, force: true });
}

/** An answer that names something else than a grant must never become a path. */
function idOf(grant: string): string {
  if (/^gr_[0-9a-hjkmnp-tv-z]{12}$/.test(grant)) return grant;
  throw new CliError("integrity", "the server's answer names no grant", {
    next: "Is this the right server? glass whoami",
  });
}

/** Written beside and renamed, so that a reader never sees half of it. */
export function writePrivate(path: string, text: string): void {
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, text, { mode: 0o600 });
  chmodSync(temporary, 0o600);
  renameSync(temporary, path);
}
