import type { StandingView } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Login } from "../home.ts";
import { clock, plain, type Output } from "../output.ts";

/** Says, above everything else, that nothing new can be opened, and why. A server that cannot say so is not asked twice. */
export async function sayStanding(login: Login, out: Output): Promise<StandingView | undefined> {
  const standing = await call<StandingView>(login, "GET", "/v1/health").catch(() => undefined);
  for (const { message, next, since } of standing?.shut ?? []) {
    out.say(`${out.red("CLOSED")} since ${clock(since)}: nothing new is opened: ${plain(message)}`);
    if (next !== null) out.say(`  ${plain(next)}`);
  }
  return standing;
}
