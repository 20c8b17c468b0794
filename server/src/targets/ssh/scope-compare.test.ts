import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { JsonObject } from "../../core/json.ts";
import { authorize, type FileOp, type Question } from "./authorize.ts";
import { quoteCommand } from "./patterns.ts";
import { compareScopes } from "./scope-compare.ts";
import { parseScope, scopeOf } from "./scope.ts";

const SLOW_MS = 300_000; // some seconds by itself; other tests run at the same time

function scope(of: Record<string, unknown>): JsonObject {
  const parsed = parseScope({ user: "app", ...of });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return parsed.value;
}

/** Each change in a line. */
function told(before: Record<string, unknown>, after: Record<string, unknown>): readonly string[] {
  return compareScopes(scope(before), scope(after)).map(({ key, effect, what }) => `${effect} ${key}: ${what}`);
}

describe("which way a scope of a host went", () => {
  test("is told of permissions, accounts and what is recorded", () => {
    expect(told({}, {})).toEqual([]);
    expect(told({}, { shell: true })).toEqual(["wider shell: false → true"]);
    expect(told({ shell: true, agent: true }, { x11: true })).toEqual([
      "narrower shell: true → false",
      "narrower agent: true → false",
      "wider x11: false → true",
    ]);
    expect(told({}, { user: "root" })).toEqual(["other user: another account on the host: app → root"]);
    expect(told({ files: "keep" }, {})).toEqual(["wider files: keep → digest (what is recorded of files)"]);
  });

  test("is told of globs as what they match, and not as texts", () => {
    const read = (before: readonly string[], after: readonly string[]): readonly string[] =>
      told({ sftp: { read: before } }, { sftp: { read: after } });
    expect(read(["/var/log/**"], ["/var/log/app/*.log", "/var/log/syslog"])).toEqual([
      "narrower sftp.read: not /var/log/** any more, only /var/log/app/*.log, /var/log/syslog",
    ]);
    expect(read(["/var/log/app/*.log"], ["/var/log/**"])).toEqual([
      "wider sftp.read: also /var/log/** (such as /var/log/x)",
    ]);
    // A dot is only where the glob writes it.
    expect(read(["/home/app/**"], ["/home/app/.ssh/*"])).toEqual([
      "wider sftp.read: also /home/app/.ssh/* (such as /home/app/.ssh/x)",
      "narrower sftp.read: not /home/app/** any more",
    ]);
    // Two together are as much as one.
    expect(read(["/a/**"], ["/a/*", "/a/*/**"])).toEqual(["same sftp.read: also /a/*, /a/*/**: allowed already"]);
    expect(read(["/a/*", "/a/*/**"], ["/a/**"])).toEqual(["same sftp.read: also /a/**: allowed already"]);
    expect(told({}, { sftp: {} })).toEqual(["same sftp: names no file, or is left out"]);
  });

  test("is told of attributes on the way, and of names that may be taken once they are readable to nobody", () => {
    expect(told({ sftp: { read: ["/a/*/c/d"] } }, { sftp: { read: ["/a/b/c/d"] } })).toEqual([
      "narrower sftp.read: not /a/*/c/d any more, only /a/b/c/d",
      "wider sftp: attributes of the folder /a/b can be looked at",
    ]);
    expect(
      told({ sftp: { read: ["/a/**"], write: ["/a/**", "/b/**"] } }, { sftp: { write: ["/a/**", "/b/**"] } }),
    ).toEqual([
      "narrower sftp.read: not /a/** any more",
      "other sftp: more may be renamed: less is to be read or written where it comes to, such as /b/x to /a/x",
    ]);
  });

  test("is told of commands word by word", () => {
    const commands = (before: readonly string[], after: readonly string[]): readonly string[] =>
      told({ commands: before }, { commands: after });
    expect(commands(["systemctl restart <name>"], ["systemctl restart app"])).toEqual([
      "narrower commands: not systemctl restart <name> any more, only systemctl restart app",
    ]);
    expect(commands(["systemctl restart app"], ["systemctl restart *"])).toEqual([
      "wider commands: also systemctl restart *",
    ]);
    expect(commands(["tail **"], ["tail -f"])).toEqual([
      "wider commands: also tail -f",
      "narrower commands: not tail ** any more",
    ]);
    expect(commands(["ls ..."], ["ls", "ls -l **"])).toEqual([
      "narrower commands: not ls ... any more, only ls, ls -l **",
    ]);
    expect(commands(["ls *"], ["ls ..."])).toEqual(["wider commands: also ls ..."]);
    expect(commands(["'ls'"], ["ls"])).toEqual(["same commands: also ls: allowed already"]);
    expect(commands(["cat <number>", "cat <name>"], ["cat 1<name>"])).toEqual([
      "narrower commands: not cat <number>, cat <name> any more, only cat 1<name>",
    ]);
    // A shell is any command.
    expect(told({ shell: true }, { shell: true, commands: ["ls"] })).toEqual([
      "same commands: also ls: allowed already",
    ]);
    expect(told({ shell: true }, { commands: ["ls"] })).toEqual([
      "narrower shell: true → false",
      "same commands: also ls: allowed already",
    ]);
  });

  test("is told of forwards and variables", () => {
    expect(told({ forward: ["DB:5432", "[::1]:80"] }, { forward: ["db:5432", "[0:0::1]:80"] })).toEqual([
      "same forward: also db:5432, [0:0::1]:80: allowed already",
    ]);
    expect(told({ forward: ["db:5432"] }, { forward: ["db:5433"], remoteForward: ["/run/x"] })).toEqual([
      "wider forward: also db:5433",
      "narrower forward: not db:5432 any more",
      "wider remoteForward: also /run/x",
    ]);
    expect(told({ env: ["APP_*"] }, { env: ["APP_MODE", "APP_X*", "LANG"] })).toEqual([
      "narrower env: not APP_* any more, only APP_MODE, APP_X*, LANG",
    ]);
    expect(told({ env: ["APP_X"] }, { env: ["APP_X*"] })).toEqual(["wider env: also APP_X*"]);
  });

  test("is not told for certain where that would take too long: it needs eyes", () => {
    const globs = Array.from({ length: 60 }, (_, i) => `/*a${"?".repeat(12 + (i % 5))}/**/b${i}/**/*c*d*/**`);
    const found = compareScopes(scope({ sftp: { read: globs } }), scope({ sftp: { read: ["/**/b/**/*a*c*d*/**/*"] } }));
    expect(found.some(({ effect }) => effect === "wider" || effect === "other")).toBe(true);
  });

  test("two scopes that cannot be read need eyes", () => {
    expect(compareScopes({ nonsense: 1 }, scope({}))).toMatchObject([{ effect: "other" }]);
  });

  test(
    "where no change is wider or needs eyes, whatever the new scope allows the old one allowed",
    () => {
      const count = { narrower: 0, asked: 0, gained: 0 };
      fc.assert(
        fc.property(versions, fc.array(question, { minLength: 40, maxLength: 40 }), ([before, after], questions) => {
          const changes = compareScopes(before, after);
          const proved = changes.every(({ effect }) => effect !== "wider" && effect !== "other");
          if (changes.length === 0) expect(after).toEqual(before);
          if (proved && changes.length > 0) count.narrower++;
          const [old, next] = [scopeOf(before), scopeOf(after)];
          for (const asked of questions) {
            if (!authorize(asked, next).ok) continue;
            count.asked++;
            const gained = !authorize(asked, old).ok;
            if (gained) count.gained++;
            if (gained && proved) throw new Error(`gained: ${JSON.stringify(asked)} ${JSON.stringify(changes)}`);
          }
        }),
        { numRuns: 2_000 },
      );
      // Else nothing was tried.
      expect(count.narrower).toBeGreaterThan(200);
      expect(count.gained).toBeGreaterThan(500);
    },
    SLOW_MS,
  );

  test(
    "an example of what is wider is allowed only now",
    () => {
      let examples = 0;
      fc.assert(
        fc.property(versions, ([before, after]) => {
          const [old, next] = [scopeOf(before), scopeOf(after)];
          for (const { key, effect, what } of compareScopes(before, after)) {
            if (effect !== "wider" || (key !== "sftp.read" && key !== "sftp.write")) continue;
            for (const [, path = ""] of what.matchAll(/\(such as ([^)]+)\)/g)) {
              if (path.split("/").some((name) => name === "." || name === "..")) continue;
              const asked = { ask: "file", op: key === "sftp.read" ? "read" : "write", path } as const;
              expect([authorize(asked, next).ok, authorize(asked, old).ok], JSON.stringify({ asked, what })).toEqual([
                true,
                false,
              ]);
              examples++;
            }
          }
        }),
        { numRuns: 1_000 },
      );
      expect(examples).toBeGreaterThan(100);
    },
    SLOW_MS,
  );
});

