import { describe, expect, it } from "vitest";
import { CLASSES, GROUPS } from "./scope-classes.ts";
import { parseScope } from "./scope-schema.ts";

describe("a playbook's scope", () => {
  it("is plain JSON with every default filled in, and the same when read again", () => {
    const full = {
      role: "orders_rw",
      databases: ["orders"],
      allow: ["read"],
      never: ["ddl"],
      relations: { read: ["public.*"], write: ["orders"] },
      searchPath: ["app", "public"],
      functions: ["app.refund"],
    };
    expect(parseScope(full)).toEqual({ ok: true, value: full });
    expect(parseScope({ role: "a", relations: {} })).toEqual({
      ok: true,
      value: { role: "a", allow: ["default"], never: [], relations: { read: [], write: [] }, searchPath: ["public"] },
    });
  });

  it.each([
    [{}, ["role"], "role is missing"],
    [{ role: "r", nevr: [] }, ["nevr"], 'did you mean "never"?'],
    [{ role: "r", relations: { reed: [] } }, ["relations", "reed"], 'did you mean "read"?'],
    [{ role: "r", never: ["trunkate"] }, ["never", 0], 'did you mean "truncate"?'],
    [{ role: "r", allow: ["everything"] }, ["allow", 0], "known are select"],
    [{ role: "r", allow: ["constructor"] }, ["allow", 0], "unknown statement class"],
    [{ role: "r", allow: "read" }, ["allow"], "expected array"],
    [{ role: "pg_read_server_files" }, ["role"], "template role"],
    [{ role: "gk_a_b" }, ["role"], "template role"],
    [{ role: "postgres" }, ["role"], "template role"],
    [{ role: 'x"; drop role y; --' }, ["role"], "lower-case"],
    [{ role: "x\n" }, ["role"], "lower-case"],
    [{ role: "r", relations: { read: ["a.b.c"] } }, ["relations", "read", 0], "schema.name"],
    [{ role: "r", relations: { read: ["é"] } }, ["relations", "read", 0], "schema.name"],
    [{ role: "r", relations: { read: [""] } }, ["relations", "read", 0], "schema.name"],
    [{ role: "r", searchPath: [] }, ["searchPath"], ""],
    [{ role: "r", searchPath: ["$user"] }, ["searchPath", 0], "schema's name"],
    [{ role: "r", searchPath: ["pg_temp"] }, ["searchPath", 0], "schema's name"],
    [{ role: "r", databases: ["a b"] }, ["databases", 0], "database's name"],
    [null, [], ""],
    ["orders_rw", [], ""],
  ])("%j is refused at the right place", (input, path, message) => {
    const parsed = parseScope(input);
    const problem = parsed.ok ? undefined : parsed.problems[0];
    expect(problem).toMatchObject({ path, message: expect.stringContaining(message) as string });
  });

  it("uses no word for both a class and a group", () => {
    for (const group of Object.keys(GROUPS)) expect(Object.keys(CLASSES)).not.toContain(group);
  });
});
