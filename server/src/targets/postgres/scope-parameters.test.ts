import { beforeAll, describe, expect, it } from "vitest";
import { splitIdentifiers } from "./scope-parameters.ts";
import { compileScope, loadParser } from "./scope.ts";

beforeAll(() => loadParser());
const scope = compileScope({ role: "r" });

describe("startup parameters", () => {
  it.each([
    ["application_name", "psql"],
    ["client_encoding", "UTF8"],
    ["client_encoding", "'utf-8'"],
    ["client_encoding", "unicode"],
    ["DateStyle", "ISO, MDY"],
    ["TimeZone", "Europe/Berlin"],
    ["extra_float_digits", "2"],
    ["search_path", "a, b"],
    ["statement_timeout", "5000"],
    ["standard_conforming_strings", "on"],
    ["default_transaction_isolation", "serializable"],
    ["enable_seqscan", "off"],
    ["jit", "off"],
    ["app.tenant", "7"],
    ["options", ""],
    ["options", "-c statement_timeout=5s -cwork_mem=64MB --jit=off"],
    ["options", "-c  search_path=a\\ b -c app.x=1"],
    ["options", "--statement-timeout=5"],
  ])("lets %s = %s through", (name, value) => {
    expect(scope.parameter(name, value)).toEqual({ ok: true, classes: [] });
  });

  it.each([
    ["role", "orders_rw"],
    ["ROLE", "orders_rw"],
    ["session_authorization", "postgres"],
    ["client_encoding", "LATIN1"], // the recording would show another text than ran
    ["client_encoding", "SQL_ASCII"], // that, where the database's encoding is another than UTF8
    ["client_encoding", "WIN1252"],
    ["client_encoding", "SJIS"],
    ["client_encoding", "GBK"],
    ["client_encoding", "big-5"],
    ["client_encoding", ""],
    ["standard_conforming_strings", "off"],
    ["session_replication_role", "replica"],
    ["local_preload_libraries", "x"],
    ["log_statement", "none"],
    [`app.${"a".repeat(60)}`, "x"],
    ["options", "-c client_encoding=latin1"],
    ["constructor", "x"],
    ["__proto__", "x"],
    ["", ""],
    ["options", "-c role=x"],
    ["options", "-crole=x"],
    ["options", "--role=x"],
    ["options", "--session-authorization=x"],
    ["options", "-c jit=off -c ro\\le=x"],
    ["options", "-c standard_conforming_strings=off"],
    ["options", "-c options=x"],
    ["options", "-c"],
    ["options", "-d 5"],
    ["options", "-e"],
    ["options", "jit=off"],
  ])("refuses %s = %s", (name, value) => {
    expect(scope.parameter(name, value)).toMatchObject({ ok: false });
  });

  it("may be asked about what the server reports, where the two would read statements differently", () => {
    for (const [name, value, ok] of [
      ["standard_conforming_strings", "on", true],
      ["standard_conforming_strings", "off", false],
      ["client_encoding", "UTF8", true],
      ["client_encoding", "GB18030", false],
    ] as const) {
      expect(scope.parameter(name, value).ok, `${name} ${value}`).toBe(ok);
    }
  });
});

describe("a list of names, as search_path has it", () => {
  it.each([
    ["", []],
    ["a", ["a"]],
    ['A, "B" ,c', ["a", "B", "c"]],
    ['""', [""]],
    ['"a""b"', ['a"b']],
    ['"$user", public', ["$user", "public"]],
    ["a,", undefined],
    ["a b", undefined],
    ['"a', undefined],
    ['a"b"', undefined],
    ["a\u00a0", ["a\u00a0"]], // no blank for PostgreSQL
    ["\u2003", ["\u2003"]],
    ["\u212aey", ["\u212aey"]], // the Kelvin sign, of which toLowerCase() makes a k
    ["É", ["É"]],
    ["a".repeat(64), undefined],
  ])("%s", (text, names) => expect(splitIdentifiers(text)).toEqual(names));
});