// -------------------------------------------------------------------------------------------------------- what is tried

const some = <T>(...items: readonly T[]): fc.Arbitrary<T> => fc.constantFrom(...items);
const list = <T>(of: fc.Arbitrary<T>, most = 3): fc.Arbitrary<T[]> => fc.array(of, { maxLength: most });

const glob = fc
  .array(some("a", "b", ".a", "*", "**", "**", "?", "a*", "*b", "?b", ".*", "a?", "*.b", "*a*"), {
    minLength: 1,
    maxLength: 4,
  })
  .map((names) => `/${names.join("/")}`);
const command = fc
  .tuple(
    some("ls", "cat", "'l s'"),
    list(
      some(
        "a",
        "-a",
        "-*",
        "*",
        "**",
        "<name>",
        "<number>",
        "a*",
        "'a b'",
        "*/*",
        "a/**",
        "**/",
        "<name>.<name>",
        "*a",
        "1*",
      ),
    ),
    some("", "", " ..."),
  )
  .map(([program, words, end]) => [program, ...words].join(" ") + end);
const document = fc.record(
  {
    shell: some(false, false, false, true),
    commands: list(command),
    sftp: fc.record({ read: list(glob), write: list(glob) }),
    forward: list(some("db:1", "DB:1", "db:2", "[::1]:1", "/run/a")),
    remoteForward: list(some("db:1", "/run/a", "/run/b")),
    agent: fc.boolean(),
    env: list(some("A*", "AB", "AB*", "LANG", "LC_*", "LC_X", "B")),
    files: some("digest" as const, "keep" as const),
  },
  { requiredKeys: [] },
);

