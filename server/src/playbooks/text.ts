/** Names of people, groups, rotas, targets, playbooks, tags. Only ASCII, so no two names look alike in another script. */
const NAME = /^[a-z][a-z0-9._-]{0,62}$/;
/** Ids that other systems give a human: mail addresses, user names. Compared without regard to case. */
const ALIAS = /^[A-Za-z0-9][A-Za-z0-9._@:+/|-]{0,127}$/;
const REASON = /^[a-z][a-z0-9-]{0,39}$/;
/** Severities are the words of the incident tool, compared exactly. */
const SEVERITY = /^[A-Za-z][A-Za-z0-9_-]{0,31}$/;
/** `kind:name`, as channels and sources of evidence are called in glasskey.yaml. */
const CHANNEL = /^[a-z][a-z0-9-]{0,31}:[a-z][a-z0-9._-]{0,62}$/;

/** Code points that are not seen, or that change what is seen around them. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u115F\u1160\u3164\uFFA0\uFFFD]/u;

/** What is wrong with `text` as a name, or undefined. */
export function nameFault(text: string): string | undefined {
  if (NAME.test(text)) return undefined;
  if (text === "") return "is empty";
  const odd = oddCharacter(text);
  if (odd !== undefined) return odd;
  if (text.length > 63) return "is longer than 63 characters";
  if (/[A-Z]/.test(text)) return "has capital letters; names are lower case";
  if (!/^[a-z]/.test(text)) return "does not begin with a letter a to z";
  return "may only have a to z, 0 to 9, dot, underscore and hyphen";
}

export function aliasFault(text: string): string | undefined {
  if (ALIAS.test(text)) return undefined;
  if (text === "") return "is empty";
  return (
    oddCharacter(text) ??
    (text.length > 128 ? "is longer than 128 characters" : "may only have letters, digits and . _ @ : + / | -")
  );
}

export function reasonFault(text: string): string | undefined {
  if (REASON.test(text)) return undefined;
  return (
    oddCharacter(text) ?? "is not a reason code: a to z first, then a to z, 0 to 9 and hyphens, 40 characters at most"
  );
}

export function severityFault(text: string): string | undefined {
  if (SEVERITY.test(text)) return undefined;
  return (
    oddCharacter(text) ?? "is not a severity such as SEV1: a letter first, then letters, digits, _ and -, 32 at most"
  );
}

/** Of a channel, or of a source of evidence. */
export function channelFault(text: string): string | undefined {
  if (CHANNEL.test(text)) return undefined;
  return oddCharacter(text) ?? "is not KIND:NAME, such as slack:incidents";
}

/** What is wrong with `text` as one line for people, or undefined. */
export function lineFault(text: string, maxLength: number): string | undefined {
  if (text.trim() === "") return "is empty";
  if (text.length > maxLength) return `is longer than ${maxLength} characters`;
  const found = UNSEEN.exec(text.replace(/\n$/, ""));
  return found === null ? undefined : `has ${codePoint(found[0])}, which is not seen`;
}

/** The form in which names and aliases are compared, or undefined for what can be neither. */
export function normalName(text: string): string | undefined {
  // ASCII first: U+212A KELVIN SIGN is lower-cased to "k", and must not become one.
  return ALIAS.test(text) ? text.toLowerCase() : undefined;
}

function oddCharacter(text: string): string | undefined {
  for (const char of text) {
    if (UNSEEN.test(char)) return `has ${codePoint(char)}, which is not seen`;
    if (char > "\u007E") {
      const script = scriptOf(char);
      const mixed = /[a-z]/i.test(text) && script !== undefined ? " among Latin ones; it may only look like one" : "";
      return `has "${char}" (${codePoint(char)}${script === undefined ? "" : `, ${script}`})${mixed}`;
    }
  }
  return undefined;
}

function scriptOf(char: string): string | undefined {
  if (/\p{Script=Cyrillic}/u.test(char)) return "Cyrillic";
  if (/\p{Script=Greek}/u.test(char)) return "Greek";
  if (/\p{Script=Armenian}/u.test(char)) return "Armenian";
  if (/\p{Script=Cherokee}/u.test(char)) return "Cherokee";
  if (/[\uFF00-\uFFEF]/u.test(char)) return "full width";
  return undefined;
}

/** Such as `U+202E`. */
export function codePoint(char: string): string {
  return `U+${(char.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
}
