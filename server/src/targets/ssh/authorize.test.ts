import { describe, expect, test } from "vitest";
import { authorize, type Question } from "./authorize.ts";
import { cleanPath, compileGlobs, globProblem } from "./paths.ts";
import { parseScope } from "./scope.ts";
import { scopeFor } from "./fixtures/file-proxies.ts";

const file = (op: Extract<Question, { ask: "file" }>["op"], path: string, path2?: string): Question => ({
  ...{ ask: "file", op, path },
  ...(path2 === undefined ? {} : { path2 }),
});
const ALL: readonly Question[] = [
  ...(["shell", "pty", "agent", "x11"] as const).map((ask) => ({ ask })),
  { ask: "exec", command: "id" },
  { ask: "exec", command: "scp -t -- /w/x" },
  { ask: "exec", command: "scp -f -- /r/x" },
  { ask: "exec", command: "rsync --server . /w" },
  { ask: "subsystem", name: "sftp" },
  { ask: "subsystem", name: "netconf" },
  { ask: "env", name: "PATH" },
  { ask: "env", name: "LC_GLASSKEY" },
  ...(["direct-tcpip", "tcpip-forward"] as const).map((ask) => ({ ask, host: "db", port: 5432 })),
  ...(["direct-streamlocal", "streamlocal-forward"] as const).map((ask) => ({ ask, path: "/run/x" })),
  ...(["look", "read", "list", "write", "attributes", "remove", "mkdir", "rmdir"] as const).map((op) =>
    file(op, "/w/x"),
  ),
  ...(["rename", "link", "symlink"] as const).map((op) => file(op, "/w/x", "/w/y")),
  { ask: "signal", name: "no signal" },
  { ask: "unknown", what: "anything" },
];

describe("the one decision", () => {
  test("an empty scope allows nothing at all", () => {
    const scope = scopeFor({});
    expect(ALL.filter((question) => authorize(question, scope).ok)).toEqual([]);
  });

  test("each refusal says what to do", () => {
    const scope = scopeFor({});
    for (const question of ALL) {
      const verdict = authorize(question, scope);
      expect(!verdict.ok && verdict.reason.length > 5 && verdict.next.length > 5, JSON.stringify(question)).toBe(true);
    }
  });

  test("lesson 15: each permission opens its own channels and no other's", () => {
    const opens = (scope: Record<string, unknown>): string[] =>
      ALL.filter((question) => authorize(question, scopeFor(scope)).ok).map((question) =>
        question.ask === "file" ? `file ${question.op}` : "command" in question ? question.command : question.ask,
      );
    expect(opens({ commands: ["id"] })).toEqual(["pty", "id"]);
    expect(opens({ agent: true })).toEqual(["agent"]);
    expect(opens({ x11: true })).toEqual(["x11"]);
    expect(opens({ forward: ["db:5432"] })).toEqual(["direct-tcpip"]);
    expect(opens({ remoteForward: ["db:5432"] })).toEqual(["tcpip-forward"]);
    expect(opens({ forward: ["/run/x"] })).toEqual(["direct-streamlocal"]);
    expect(opens({ env: ["PAT*"] })).toEqual(["env"]);
    expect(opens({ sftp: { read: ["/r/**"] } })).toEqual(["scp -f -- /r/x", "subsystem"]);
    expect(opens({ sftp: { write: ["/w/**"] } })).toEqual([
      ...["scp -t -- /w/x", "subsystem", "file look", "file write", "file attributes", "file remove", "file mkdir"],
      ...["file rmdir", "file rename", "file link", "file symlink"],
    ]);
    // A shell is any command, and no file channel, forward or agent.
    expect(opens({ shell: true })).toEqual([
      "shell",
      "pty",
      "id",
      "scp -t -- /w/x",
      "scp -f -- /r/x",
      "rsync --server . /w",
    ]);
  });

  test("a command runs as the arguments that were judged, quoted anew", () => {
    const scope = scopeFor({ commands: ["echo **"] });
    expect(authorize({ ask: "exec", command: 'echo  "a b"' }, scope)).toMatchObject({
      ok: true,
      run: "'echo' 'a b'",
      via: "exec",
    });
    expect(authorize({ ask: "exec", command: "echo $(id)" }, scope).ok).toBe(false);
    expect(authorize({ ask: "exec", command: "echo a;id" }, scope).ok).toBe(false);
  });

  test("a hard link or a new name does not make readable what was not", () => {
    const scope = scopeFor({ sftp: { read: ["/d/out/**"], write: ["/d/**"] } });
    expect(authorize(file("read", "/d/secret"), scope).ok).toBe(false);
    expect(authorize(file("rename", "/d/secret", "/d/out/x"), scope).ok).toBe(false);
    expect(authorize(file("link", "/d/secret", "/d/out/x"), scope).ok).toBe(false);
    expect(authorize(file("rename", "/d/out/x", "/d/y"), scope).ok).toBe(true);
  });

  test("mosh is refused in words, also under a shell", () => {
    for (const scope of [scopeFor({ shell: true }), scopeFor({ commands: ["mosh-server new"] })]) {
      expect(authorize({ ask: "exec", command: "mosh-server new" }, scope)).toMatchObject({
        ok: false,
        reason: expect.stringContaining("UDP"),
      });
    }
  });

  test("forwards are named exactly, however an address is spelt", () => {
    const scope = scopeFor({ forward: ["DB.example:5432", "[2001:db8::1]:80"] });
    const asks = (host: string, port: number): boolean => authorize({ ask: "direct-tcpip", host, port }, scope).ok;
    expect([asks("db.example", 5432), asks("2001:db8:0:0::1", 80)]).toEqual([true, true]);
    expect([
      asks("db.example", 5433),
      asks("db.example.evil", 5432),
      asks("", 5432),
      asks("2001:db8::1%eth0", 80),
    ]).toEqual([false, false, false, false]);
  });
});