/** Two scopes: of chance, or with one key taken from another, or with fewer or changed items in it. */
const versions: fc.Arbitrary<readonly [JsonObject, JsonObject]> = fc
  .tuple(
    document,
    document,
    some("all", "commands", "sftp", "shell", "env", "forward", "fewer", "fewer"),
    fc.infiniteStream(fc.boolean()),
  )
  .map(([one, two, how, coins]) => {
    const fewer = <T>(items: readonly T[]): readonly T[] => items.filter(() => coins.next().value === true);
    const after =
      how === "all"
        ? two
        : how === "fewer"
          ? {
              ...one,
              ...(one.commands === undefined ? {} : { commands: fewer(one.commands) }),
              ...(one.sftp === undefined ? {} : { sftp: { read: fewer(one.sftp.read), write: fewer(one.sftp.write) } }),
            }
          : { ...one, [how]: two[how as keyof typeof two] };
    const plain = (from: object): JsonObject => scope(JSON.parse(JSON.stringify(from)) as JsonObject);
    return [plain(one), plain(after)];
  });

const path = fc
  .array(some("a", "b", ".a", "ab", "aa", "a.b", "b.b", "x", "xb"), { maxLength: 4 })
  .map((names) => `/${names.join("/")}`);
const op = some<FileOp>("look", "read", "list", "write", "rename", "rename", "link", "symlink", "mkdir");
const argument = some(
  "a",
  "-a",
  "-b",
  "ab",
  "a b",
  "a/b",
  "a/..",
  "a/.",
  "a/",
  "a/b/",
  "1",
  "11",
  "1a",
  "",
  "x",
  "x.y",
  ".",
  "\n",
  "a/a/a",
  "/",
);
const question: fc.Arbitrary<Question> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ ask: fc.constant("file" as const), op, path, path2: path, folder: some(true, false) }),
  },
  {
    weight: 4,
    arbitrary: fc
      .tuple(some("ls", "cat", "l s"), list(argument))
      .map(([program, words]): Question => ({ ask: "exec", command: quoteCommand([program, ...words]) })),
  },
  fc
    .tuple(some("-t", "-f", "-r -t"), path)
    .map(([flags, at]): Question => ({ ask: "exec", command: `scp ${flags} ${at}` })),
  some<Question>(
    ...(["shell", "pty", "agent", "x11"] as const).map((ask): Question => ({ ask })),
    ...["sftp", "other"].map((name): Question => ({ ask: "subsystem", name })),
    ...["A", "AB", "ABC", "LANG", "LC_X", "LC_xx", "B", "LC_GLASSKEY"].map((name): Question => ({ ask: "env", name })),
    { ask: "exec", command: "mosh-server" },
    { ask: "exec", command: "ls | sh" },
    { ask: "direct-tcpip", host: "db", port: 1 },
    { ask: "direct-tcpip", host: "::1", port: 1 },
    { ask: "tcpip-forward", host: "db", port: 1 },
    { ask: "direct-streamlocal", path: "/run/a" },
    { ask: "streamlocal-forward", path: "/run/b" },
  ),
);
