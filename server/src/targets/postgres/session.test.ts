import { randomBytes } from "node:crypto";
import { connect } from "node:net";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { GlassError } from "../../core/errors.ts";
import { PG15_BIN } from "../../../testing/global.ts";
import { startTestTarget, type TestTarget } from "../../../testing/target.ts";
import { RECORD } from "../target.ts";
import {
  createLeaseRole,
  startTestGateway,
  texts,
  type LeaseRole,
  type TestGateway,
  type TestGatewayOptions,
} from "./fixtures/gateway.ts";
import { compileScope } from "./scope.ts";
import type { ServeParts } from "./session.ts";
import { answersOf, openRaw, openSocket, say, type Answer, type RawClient } from "./fixtures/raw-client.ts";
import { readExactly } from "./intake.ts";
import * as wire from "./wire.ts";

const Z = wire.BACKEND.readyForQuery;
const lines = (answers: readonly Answer[]): string[] => answers.map((a) => a.text);

/** Also Debian's PostgreSQL 15, where it is installed. */
const VERSIONS: readonly (readonly [version: string, binDir: string | undefined])[] = [
  ["18", undefined],
  ...(PG15_BIN === undefined ? [] : [["15", PG15_BIN] as const]),
];

describe.each(VERSIONS)("PostgreSQL %s", (_, binDir) => {
  let target: TestTarget;
  let lease: LeaseRole;
  let gateway: TestGateway;
  const database = `orders_${randomBytes(4).toString("hex")}`;
  const clients: RawClient[] = [];
  const gateways: TestGateway[] = [];

  const startGateway = async (more: Partial<TestGatewayOptions> = {}): Promise<TestGateway> => {
    const started = await startTestGateway({
      ...{ target, role: lease.role, rolePassword: lease.password, databases: [database, "postgres"], ...more },
    });
    gateways.push(started);
    return started;
  };
  const open = async (options?: Parameters<typeof openRaw>[1], through = gateway): Promise<RawClient> => {
    const client = await openRaw(through, options);
    clients.push(client);
    return client;
  };

  beforeAll(async () => {
    target = await startTestTarget(binDir === undefined ? {} : { binDir });
    lease = await createLeaseRole((sql) => target.query(sql), { database });
    await target.query("create table t (i int primary key, v text)", { database });
    await target.query(`alter table t owner to ${lease.role}`, { database });
    gateway = await startGateway();
  });
  afterEach(() => {
    for (const client of clients.splice(0)) client.close();
  });
  afterAll(async () => {
    for (const started of gateways) await started.close();
    await target.dispose();
  });

  describe("the way in", () => {
    test.each(["plain", "ssl", "direct"] as const)(
      "%s: a client that proves its secret gets its session",
      async (via) => {
        const client = await open({ via });
        client.send(say.query("select current_database()"));
        expect(lines(await client.until(Z))).toEqual(["T", "D", "C SELECT 1", "Z I"]);
      },
    );

    test("TLS only: plain text is told how to come in, and no secret is asked for", async () => {
      const strict = await startGateway({ plaintextAllowed: false });
      await expect(open({ via: "plain" }, strict)).rejects.toThrow(/over TLS only/);
      expect((await open({ via: "ssl" }, strict)).key.pid).toBeGreaterThan(0);
    });

    test("direct TLS without the ALPN of PostgreSQL is refused", async () => {
      await expect(openSocket(gateway.port, "direct", ["http/1.1"])).rejects.toThrow(
        /no application protocol|handshake failed/,
      );
      const unnamed = openSocket(gateway.port, "direct", []).then((socket) => readExactly(socket, 1));
      await expect(unnamed).rejects.toThrow(/closed|handshake failed/);
    });

    test("GSSAPI encryption is declined, and TLS may follow", async () => {
      const socket = await openSocket(gateway.port, "plain");
      socket.write(wire.encodeFirstPacket(80_877_104));
      expect((await readExactly(socket, 1)).toString()).toBe("N");
      socket.write(wire.SSL_REQUEST);
      expect((await readExactly(socket, 1)).toString()).toBe("S");
      socket.destroy();
    });

    test("bytes slipped in behind SSLRequest end the connection (CVE-2021-23222)", async () => {
      const socket = await openSocket(gateway.port, "plain");
      socket.write(Buffer.concat([wire.SSL_REQUEST, wire.encodeStartup({ user: gateway.grant })]));
      expect(lines(await answersOf(socket).rest())[0]).toContain("unencrypted data after SSL request");
    });

    test("a wrong secret and an unknown name get the same answer, and are counted", async () => {
      const before = gateway.failures.length;
      const wrong = open({ secret: "wrong" }).catch((error: Error) => error.message);
      const unknown = open({ user: "gr_000000000000" }).catch((error: Error) => error.message);
      const anyName = open({ user: "postgres" }).catch((error: Error) => error.message);
      const [first, ...others] = (await Promise.all([wrong, unknown, anyName])) as string[];
      expect(first).toBe(`E 28P01 password authentication failed for user "${gateway.grant}"`);
      expect(others.map((text) => text.replace(/".*"/, ""))).toEqual(Array(2).fill(first?.replace(/".*"/, "")));
      expect(gateway.failures.slice(before).toSorted()).toEqual(
        [gateway.grant, "gr_000000000000", "postgres"].toSorted(),
      );
      expect(gateway.sessions.every((session) => session.request.user === gateway.grant)).toBe(true);
    });

    test("a client that only asks and leaves, as psql does before its password prompt, is not counted", async () => {
      const before = gateway.failures.length;
      const socket = await openSocket(gateway.port, "plain");
      socket.write(wire.encodeStartup({ user: gateway.grant }));
      await answersOf(socket).next();
      socket.end();
      await new Promise((done) => void socket.once("close", done));
      expect(gateway.failures.length).toBe(before);
    });

    test("whoever does not finish within the limit is told so and cut", async () => {
      const hasty = await startGateway({ parts: { authenticationMs: 150 } });
      const silent = await openSocket(hasty.port, "plain");
      expect(lines(await answersOf(silent).rest())).toEqual([
        "E 57014 canceling authentication: it was not finished within 0.15 s",
      ]);
      const slow = await openSocket(hasty.port, "ssl");
      slow.write(wire.encodeStartup({ user: hasty.grant }).subarray(0, 20));
      expect(lines(await answersOf(slow).rest())[0]).toContain("57014");
      const halfway = connect(hasty.port, "127.0.0.1"); // asks for TLS and then says nothing
      halfway.on("error", () => {});
      halfway.write(wire.SSL_REQUEST);
      expect((await readExactly(halfway, 1)).toString()).toBe("S");
      await expect(readExactly(halfway, 1)).rejects.toThrow(/closed|ECONNRESET/);
    });

    test.each([
      [
        "a startup packet of 10,001 bytes",
        Buffer.concat([wire.int32(10_001), wire.int32(3 << 16)]),
        /invalid length of startup/,
      ],
      ["a startup packet of 1 GB", Buffer.from([0x40, 0, 0, 0, 0, 3, 0, 0]), /invalid length of startup/],
      ["protocol 2", wire.encodeFirstPacket(2 << 16, "x"), /Glasskey speaks 3/],
      ["no user", wire.encodeStartup({ database: "x" }), /no PostgreSQL user name/],
      ["replication", wire.encodeStartup({ user: "gr_000000000000", replication: "database" }), /replication/],
    ])("%s is refused", async (_, packet, expected) => {
      const socket = await openSocket(gateway.port, "plain");
      socket.write(packet);
      expect(lines(await answersOf(socket).rest()).join()).toMatch(expected);
    });

    test("a password message longer than 2 KiB is refused by its length", async () => {
      const socket = await openSocket(gateway.port, "plain");
      socket.write(wire.encodeStartup({ user: gateway.grant }));
      const answers = answersOf(socket);
      await answers.next();
      socket.write(Buffer.from([wire.FRONTEND.password, 0, 0, 0x10, 0]));
      expect(lines(await answers.rest()).join()).toContain("invalid message length");
    });

    test("protocol 3.2 gets a long cancel key, a newer one is negotiated down, unknown options are named", async () => {
      expect((await open({ protocol: (3 << 16) | 2 })).key.key.length).toBe(32);
      expect((await open()).key.key.length).toBe(4);
      const socket = await openSocket(gateway.port, "plain");
      socket.write(wire.encodeFirstPacket((3 << 16) | 9, "user", gateway.grant, "_pq_.test", "1", ""));
      const { type, body } = await answersOf(socket).next();
      socket.destroy();
      expect(type).toBe(wire.BACKEND.negotiateProtocolVersion);
      expect(body.readInt32BE(0)).toBe((3 << 16) | 2);
      expect(body.subarray(8).toString()).toBe("_pq_.test\0");
    });

    test("only the grant's databases open, the first by default", async () => {
      await expect(open({ startup: { database: "template1" } })).rejects.toThrow(/3D000.*not part of this grant/);
      await expect(
        open({ startup: { database: "postgres" } }, await startGateway({ scope: { databases: [database] } })),
      ).rejects.toThrow(/3D000/);
      const client = await open({ startup: { database: gateway.grant } });
      client.send(say.query("copy (select current_database()) to stdout"));
      expect(
        (await client.until(Z))
          .find((a) => a.type === wire.BACKEND.copyData)
          ?.body.toString()
          .trim(),
      ).toBe(database);
    });

    test("startup settings pass the scope: harmless ones arrive, others end the attempt", async () => {
      const client = await open({ startup: { options: "-c work_mem=5MB", TimeZone: "UTC" } });
      client.send(say.query("copy (select current_setting('work_mem')) to stdout"));
      expect(
        (await client.until(Z))
          .find((a) => a.type === wire.BACKEND.copyData)
          ?.body.toString()
          .trim(),
      ).toBe("5MB");
      await expect(open({ startup: { options: "-c role=postgres" } })).rejects.toThrow(/42501.*role/);
      await expect(open({ startup: { session_authorization: "postgres" } })).rejects.toThrow(/42501/);
      await expect(open({ startup: { client_encoding: "SJIS" } })).rejects.toThrow(/42501.*client_encoding/);
      await expect(open({ startup: { options: "-d 5" } })).rejects.toThrow(/-c name=value/);
    });

    test("what the gateway says on opening reaches the person", async () => {
      const closed = await startGateway({
        refuseOpen: new GlassError("grant_over", "grant gr_x ended at 14:32", { next: "Break the glass again." }),
      });
      await expect(open({}, closed)).rejects.toThrow("E 28000 grant gr_x ended at 14:32");
    });

    test("a target that is down, or shows another certificate, or refuses the lease, is told apart and holds no secret", async () => {
      const down = await startGateway({ plan: { port: 1 } });
      await expect(open({}, down)).rejects.toThrow(/08006 127\.0\.0\.1:1 cannot be reached/);
      const elsewhere = await startGateway({ plan: { tls: { ca: target.ca, servername: "other.example" } } });
      await expect(open({}, elsewhere)).rejects.toThrow(/08006.*cannot be reached/);
      const stranger = await startGateway({ plan: { tls: { ca: gateway.ca, servername: "localhost" } } });
      await expect(open({}, stranger)).rejects.toThrow(/08006/);
      const refused = await startGateway({ rolePassword: "not it" });
      const error = await open({}, refused).catch((e: Error) => e.message);
      expect(error).toMatch(/08006.*refused the lease's password \(SQLSTATE 28P01\)/);
      expect(error).not.toContain(lease.role);
      expect(refused.sessions[0]?.end?.cause).toBe("error");
    });

    test("the notice says who, where, why, until when and that it is recorded, and is itself recorded", async () => {
      await open();
      const notice = gateway.json(RECORD.notice).at(-1);
      expect(notice?.["text"]).toMatch(/pe_000000000000 is on orders-prod until .*Z; everything you send is recorded/);
      expect(notice?.["detail"]).toContain("data-loss");
    });
  });

  describe("statements", () => {
    const started = (): Record<string, unknown>[] => gateway.json(RECORD.statementStarted);
    const completed = (): Record<string, unknown>[] => gateway.json(RECORD.statementCompleted);

    test("lesson 4: each Execute is recorded with its own text, its own parameters and its own answer", async () => {
      const client = await open();
      const [s, c] = [started().length, completed().length];
      client.send(
        ...[say.parse("a", "select $1::int + $2::int"), say.parse("b", "select $2::text || $1::text")],
        ...[say.bind("p", "a", ["1", "2"]), say.bind("q", "b", ["x", "y"])],
        ...[say.execute("q"), say.execute("p"), say.sync],
        ...[say.bind("", "b", [null, "z"]), say.execute(""), say.bind("", "a", [Buffer.from([0, 0, 0, 7]), "3"])],
        ...[say.execute(""), say.sync],
      );
      await client.until(Z);
      await client.until(Z);
      expect(started().slice(s)).toMatchObject([
        { via: "extended", text: "select $2::text || $1::text", params: ["x", "y"] },
        { via: "extended", text: "select $1::int + $2::int", params: ["1", "2"] },
        { text: "select $2::text || $1::text", params: [null, "z"] },
        { text: "select $1::int + $2::int", params: [{ base64: "AAAABw==" }, "3"] },
      ]);
      expect(completed().slice(c)).toMatchObject(Array(4).fill({ tag: "SELECT 1", rows: 1 }));
      expect(
        completed()
          .slice(c)
          .map((r) => r["n"]),
      ).toEqual(
        started()
          .slice(s)
          .map((r) => r["n"]),
      );
    });

    test("a name whose definition is still open is not recorded by guess", async () => {
      const client = await open();
      client.send(say.parse("s", "select 'old'"), say.sync);
      await client.until(Z);
      // Close and Parse are skipped because of the error, so `s` still is the old statement when it is bound.
      client.send(
        ...[say.parse("", "select 1/(random() * 0)::int"), say.bind("", ""), say.execute("")],
        ...[say.close("S", "s"), say.parse("s", "select 'new'"), say.sync],
        ...[say.bind("", "s"), say.execute(""), say.sync],
      );
      expect(lines(await client.until(Z))).toEqual(["1", "2", "E 22012 division by zero", "Z I"]);
      const answer = await client.until(Z);
      expect(answer.find((a) => a.type === wire.BACKEND.dataRow)?.body.toString("latin1")).toContain("old");
      expect(texts(gateway).at(-1)).toBe("select 'old'");
    });

    test("what DEALLOCATE removes is not recorded under its old text", async () => {
      const client = await open();
      client.send(say.parse("s", "select 'protocol'"), say.sync);
      await client.until(Z);
      client.send(say.query("deallocate s; prepare s as select 'sql'"), say.bind("", "s"), say.execute(""), say.sync);
      await client.until(Z);
      expect(lines(await client.until(Z)).join()).toContain('E 26000 prepared statement "s" does not exist');
      client.send(say.query("execute s"));
      expect((await client.until(Z)).some((a) => a.body.includes("sql"))).toBe(true);
    });

    describe("the recording shows what ran, whatever is done to names", () => {
      const update = "update names set v = 'EXECUTED' returning v";
      const recordedUpdates = (from: number): number =>
        texts(gateway)
          .slice(from)
          .filter((text) => text.startsWith("update names")).length;
      const opened = async (): Promise<{ client: RawClient; from: number }> => {
        const client = await open();
        client.send(say.query("create temp table names as select 'untouched' as v"));
        await client.until(Z);
        return { client, from: texts(gateway).length };
      };
      const untouched = async (client: RawClient): Promise<void> => {
        client.send(say.query("select v from names"));
        const row = (await client.until(Z)).find((a) => a.type === wire.BACKEND.dataRow);
        expect(row?.body.toString("latin1")).toContain("untouched");
      };
      const long = "a".repeat(63);

      test("names that the target would cut to the same 63 bytes are refused", async () => {
        const { client, from } = await opened();
        client.send(say.parse(`${long}y`, "select 'RECORDED'"), say.sync);
        const refused = /^E 42622 a name of 64 bytes is longer .* Z I$/;
        expect(lines(await client.until(Z)).join(" ")).toMatch(refused);
        client.send(say.close("S", `${long}x`), say.sync);
        expect(lines(await client.until(Z)).join(" ")).toMatch(refused);
        client.send(say.parse(`${long}x`, update), say.sync);
        expect(lines(await client.until(Z)).join(" ")).toMatch(refused);
        client.send(say.bind("", `${long}y`), say.execute(""), say.sync);
        expect(lines(await client.until(Z)).join(" ")).toMatch(refused);
        await untouched(client);
        expect(recordedUpdates(from)).toBe(0);
        client.send(say.parse(long, "select 1"), say.bind(long, long), say.execute(long), say.sync);
        expect(lines(await client.until(Z)).at(-2)).toBe("C SELECT 1");
      });

      test("the same for portals, and for names that another encoding would lengthen", async () => {
        const { client } = await opened();
        client.send(say.query("begin"), say.parse("q", "select 'RECORDED'"), say.parse("u", update));
        client.send(say.bind(`${long}y`, "q"), say.sync);
        await client.until(Z);
        expect(lines(await client.until(Z)).join(" ")).toMatch(/^1 1 E 42622 .* Z E$/);
        client.send(say.query("rollback"), say.parse("é", "select 1"), say.sync);
        await client.until(Z);
        expect(lines(await client.until(Z)).join(" ")).toMatch(/^E 42602 .*ASCII Z I$/);
        await untouched(client);
      });

      test("DEALLOCATE hidden in EXECUTE does not give a name to another text", async () => {
        const { client, from } = await opened();
        client.send(say.parse("s2", "select 'RECORDED'"), say.parse("s1", "deallocate s2"), say.sync);
        await client.until(Z);
        client.send(say.query("execute s1"));
        expect(lines(await client.until(Z))).toEqual(["C DEALLOCATE", "Z I"]);
        client.send(say.query(`prepare s2 as ${update}`));
        expect(lines(await client.until(Z))).toEqual(["C PREPARE", "Z I"]);
        client.send(say.describe("S", "s2"), say.bind("", "s2"), say.execute(""), say.sync);
        const answers = await client.until(Z);
        expect(lines(answers)).toEqual(["t", "T", "2", "D", "C SELECT 1", "Z I"]);
        expect(answers.some((a) => a.body.includes("RECORDED"))).toBe(true);
        expect(texts(gateway).at(-1)).toBe("select 'RECORDED'");
        await untouched(client);
        expect(recordedUpdates(from)).toBe(0);
      });

      test.each([
        [
          "a DO block",
          `do $$ begin execute 'deallo' || 'cate s2'; execute 'prepare s2 as ${update.replaceAll("'", "''")}'; end $$`,
        ],
        [
          "a function of the target's own",
          `select hidden('deallo' || 'cate s2', 'prepare s2 as ${update.replaceAll("'", "''")}')`,
        ],
      ])("the same by %s, in one pipeline, and with parameter types of the client's own", async (_name, text) => {
        const through = await startGateway({ scope: { allow: ["default", "ddl", "opaque"] } });
        const client = await open({}, through);
        client.send(
          say.query("create temp table names as select 'untouched' as v"),
          say.query(`create or replace function hidden(a text, b text) returns int language plpgsql as
            $$ begin execute a; execute b; return 1; end $$`),
        );
        await client.until(Z);
        await client.until(Z);
        const typed = Buffer.from([0, 1, 0, 0, 0, 25]); // one parameter, text
        client.send(
          wire.message(wire.FRONTEND.parse, "s2", "select 'RECORDED', $1", typed),
          ...[say.parse("hide", text), say.bind("", "hide"), say.execute("")],
          ...[say.bind("", "s2", ["x"]), say.execute(""), say.sync],
          ...[say.bind("", "s2", ["y"]), say.execute(""), say.sync],
        );
        const first = lines(await client.until(Z));
        expect(first.slice(-4)).toEqual(["2", "D", "C SELECT 1", "Z I"]);
        expect(first.filter((line) => line === "1" || line === "3").length).toBe(2); // of the client's own messages only
        expect(lines(await client.until(Z))).toEqual(["2", "D", "C SELECT 1", "Z I"]);
        await untouched(client);
        await target.query("drop function hidden", { database });
      });

      test("DEALLOCATE in the same pipeline as what it removes is seen in order", async () => {
        const { client, from } = await opened();
        client.send(
          ...[
            say.parse("s2", "select 'RECORDED'"),
            say.parse("d", "deallocate s2"),
            say.bind("", "d"),
            say.execute(""),
          ],
          ...[say.parse("q", `prepare s2 as ${update}`), say.bind("", "q"), say.execute("")],
          ...[say.bind("", "s2"), say.execute(""), say.sync],
        );
        expect(
          lines(await client.until(Z))
            .slice(-2)
            .join(" "),
        ).toMatch(/^E 26000 .*does not exist Z I$/);
        await untouched(client);
        expect(recordedUpdates(from)).toBe(0);
      });

      test("DECLARE hidden in EXECUTE does not become the portal of that name", async () => {
        const { client } = await opened();
        client.send(
          say.parse("s3", "declare c1 cursor for select v || ' HIDDEN' from names"),
          ...[say.parse("s4", "select 'RECORDED' from generate_series(1, 3)"), say.sync, say.query("begin")],
          ...[say.bind("c1", "s4"), say.execute("c1", 1), say.flush],
        );
        await client.until(wire.BACKEND.portalSuspended);
        client.send(say.sync, say.query("close c1"), say.query("execute s3"), say.execute("c1"), say.sync);
        for (let i = 0; i < 3; i += 1) await client.until(Z);
        const answers = await client.until(Z);
        expect(lines(answers).join(" ")).toMatch(/^E 34000 portal "c1" may be another one by now: .* Z E$/);
        expect(answers.some((a) => a.body.includes("HIDDEN"))).toBe(false);
      });

      test("a statement that could not be prepared anew fails, and its name stays untrusted", async () => {
        const { client } = await opened();
        client.send(say.parse("gone", "select * from names"), say.parse("e", "select 1"), say.sync);
        await client.until(Z);
        client.send(say.query("execute e"), say.query("begin"), say.query("alter table names rename to other"));
        for (let i = 0; i < 3; i += 1) await client.until(Z);
        client.send(say.bind("", "gone"), say.execute(""), say.sync, say.query("rollback"));
        expect(lines(await client.until(Z)).join(" ")).toMatch(/^E 42P01 .* Z E$/);
        await client.until(Z);
        client.send(say.query(`prepare gone as ${update}`), say.bind("", "gone"), say.execute(""), say.sync);
        await client.until(Z);
        expect(lines(await client.until(Z))).toEqual(["2", "D", "C SELECT 1", "Z I"]);
        await untouched(client);
      });
    });

    describe("a text is not checked before the settings are known by which it is read", () => {
      // A scope that is mistaken about one function, as a second line of defence has to assume.
      const mistaken: Partial<ServeParts> = {
        compileScope(scope) {
          const checker = compileScope(scope);
          return {
            ...checker,
            check: (sql) =>
              sql.includes("set_config(") ? { ok: true, classes: ["select", "set"] } : checker.check(sql),
          };
        },
      };
      const hide = "select set_config('standard_conforming_strings', 'off', false)";
      const attack = String.raw`select '\', '; drop table t; --'`;

      test.each(["simple", "extended"])("by %s messages in one write", async (via) => {
        const through = await startGateway({ parts: mistaken });
        const client = await open({}, through);
        if (via === "simple") client.send(say.query(hide), say.query(attack));
        else {
          client.send(
            ...[say.parse("", hide), say.bind("", ""), say.execute(""), say.sync],
            ...[say.parse("", attack), say.bind("", ""), say.execute(""), say.sync],
          );
        }
        expect(lines(await client.rest()).at(-1)).toContain("E 42501 standard_conforming_strings became off");
        expect(texts(through)).toEqual([hide]);
        expect((await target.query("select 1 from t limit 1", { database })).rows).toBeDefined();
      });

      test("ahead of the Sync that brings the report, only what reads the same under all of them", async () => {
        const through = await startGateway({ parts: mistaken });
        const client = await open({}, through);
        client.send(
          ...[say.parse("", hide.replace("off", "on")), say.bind("", ""), say.execute("")],
          ...[say.parse("", "select 'plain'"), say.bind("", ""), say.execute("")],
          ...[say.parse("", attack), say.bind("", ""), say.execute(""), say.sync],
        );
        const said = lines(await client.until(Z));
        expect(said.filter((line) => line === "C SELECT 1").length).toBe(2);
        expect(said.at(-2)).toMatch(/^E 55000 code that Glasskey does not see/);
        client.send(say.parse("", attack), say.bind("", ""), say.execute(""), say.sync);
        expect(lines(await client.until(Z)).at(-2)).toBe("C SELECT 1");
      });
    });

    test("many large statements in one write are checked one turn at a time", async () => {
      let turns = 0;
      let most = 0;
      let now = 0;
      let ticking = true;
      const tick = (): void => {
        turns += 1;
        now = 0;
        if (ticking) setImmediate(tick);
      };
      const through = await startGateway({
        parts: {
          compileScope(scope) {
            const checker = compileScope(scope);
            return {
              ...checker,
              check(sql) {
                if (sql.length > 40_000) now += 1;
                most = Math.max(most, now);
                return checker.check(sql);
              },
            };
          },
        },
      });
      const client = await open({}, through);
      tick();
      const text = (i: number): string => `select length('${"x".repeat(40_000)}') + ${i}`;
      const large = Buffer.concat(Array.from({ length: 40 }, (_each, i) => say.query(text(i))));
      // One more that is longer than a read: when it is whole, much of what follows has come too.
      client.send(say.query(`select length('${"y".repeat(3_000_000)}')`), large);
      for (let i = 0; i < 41; i += 1) expect(lines(await client.until(Z)).at(-1)).toBe("Z I");
      ticking = false;
      expect(turns).toBeGreaterThan(0);
      expect(most).toBe(1);
      expect(texts(through).length).toBe(41);
    });

    test("a refused simple query leaves the connection usable, outside and inside a transaction", async () => {
      const client = await open();
      client.send(say.query("drop table t"));
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 42501 DROP is refused/), "Z I"]);
      client.send(
        say.query("begin"),
        say.query("drop table t"),
        say.query("select 1"),
        say.query("rollback"),
        say.query("select 1"),
      );
      const all = [
        await client.until(Z),
        await client.until(Z),
        await client.until(Z),
        await client.until(Z),
        await client.until(Z),
      ];
      expect(all.map(lines)).toEqual([
        ["C BEGIN", "Z T"],
        [expect.stringMatching(/^E 42501/), "Z E"],
        [expect.stringMatching(/^E 25P02/), "Z E"],
        ["C ROLLBACK", "Z I"],
        ["T", "D", "C SELECT 1", "Z I"],
      ]);
      const refused = gateway.json(RECORD.statementRefused).at(-1);
      expect(refused).toMatchObject({ via: "simple", text: "drop table t" });
    });

    test("of a string with one refused statement nothing runs", async () => {
      const client = await open();
      client.send(say.query("insert into t values (4711); drop table t"));
      expect(lines(await client.until(Z))[0]).toMatch(/^E 42501 statement 2 of 2/);
      expect((await target.query("select 1 from t where i = 4711", { database })).rowCount).toBe(0);
    });

    test("in a pipeline the answers before a refusal come first, the rest up to Sync is void, the transaction fails", async () => {
      const client = await open();
      client.send(
        ...[say.query("begin"), say.parse("", "insert into t values (1, 'a')"), say.bind("", ""), say.execute("")],
        ...[say.parse("", "drop table t"), say.bind("", ""), say.execute(""), say.close("S", "x"), say.sync],
        ...[say.parse("", "select 1"), say.bind("", ""), say.execute(""), say.sync, say.query("rollback")],
      );
      expect(lines(await client.until(Z))).toEqual(["C BEGIN", "Z T"]);
      expect(lines(await client.until(Z))).toEqual([
        "1",
        "2",
        "C INSERT 0 1",
        expect.stringMatching(/^E 42501/),
        "Z E",
      ]);
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 25P02/), "Z E"]);
      expect(lines(await client.until(Z))).toEqual(["C ROLLBACK", "Z I"]);
    });

    test("a refusal with and without Flush, and after it a fresh start", async () => {
      const client = await open();
      client.send(say.parse("", "drop table t"), say.flush);
      expect((await client.next()).text).toMatch(/^E 42501/);
      client.send(say.describe("S", ""), say.bind("", ""), say.execute(""), say.sync);
      expect(lines(await client.until(Z))).toEqual(["Z I"]);
      client.send(say.parse("", "select 2"), say.bind("", ""), say.execute(""), say.sync);
      expect(lines(await client.until(Z))).toEqual(["1", "2", "D", "C SELECT 1", "Z I"]);
    });

    test("unreadable statements, function calls and malformed Binds are refused, each in its own state", async () => {
      const client = await open();
      client.send(wire.message(wire.FRONTEND.query, Buffer.from([0x27, 0xe9, 0x27, 0])));
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 22021/), "Z I"]);
      client.send(wire.message(wire.FRONTEND.query, Buffer.from("select 1\0; drop table t\0")));
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 22021/), "Z I"]);
      client.send(say.query("selec 1"));
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 42601 syntax error/), "Z I"]);
      client.send(wire.message(wire.FRONTEND.functionCall, wire.int32(1299), Buffer.alloc(6)));
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 42501.*fastpath/), "Z I"]);
      client.send(
        say.parse("", "select $1"),
        wire.message(wire.FRONTEND.bind, "", "", Buffer.from([0, 0, 0, 9])),
        say.execute(""),
        say.sync,
      );
      expect(lines(await client.until(Z))).toEqual(["1", expect.stringMatching(/^E 08P01/), "Z I"]);
      client.send(say.query(""));
      expect(lines(await client.until(Z))).toEqual(["I", "Z I"]);
    });

    test("an error of the target is the client's, and recorded with the statement", async () => {
      const client = await open();
      client.send(
        say.parse("", "select $1::int/(random() * 0)::int"),
        say.bind("", "", ["1"]),
        say.execute(""),
        say.sync,
      );
      expect(lines(await client.until(Z))).toEqual(["1", "2", "E 22012 division by zero", "Z I"]);
      expect(completed().at(-1)).toMatchObject({ error: { sqlstate: "22012", message: "division by zero" } });
    });

    test("a portal read in parts is recorded part by part", async () => {
      const client = await open();
      const s = started().length;
      client.send(say.query("begin"));
      await client.until(Z);
      client.send(
        say.parse("", "select generate_series(1, $1::int)"),
        say.bind("c", "", ["5"]),
        say.execute("c", 2),
        say.flush,
      );
      expect(
        lines([
          await client.next(),
          await client.next(),
          await client.next(),
          await client.next(),
          await client.next(),
        ]),
      ).toEqual(["1", "2", "D", "D", "s"]);
      client.send(say.execute("c", 0), say.sync);
      await client.until(Z);
      const first = started()[s + 1];
      expect(started().slice(s + 1)).toMatchObject([{ params: ["5"] }, { params: ["5"], continues: first?.["n"] }]);
      expect(completed().slice(-2)).toMatchObject([{ rows: 2 }, { rows: 3, tag: expect.stringContaining("SELECT") }]);
    });

    test("nothing reaches the target before its record is committed, and then all of it in order", async () => {
      const client = await open();
      const session = gateway.sessions.at(-1);
      session?.holdCommits(true);
      client.send(say.query("insert into t values (77, 'held')"), say.parse("", "select 1"), say.sync);
      await new Promise((done) => setTimeout(done, 150));
      expect(texts(gateway).at(-1)).toContain("held"); // written …
      expect((await target.query("select 1 from t where i = 77", { database })).rowCount).toBe(0); // … not run
      session?.holdCommits(false);
      expect(lines(await client.until(Z))).toEqual(["C INSERT 0 1", "Z I"]);
      expect(lines(await client.until(Z))).toEqual(["1", "Z I"]);
    });

    test("what is prepared or bound but never run is recorded all the same", async () => {
      const client = await open();
      client.send(say.parse("later", "select $1::text"), say.sync);
      await client.until(Z);
      client.send(say.bind("", "later", ["now"]), say.sync);
      await client.until(Z);
      expect(gateway.json(RECORD.action).slice(-2)).toEqual([
        { what: "prepare", name: "later", text: "select $1::text" },
        { what: "bind", name: "", text: "select $1::text", params: ["now"] },
      ]);
    });

    test("a statement longer than a record is split and can be put together again", async () => {
      const client = await open();
      const text = `select length('${"é".repeat(1_500_000)}')`;
      client.send(say.query(text));
      expect(lines(await client.until(Z))).toEqual(["T", "D", "C SELECT 1", "Z I"]);
      const records = gateway.sessions.at(-1)?.records ?? [];
      const head = JSON.parse(
        records.findLast((r) => r.kind === RECORD.statementStarted)?.payload.toString() ?? "",
      ) as { n: number; overflow: number };
      const data = records.filter((r) => r.kind === RECORD.data && r.payload.readUInt32BE(0) === head.n);
      const whole = Buffer.concat(data.map((r) => r.payload.subarray(4)));
      expect(whole.length).toBe(head.overflow);
      expect((JSON.parse(whole.toString()) as { text: string }).text === text).toBe(true);
    });

    test("a statement that announces 1 GB ends the session at once, with the reason", async () => {
      const client = await open();
      client.send(Buffer.concat([Buffer.from([wire.FRONTEND.query, 0x40, 0, 0, 0]), Buffer.alloc(100)]));
      expect(lines(await client.rest())[0]).toMatch(/^E 54000 a message of 1073741824 bytes/);
      expect((await gateway.sessions.at(-1)?.ended)?.cause).toBe("error");
    });

    test("an encoding in which statements would read otherwise ends the session", async () => {
      const client = await open();
      client.send(say.query("select set_config('client_encoding', 'SJIS', false)"));
      expect(lines(await client.until(wire.BACKEND.errorResponse)).join()).toMatch(/42501/);
    });
  });

  describe("COPY", () => {
    test("every byte of COPY data is recorded before it is forwarded", async () => {
      const client = await open();
      client.send(say.query("copy t from stdin"));
      expect(lines([await client.next()])).toEqual(["G"]);
      const session = gateway.sessions.at(-1);
      session?.holdCommits(true);
      client.send(say.copyData("100\ta\n101"), say.copyData("\tb\n"), say.copyDone);
      await new Promise((done) => setTimeout(done, 100));
      const data = (): string =>
        (session?.records ?? [])
          .filter((r) => r.kind === RECORD.data)
          .map((r) => r.payload.subarray(4).toString())
          .join("");
      expect(data()).toBe("100\ta\n101\tb\n");
      expect((await target.query("select 1 from t where i = 100", { database })).rowCount).toBe(0);
      session?.holdCommits(false);
      expect(lines(await client.until(Z))).toEqual(["C COPY 2", "Z I"]);
    });

    test("by the extended protocol, with the Sync that COPY swallows", async () => {
      const client = await open();
      client.send(say.parse("", "copy t from stdin"), say.bind("", ""), say.execute(""), say.sync);
      await client.until(wire.BACKEND.copyInResponse);
      client.send(say.copyData("200\tx\n"), say.copyDone, say.sync);
      expect(lines(await client.until(Z))).toEqual(["C COPY 1", "Z I"]);
      client.send(say.query("select 1"));
      expect(lines(await client.until(Z))).toEqual(["T", "D", "C SELECT 1", "Z I"]);
    });

    test("data that fails, and a client that gives up, leave the connection usable", async () => {
      const client = await open();
      client.send(say.query("copy t from stdin"), say.copyData("not a number\n"), say.copyDone, say.query("select 1"));
      expect(lines(await client.until(Z))).toEqual(["G", expect.stringMatching(/^E 22P02/), "Z I"]);
      expect(lines(await client.until(Z))).toEqual(["T", "D", "C SELECT 1", "Z I"]);
      client.send(say.parse("", "copy t from stdin"), say.bind("", ""), say.execute(""), say.sync);
      await client.until(wire.BACKEND.copyInResponse);
      client.send(say.copyFail("changed my mind"), say.sync);
      expect(lines(await client.until(Z))).toEqual([expect.stringMatching(/^E 57014.*changed my mind/), "Z I"]);
    });

    test("another statement in the place of COPY data ends the session", async () => {
      const client = await open();
      client.send(say.query("copy t from stdin"));
      await client.next();
      client.send(say.query("select 1"));
      expect(lines(await client.rest())).toEqual(["E 08P01 the client sent another message where COPY data was due"]);
    });
  });

  describe("cancelling and ending", () => {
    test.each(["plain", "ssl"] as const)(
      "lesson 5: a cancel request over %s stops the statement of its key, and no other key does",
      async (via) => {
        const client = await open({ protocol: (3 << 16) | 2 });
        client.send(say.query("select pg_sleep(30)"));
        const wrong = await openSocket(gateway.port, via);
        wrong.write(wire.encodeCancel(client.key.pid, Buffer.alloc(32, 1)));
        await expect(readExactly(wrong, 1)).rejects.toThrow(/closed|ECONNRESET/);
        await expect.poll(() => gateway.sessions.at(-1)?.busy).toBe(true);
        await new Promise((done) => setTimeout(done, 100));
        const socket = await openSocket(gateway.port, via);
        socket.write(wire.encodeCancel(client.key.pid, client.key.key));
        expect(lines(await client.until(Z)).join()).toContain("E 57014 canceling statement due to user request");
        await expect(readExactly(socket, 1)).rejects.toThrow(/closed|ECONNRESET/); // closed once it was done
        expect(gateway.json(RECORD.action).filter((r) => r["what"] === "cancel").length).toBeGreaterThan(0);
      },
    );

    test("a cut tells the reason and ends the target's session, also in the middle of a statement", async () => {
      const client = await open();
      client.send(say.query("select pg_sleep(30)"));
      await expect.poll(() => gateway.sessions.at(-1)?.busy).toBe(true);
      gateway.sessions.at(-1)?.handle?.cut("the grant ended at 14:32");
      expect(lines(await client.rest())).toEqual(["E 57P01 the grant ended at 14:32"]);
      const left = `select 1 from pg_stat_activity where usename = '${lease.role}' and query like '%sleep(30)%'`;
      await expect.poll(async () => (await target.query(left)).rowCount, { timeout: 5_000 }).toBe(0);
      expect(gateway.sessions.at(-1)?.end).toMatchObject({ cause: "cut", statements: 1 });
      expect(gateway.json(RECORD.statementCompleted).at(-1)).toMatchObject({ error: { sqlstate: "08006" } });
    });

    test("a cut during a large result comes between two rows, and a warning too", async () => {
      const client = await open();
      client.send(say.query("select repeat('x', 20000) from generate_series(1, 20000)"));
      await client.next();
      gateway.sessions.at(-1)?.handle?.warn("5 minutes left");
      await client.until(wire.BACKEND.noticeResponse);
      gateway.sessions.at(-1)?.handle?.cut("over");
      const last = (await client.rest()).at(-1);
      expect(last?.text).toBe("E 57P01 over");
    });

    test("a warning reaches an idle client, and NOTIFY does too", async () => {
      const client = await open();
      client.send(say.query("listen orders"));
      await client.until(Z);
      gateway.sessions.at(-1)?.handle?.warn("5 minutes left");
      expect((await client.next()).type).toBe(wire.BACKEND.noticeResponse);
      await target.query("notify orders, 'hello'", { database });
      const notification = await client.next();
      expect(notification.type).toBe(wire.BACKEND.notificationResponse);
      expect(notification.body.toString()).toContain("hello");
    });

    test("goodbye, a reset and a half-closed connection all end both sides", async () => {
      for (const leave of [
        (c: RawClient) => c.send(say.terminate),
        (c: RawClient) => void c.socket.resetAndDestroy(),
        (c: RawClient) => void c.socket.end(),
        (c: RawClient) => {
          c.send(say.query("select 1").subarray(0, 7)); // in the middle of a message
          c.socket.resetAndDestroy();
        },
      ]) {
        const client = await open();
        leave(client);
        expect((await gateway.sessions.at(-1)?.ended)?.cause).toBe("client");
      }
      await expect.poll(() => gateway.open.size).toBe(0);
      const left = `select 1 from pg_stat_activity where usename = '${lease.role}'`;
      await expect.poll(async () => (await target.query(left)).rowCount, { timeout: 5_000 }).toBe(0);
    });

    test("a client that leaves during a statement: the recording waits for the outcome, and cancels what takes too long", async () => {
      const client = await open();
      await target.query("insert into t values (910, 'old'), (911, 'old')", { database });
      const update = (i: number, seconds: number): string =>
        `update t set v = 'new' where i = ${i} and pg_sleep(${seconds}) is not null`;
      client.send(say.query(update(910, 1.5)), say.terminate);
      client.socket.end();
      expect((await gateway.sessions.at(-1)?.ended)?.cause).toBe("client");
      expect(gateway.json(RECORD.statementCompleted).at(-1)).toMatchObject({ tag: "UPDATE 1" });
      const slow = await open();
      slow.send(say.query(update(911, 8)), say.terminate);
      slow.socket.end();
      expect((await gateway.sessions.at(-1)?.ended)?.cause).toBe("client");
      expect(gateway.json(RECORD.statementCompleted).at(-1)).toMatchObject({ error: { sqlstate: "57014" } });
      const { rows } = await target.query("select v from t where i in (910, 911) order by i", { database });
      expect(rows).toEqual([{ v: "new" }, { v: "old" }]);
    }, 15_000);

    test("destroyed during a pipeline: the running statement is cancelled and the next one never begins", async () => {
      const client = await open();
      await target.query("insert into t values (920, 'old'), (921, 'old')", { database });
      client.send(
        say.query("update t set v = 'new' where i = 920 and pg_sleep(30) is not null"),
        say.query("update t set v = 'new' where i = 921"),
      );
      const mine = `select state from pg_stat_activity where usename = '${lease.role}'`;
      await expect.poll(async () => JSON.stringify((await target.query(mine)).rows)).toContain("active");
      gateway.sessions.at(-1)?.handle?.destroy();
      await expect.poll(async () => (await target.query(mine)).rowCount, { timeout: 5_000 }).toBe(0);
      const { rows } = await target.query("select v from t where i in (920, 921)", { database });
      expect(rows).toEqual([{ v: "old" }, { v: "old" }]);
      expect(gateway.json(RECORD.statementCompleted).at(-1)).toMatchObject({ error: { sqlstate: "08006" } });
    });

    test.each(["plain", "ssl"] as const)(
      "%s: after a cut and its grace, a client that did not read gets no more of what was queued",
      async (via) => {
        const client = await open({ via });
        client.socket.pause();
        client.send(say.query("select repeat('x', 100000) from generate_series(1, 3000)"));
        await new Promise((done) => setTimeout(done, 500));
        const reset = new Promise<unknown>((done) => void client.socket.once("error", done));
        gateway.sessions.at(-1)?.handle?.cut("over");
        await new Promise((done) => setTimeout(done, 50));
        gateway.sessions.at(-1)?.handle?.destroy();
        await expect.poll(() => gateway.open.size).toBe(0);
        client.socket.resume();
        expect(String(await reset)).toContain("ECONNRESET");
      },
    );

    test("what was sent before goodbye is still done", async () => {
      const client = await open();
      client.send(say.query("insert into t values (900, 'last')"), say.terminate);
      await gateway.sessions.at(-1)?.ended;
      expect((await target.query("select 1 from t where i = 900", { database })).rowCount).toBe(1);
    });

    test("a target that kills the session says why; one that dies is named", async () => {
      const client = await open();
      await target.query(`select pg_terminate_backend(pid) from pg_stat_activity where usename = '${lease.role}'`);
      expect(lines(await client.rest())[0]).toContain("E 57P01 terminating connection due to administrator command");
      expect((await gateway.sessions.at(-1)?.ended)?.cause).toBe("target");
    });

    test("a client that does not read stops the target, not the gateway's memory", async () => {
      const client = await open();
      client.socket.pause();
      client.socket.removeAllListeners("readable");
      client.send(say.query("select repeat('x', 100000) from generate_series(1, 3000)")); // 300 MB
      await new Promise((done) => setTimeout(done, 800));
      const before = process.memoryUsage().rss;
      await new Promise((done) => setTimeout(done, 700));
      expect(process.memoryUsage().rss - before).toBeLessThan(60_000_000);
      client.close();
      expect((await gateway.sessions.at(-1)?.ended)?.cause).toBe("client");
    });
  });
});
