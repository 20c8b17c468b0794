import { tokenAt, valueOf } from "./mask-tokens.ts";

/**
 * What makes a text suspect of holding a secret. Too much is suspected rather than too little: what is taken for a secret
 * and is none costs a reviewer a constant, which whoever has the key can still compare; the opposite costs a password.
 */

// Every repetition is bounded, and none can begin again within what another has read: the texts are hostile, and a search
// must stay linear in them.
/** By a word: also in the middle of a name, such as `smtp_password` or `authtoken`. */
const WORDS = [
  ...["passw", "passphrase", "passcode", "passkey", "pwd", "secret", "token", "credential", "apikey", "api[_ -]key"],
  ...["conninfo", "dblink", "crypt", "hmac", "pgp_", "gen_salt", "digest", "identified", "kennwort"],
  "(?:access|private|signing|auth|master|service|account|storage|shared|session|client|ssh|ssl|enc|aws|license|rsa|hash)[_ -]?key",
  "(?<![a-z])(?:pw|pass|pin|otp|totp|psk|cookie|jwt|bearer|mdp|cvv|cvc)(?![a-z])",
  "(?:user|db|my|root|admin|smtp|mail|ftp|login)(?:pass|pw)(?![a-z])",
  "authorization\\s{0,20}:",
  ...["user\\s{1,99}mapping", "subscription", "options\\s{0,99}\\(", "program\\s{0,99}[e$']", "_command"],
  "connection\\s{0,99}(?:[enu]&?|\\$\\w{0,63}\\$)?'",
];
/** By the look of a value. */
const VALUES = [
  ...["scram-sha-", "(?<![a-z0-9])md5[0-9a-f]{32}", "\\$(?:2[abxy]|5|6|y|argon2id?)\\$", "-----begin"],
  // Without a second `//`, where the search would begin again.
  "://[^\\s/@'\":]{0,256}:(?:[^\\s@'\"/]|/(?!/)){1,256}@",
  ...["(?<![a-z0-9])(?:akia|asia)[a-z0-9]{16}", "gh[pousr]_[a-z0-9]{20}", "github_pat_", "glpat-", "npm_[a-z0-9]{20}"],
  ...["xox[a-z]-", "hooks\\.slack\\.com/", "[rs]k_(?:live|test)_", "whsec_", "(?<![a-z0-9])sk-[a-z0-9_-]{16}"],
  ...["aiza[\\w-]{30}", "ya29\\.", "eyj[\\w-]{17}"],
];
const SUSPECT = new RegExp([...WORDS, ...VALUES].join("|"), "i");
/** In a text that could not be read, words that are common in statements that could. */
const SUSPECT_UNREAD = /key|role|user|login|auth|grant|connect|server|alter|set|execute|do\b/i;
/** Code that makes statements of its own: what is in them is not to be seen from here. */
const CODE = /\bdo\b(?!\s+(?:nothing|update|also|instead)\b)|\bfunction\b|\bprocedure\b/i;
const MAKES_STATEMENTS = /\bexecute\b|set_config|\bchr\s*\(|\bdecode\s*\(|\bconvert_from\s*\(/i;

/** A longer text is not taken apart, which would hold up every other session: that it could be is enough to suspect it. */
const MAX_TAKEN_APART = 2 * 1024 * 1024;
/** A longer one is not even searched. */
const MAX_SEARCHED = 16 * 1024 * 1024;
/** Strings within strings that are taken apart. */
const MAX_DEPTH = 3;

/** Whether a text mentions, or looks like, a secret. Also where a word is put together from parts, or written in escapes. */
export function isSuspect(text: string): boolean {
  if (text.length > MAX_SEARCHED || SUSPECT.test(text)) return true;
  if (CODE.test(text) && MAKES_STATEMENTS.test(text)) return true;
  if (!/[\\|&]|\/\*|--/.test(text)) return false;
  if (text.length > MAX_TAKEN_APART) return true;
  if (/\buescape\b/i.test(text)) return true; // any sign may be its escape
  const whole = joined(text, 0);
  if (SUSPECT.test(whole)) return true;
  // By turns, because `\160a` is an octal escape in E'…' and four hexadecimal digits in U&'…'.
  return whole.includes("\\") && (SUSPECT.test(unescaped(whole)) || SUSPECT.test(withoutUnicode(whole)));
}

/** Whether a text that could not be read is one to keep nothing of. */
export function isSuspectUnread(text: string): boolean {
  if (SUSPECT_UNREAD.test(text) || isSuspect(text)) return true;
  return text.includes("\0") && isSuspectUnread(text.replaceAll("\0", "")); // such as UTF-16
}

/** Without comments, and with `'a' || 'b'` as one string, in whatever form. Not exact: it is only searched. */
function joined(text: string, depth: number): string {
  let kept = "";
  let copied = 0;
  const put = (end: number, instead: string, next: number): void => {
    kept += text.slice(copied, end) + instead;
    copied = next;
  };
  for (let at = 0; at < text.length;) {
    const token = tokenAt(text, at);
    at = token.end;
    if (token.kind === "comment" || (token.kind === "blank" && token.end - token.start > 1)) put(token.start, " ", at);
    if (token.kind !== "string" || text.charCodeAt(token.start) === 39) continue;
    const value = valueOf(text, token).replace(/^(?:u&|[a-z])'/i, "'");
    const isBody = text.charCodeAt(token.start) === 36 && depth < MAX_DEPTH;
    put(token.start, isBody ? `'${joined(value, depth + 1)}'` : value.startsWith("'") ? value : `'${value}'`, at);
  }
  put(text.length, "", text.length);
  return kept.replaceAll(/'\s{0,9}(?:::\s{0,9}\w{1,30}\s{0,9})?\)?\s{0,9}(?:\|\|\s{0,9}\(?\s{0,9})?'/g, "");
}

/** `\x70`, `\160`, `\u0070`, `\U00000070`, and `\p`, which is a `p`. */
const ESCAPES = /\\(?:x([0-9a-f]{1,2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([0-7]{1,3})|([^]))/gi;
/** `\0070` and `\+000070`. */
const UNICODE = /\\(?:([0-9a-f]{4})|\+([0-9a-f]{6}))/gi;

function unescaped(text: string): string {
  return text.replaceAll(ESCAPES, (_all, x?: string, u?: string, wide?: string, octal?: string, plain?: string) =>
    octal === undefined ? (plain ?? character(x ?? u ?? wide)) : character(octal, 8),
  );
}

function withoutUnicode(text: string): string {
  return text.replaceAll(UNICODE, (_all, four?: string, six?: string) => character(four ?? six));
}

function character(digits = "", radix = 16): string {
  const code = Number.parseInt(digits, radix);
  return code <= 0x10_ffff ? String.fromCodePoint(code) : "?";
}
