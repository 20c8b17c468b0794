import { usage } from "./errors.ts";
import { plain } from "./output.ts";

const ID = "[0-9a-hjkmnp-tv-z]{12}";
const GRANT = new RegExp(`^gr_${ID}$`);
const SESSION = new RegExp(`^se_${ID}$`);
const HOLD = new RegExp(`^ho_${ID}$`);

const shown = (text: string): string => `"${plain(text.slice(0, 40))}"`;

/** The grant that an argument names. @throws CliError before anything is asked of the server. */
export function grantArgument(args: readonly string[]): string {
  const id = args[0] ?? "";
  if (GRANT.test(id)) return id;
  throw usage(`${shown(id)} is not a grant id`, "They look like gr_7kq2m9x4tbzc; glass status lists yours.");
}

/** The session that an argument names. @throws CliError that tells a grant from a slip of the fingers. */
export function sessionArgument(args: readonly string[]): string {
  const id = args[0] ?? "";
  if (SESSION.test(id)) return id;
  if (GRANT.test(id))
    throw usage(`${id} is a grant, and this is for one session`, `Its sessions: glass sessions ${id}`);
  throw usage(`${shown(id)} is not a session id`, "They look like se_7kq2m9x4tbzc; glass sessions lists them.");
}

/** @throws CliError when the argument names neither. */
export function grantOrSessionArgument(args: readonly string[]): string {
  const id = args[0] ?? "";
  if (GRANT.test(id) || SESSION.test(id)) return id;
  const next = "They look like gr_7kq2m9x4tbzc and se_7kq2m9x4tbzc; glass status and glass sessions list them.";
  throw usage(`${shown(id)} is not the id of a grant or a session`, next);
}

/** @throws CliError when the argument names no hold. */
export function holdArgument(args: readonly string[]): string {
  const id = args[0] ?? "";
  if (HOLD.test(id)) return id;
  throw usage(`${shown(id)} is not the id of a hold`, "They look like ho_7kq2m9x4tbzc; glass holds lists them.");
}