describe("globs of a playbook", () => {
  test.each<[string, string, boolean]>([
    ["/var/log/**", "/var/log/a/b", true],
    ["/var/log/**", "/var/log", false],
    ["/var/log/**", "/var/logs/a", false],
    ["/var/log/*", "/var/log/a/b", false],
    ["/var/**/x.log", "/var/x.log", true],
    ["/var/**/x.log", "/var/a/b/x.log", true],
    ["/home/app/**", "/home/app/.ssh/authorized_keys", false],
    ["/home/app/*", "/home/app/.bashrc", false],
    ["/home/app/.b*", "/home/app/.bashrc", true],
    ["/a/?.log", "/a/x.log", true],
    ["/a/?.log", "/a/xy.log", false],
    ["/**", "/etc/shadow", true],
    ["/etc/app.conf", "/etc/app.conf", true],
    ["/etc/app.conf", "/etc/appxconf", false],
  ])("%s and %s: %s", (glob, path, expected) => {
    expect(globProblem(glob)).toBeUndefined();
    expect(compileGlobs([glob]).matches(path)).toBe(expected);
  });

  test.each([
    "var/log",
    "",
    "/a/../b",
    "/a//b",
    "/a/",
    "/a/**b",
    "/a/[b]",
    "/{a,b}",
    "/a\\b",
    "/**/**/**/**/**",
    "/a\nb",
  ])("that says something else than it seems is a mistake: %j", (glob) =>
    expect(globProblem(glob)).toBeTypeOf("string"),
  );

  test("paths are resolved by their text before they are compared", () => {
    expect(cleanPath("/a/./b//../c")).toEqual({ ok: true, path: "/a/c" });
    expect(cleanPath("../../../etc", "/home/app")).toEqual({ ok: true, path: "/etc" });
    expect(cleanPath("x")).toMatchObject({ ok: false });
    expect(cleanPath("/a\0b")).toMatchObject({ ok: false });
  });

  test("a glob of many wildcards takes no more time for a long path that nearly fits", () => {
    const glob = `/**/a*a*a*a*a*b/**/c/**/d`;
    expect(compileGlobs([glob]).matches(`/${"a".repeat(200)}`.repeat(200))).toBe(false);
  });
});

describe("a scope as it is written", () => {
  test("fills in that nothing is allowed", () => {
    expect(parseScope({ user: "app" })).toEqual({
      ok: true,
      value: {
        ...{
          user: "app",
          shell: false,
          commands: [],
          forward: [],
          remoteForward: [],
          agent: false,
          x11: false,
          env: [],
        },
        files: "digest",
      },
    });
  });

  test.each<[unknown, readonly (string | number)[], string]>([
    [{}, ["user"], "user is missing"],
    [{ user: "root; id" }, ["user"], "must be an account's name"],
    [{ user: "app", comands: [] }, ["comands"], 'did you mean "commands"?'],
    [{ user: "app", sftp: { raed: [] } }, ["sftp", "raed"], 'did you mean "read"?'],
    [{ user: "app", commands: ["* x"] }, ["commands", 0], "written out"],
    [{ user: "app", sftp: { read: ["log"] } }, ["sftp", "read", 0], "absolute path"],
    [{ user: "app", forward: ["*:80"] }, ["forward", 0], "without wildcards"],
    [{ user: "app", forward: ["db:0"] }, ["forward", 0], "host:port"],
    [{ user: "app", env: ["LC_GLASSKEY"] }, ["env", 0], "Glasskey's own"],
    [{ user: "app", shell: "yes" }, ["shell"], "boolean"],
  ])("says where the mistake is: %j", (input, path, message) => {
    const parsed = parseScope(input);
    expect(parsed).toMatchObject({ ok: false, problems: [{ path, message: expect.stringContaining(message) }] });
  });
});
