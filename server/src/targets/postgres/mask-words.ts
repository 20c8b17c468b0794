/**
 * What makes a text suspect of holding a secret. Too much is suspected rather than too little: what is taken for a secret
 * and is none costs a reviewer a constant, which whoever has the key can still compare; the opposite costs a password.
 */

// Every repetition is bounded: the texts are hostile, and a search must stay linear in them.
/** By a word: also in the middle of a name, such as `smtp_password` or `authtoken`. */
const WORDS = [
  ...["passw", "passphrase", "passwd", "secret", "token", "credential", "apikey", "api[_ -]key", "conninfo", "dblink"],
  "(?:access|private|signing|auth|master|service|account|storage|shared|session|client|ssh|ssl)[_ -]?key",
  "(?<![a-z])(?:pw|pwd|pass|pin|otp|totp|psk|cookie|jwt|bearer)(?![a-z])",
  ...["crypt", "hmac", "pgp_", "gen_salt", "digest", "authorization\\s{0,20}:", "identified"],
  ...["user\\s{1,99}mapping", "subscription", "options\\s{0,99}\\(", "program\\s{0,99}[e$']", "_command"],
  "connection\\s{0,99}(?:[enu]&?|\\$\\w{0,63}\\$)?'",
];
/** By the look of a value. */
const VALUES = [
  ...["scram-sha-", "(?<![a-z0-9])md5[0-9a-f]{32}", "-----begin", "://[^\\s/@'\"]{0,256}:[^\\s@'\"]{1,256}@"],
  ...[
    "(?<![a-z0-9])(?:akia|asia)[a-z0-9]{16}",
    "gh[pousr]_[a-z0-9]{20}",
    "glpat-",
    "xox[a-z]-",
    "sk_live_",
    "eyj[\\w-]{17}",
  ],
];
const SUSPECT = new RegExp([...WORDS, ...VALUES].join("|"), "i");
/** In a text that could not be read, words that are common in statements that could. */
const SUSPECT_UNREAD = /key|role|user|login|auth|grant|connect|server|alter|set|execute|do\b/i;
/** Code that makes statements of its own: what is in them is not to be seen from here. */
const CODE = /\bdo\b(?!\s+(?:nothing|update|also|instead)\b)|\bfunction\b|\bprocedure\b/i;
const MAKES_STATEMENTS = /\bexecute\b|set_config|\bchr\s*\(|\bdecode\s*\(|\bconvert_from\s*\(/i;

/** Whether a text mentions, or looks like, a secret. Also where a word is put together from parts, or written in escapes. */
export function isSuspect(text: string): boolean {
  if (SUSPECT.test(text)) return true;
  if (CODE.test(text) && MAKES_STATEMENTS.test(text)) return true;
  if (!/[\\|&]|\/\*|--/.test(text)) return false;
  if (/\buescape\b/i.test(text)) return true; // any sign may be its escape
  return SUSPECT.test(joined(text)) || SUSPECT.test(unescaped(text));
}

/** Whether a text that could not be read is one to keep nothing of. */
export function isSuspectUnread(text: string): boolean {
  return SUSPECT_UNREAD.test(text) || isSuspect(text);
}

/** Without comments, and with `'a' || 'b'` as one string. Not exact: it is only searched. */
function joined(text: string): string {
  return withoutComments(text).replaceAll(/'\s{0,99}(?:\|\|\s{0,99}(?:[eEnN]|[uU]&)?)?'/g, "");
}

function withoutComments(text: string): string {
  let kept = "";
  let at = 0;
  for (;;) {
    const start = text.indexOf("/*", at);
    const end = start < 0 ? -1 : text.indexOf("*/", start + 2);
    if (end < 0) return (kept + text.slice(at)).replaceAll(/--[^\n\r]*/g, " ");
    kept += `${text.slice(at, start)} `;
    at = end + 2;
  }
}

/** `\x70`, `\160`, `\u0070`, `\U00000070`, `\0070` and `\+000070` as what they stand for. */
function unescaped(text: string): string {
  const forms = /\\(?:x([0-9a-f]{1,2})|u([0-9a-f]{4})|U([0-9a-f]{8})|\+([0-9a-f]{6})|([0-9a-f]{4})|([0-7]{1,3}))/gi;
  return joined(
    text.replaceAll(
      forms,
      (_all, x?: string, u?: string, wide?: string, plus?: string, four?: string, octal?: string) => {
        const hex = x ?? u ?? wide ?? plus ?? four;
        const code = hex === undefined ? Number.parseInt(octal ?? "0", 8) : Number.parseInt(hex, 16);
        return code <= 0x10_ffff ? String.fromCodePoint(code) : "?";
      },
    ),
  );
}
