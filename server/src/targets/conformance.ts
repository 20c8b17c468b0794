import { spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { newId, randomBase32 } from "../core/ids.ts";
import type { JsonObject } from "../core/json.ts";
import { secretsFrom, testTools, type ChildTask } from "./conformance-child.ts";
import type { Confirmation, LeaseDriver, LeasePlan, LeaseSecrets, TargetKind } from "./target.ts";

/** What a kind brings along to be tested: a real target, and the means to use it as a person would. */
export interface Harness {
  readonly kind: Pick<TargetKind, "parseConfig" | "promises" | "driver">;
  /** The module and the name in it of what {@link TargetKind.driver} is, for the process that is killed. */
  readonly driver: { readonly module: URL; readonly name: string };
  /** The target's own port on 127.0.0.1, and its `config:` when it is dialled at another one. */
  readonly port: number;
  config(port: number): JsonObject;
  readonly scope: JsonObject;
  /** What the config's secret references resolve to at this moment. */
  references(): Readonly<Record<string, string>>;
  stopTarget(): Promise<void>;
  startTarget(): Promise<void>;
  /**
   * Changes the administrator's secret on the target, and what its reference resolves to. Absent only in a kind whose config
   * refers to no secret.
   */
  rotateAdmin?(): Promise<void>;
  /** What of a lease can be found on the target: its credential, or nothing but the sessions that were opened with it. */
  readonly found: "credential" | "sessions";
  /** At every how many messages of a call its process is killed: 1 unless there are very many. */
  readonly killStride: Readonly<Record<"mint" | "revoke", number>>;
  /**
   * At every how many messages of a call the network is lost: 1 unless there are very many. A lost answer to one message and a
   * loss of the next message leave the target in the same state, so with 2 they take turns and nothing is left out.
   */
  readonly lossStride: 1 | 2;
  /** Opens a session with the lease's credential. Rejects when it is not let in. */
  holdSession(plan: LeasePlan, secrets: LeaseSecrets): Promise<HeldSession>;
  /** Does as the lease's user whatever makes a credential hard to remove, and ends its sessions. */
  litter(plan: LeasePlan, secrets: LeaseSecrets): Promise<void>;
  dispose(): Promise<void>;
}

export interface HeldSession {
  /** Whether the target still answers on it. */
  alive(): Promise<boolean>;
  close(): Promise<void>;
}

const STEPS_MAX = 200;
/** A whole life of a lease for each message of a call, one after the other: up to a hundred logins on the target. */
const ONE_BY_ONE = { timeout: 240_000 };
type Verb = ChildTask["verb"];

/** The suite that every kind must pass. Call it in a test file of the kind; one target serves all its tests, in order. */
export function testConformance(
  name: string,
  start: () => Promise<Harness>,
  /** Without the tests that lose the network or the process at each step: where the same driver has them on another target. */
  { atEachStep = true } = {},
): void {
  describe(`conformance: ${name}`, () => {
    let harness: Harness;
    let relay: Relay;
    let driver: LeaseDriver;
    let install: string;
    const { signal } = new AbortController();

    beforeAll(async () => {
      harness = await start();
      relay = await startRelay(harness.port);
    });
    afterAll(async () => {
      await relay.close();
      await harness.dispose();
    });
    beforeEach(() => {
      install = randomBase32(6);
      driver = freshDriver();
    });

    /** As after a restart: nothing is known but what was stored. */
    function freshDriver(): LeaseDriver {
      return harness.kind.driver(testTools(install, () => harness.references()));
    }

    function config(port = harness.port): JsonObject {
      const parsed = harness.kind.parseConfig(harness.config(port));
      if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
      return parsed.value;
    }

    function newLease(port = harness.port): { plan: LeasePlan; secrets: LeaseSecrets; key: string } {
      const key = randomBytes(16).toString("hex");
      const endsAt = new Date(Date.now() + 600_000);
      const request = {
        install,
        lease: newId("lease"),
        target: "t",
        config: config(port),
        scope: harness.scope,
        endsAt,
      };
      return { plan: driver.plan(request), secrets: secretsFrom(key), key };
    }

    async function lines(): Promise<readonly string[]> {
      return (await driver.fingerprint(newLease().plan, install, signal)).lines;
    }

    /** Mints a lease so that `list` has something to find. */
    async function findable(lease: ReturnType<typeof newLease>): Promise<HeldSession | undefined> {
      await driver.mint(lease.plan, lease.secrets, signal);
      return harness.found === "sessions" ? harness.holdSession(lease.plan, lease.secrets) : undefined;
    }

    /** What the reconcile loop does after a crash: by name, from fresh state, until the proof. */
    async function recover(stored: LeasePlan, secrets: LeaseSecrets): Promise<string> {
      const plan = JSON.parse(JSON.stringify(stored)) as LeasePlan;
      const fresh = freshDriver();
      await fresh.fence(plan, signal);
      await fresh.revoke(plan, signal);
      return (await fresh.confirm(plan, secrets, signal)).verdict;
    }

    test("a plan is pure, survives storage and holds no secret", () => {
      const request = {
        ...{ install, lease: newId("lease"), target: "t", config: config(), scope: harness.scope },
        endsAt: new Date("2030-01-01T00:00:00Z"),
      };
      const plan = driver.plan(request);
      expect(freshDriver().plan(structuredClone(request))).toEqual(plan);
      expect(JSON.parse(JSON.stringify(plan))).toEqual(plan);
      for (const secret of Object.values(harness.references())) expect(JSON.stringify(plan)).not.toContain(secret);
    });

    test("preflight finds a prepared target fit", async () => {
      const checks = await driver.preflight(config(), harness.scope, signal);
      expect(checks.filter((check) => !check.ok)).toEqual([]);
      expect(checks.length).toBeGreaterThan(0);
    });

    test("a lease's whole life: mint, use, fence, revoke, proof, and access as it was before", async () => {
      const before = await lines();
      const { plan, secrets } = newLease();
      await driver.mint(plan, secrets, signal);
      await driver.probe(plan, secrets, signal);
      const session = await harness.holdSession(plan, secrets);
      expect(await lines()).toEqual(before); // without this installation's own live leases
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });

      const extended = await driver.extend(plan, new Date(Date.now() + 1_200_000), signal);
      expect(JSON.parse(JSON.stringify(extended))).toEqual(extended);
      await driver.probe(extended, secrets, signal);

      await driver.fence(extended, signal);
      await expect(harness.holdSession(plan, secrets)).rejects.toThrow(/./);
      await expect(driver.probe(plan, secrets, signal)).rejects.toThrow(/./);
      expect(await session.alive()).toBe(true);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "alive" });

      await driver.revoke(extended, signal);
      expect(await session.alive()).toBe(false);
      const proof = await driver.confirm(plan, secrets, signal);
      expect(proof).toMatchObject({ verdict: "dead", from: expect.any(Date) });
      expect(proof.verdict === "dead" && proof.evidence.every((e) => e.asked !== "" && e.answered !== "")).toBe(true);
      expect(await lines()).toEqual(before);
      await session.close();
    });

    test("lesson 12: absent is success: fence and revoke any number of times, and before any mint", async () => {
      const { plan, secrets } = newLease();
      expect(await recover(plan, secrets)).toBe("dead");
      await driver.mint(plan, secrets, signal);
      expect(await recover(plan, secrets)).toBe("dead");
      expect(await recover(plan, secrets)).toBe("dead");
    });

    test("lesson 13: revocation reads the stored plan alone", async () => {
      const { plan, secrets } = newLease();
      await driver.mint(plan, secrets, signal);
      // A driver whose kind never parsed any config, and a plan that only storage has seen.
      expect(await recover(plan, secrets)).toBe("dead");
    });

    test("what a user leaves behind does not keep the credential alive", async () => {
      const { plan, secrets } = newLease();
      await driver.mint(plan, secrets, signal);
      await harness.litter(plan, secrets);
      expect(await recover(plan, secrets)).toBe("dead");
    });

    for (const verb of atEachStep ? (["mint", "fence", "revoke", "confirm"] as const) : []) {
      for (const lost of ["the message", "the answer"] as const) {
        test(
          `${verb}: with ${lost} lost at any step, the lease is still removed and proved gone`,
          ONE_BY_ONE,
          async () => {
            const steps = await eachStep(async (step) => {
              const { plan, secrets } = newLease(relay.port);
              await before(verb, plan, secrets);
              const stride = harness.lossStride;
              relay.cutAt(step * stride - (lost === "the message" ? stride - 1 : 0), lost);
              const result = await call(verb, plan, secrets).catch(() => "failed");
              const reached = relay.heal();
              expect(await done(verb, result, plan, secrets)).toBe(true);
              expect(await recover(plan, secrets)).toBe("dead");
              return reached;
            });
            expect(steps * harness.lossStride).toBeGreaterThan(5);
          },
        );
      }
    }

    for (const verb of atEachStep ? (["mint", "revoke"] as const) : []) {
      test(
        `${verb}: with the process killed at any step, the lease is still removed and proved gone`,
        ONE_BY_ONE,
        async () => {
          const stride = harness.killStride[verb];
          const steps = await eachStep(async (step) => {
            const { plan, secrets, key } = newLease(relay.port);
            await before(verb, plan, secrets);
            const child = startChild({ ...taskOf(plan, key), verb });
            relay.cutAt(step * stride, "the answer", () => child.process.kill("SIGKILL"));
            const finished = await child.finished;
            const reached = relay.heal();
            expect(finished).toBe(!reached);
            expect(await recover(plan, secrets)).toBe("dead");
            return reached;
          });
          expect(steps * stride).toBeGreaterThan(5);
        },
      );
    }

    /** Brings the lease to the state in which `verb` has the most to do. */
    async function before(verb: Verb, plan: LeasePlan, secrets: LeaseSecrets): Promise<void> {
      if (verb === "mint") return;
      await driver.mint(plan, secrets, signal);
      if (verb === "revoke") await harness.litter(plan, secrets);
      if (verb === "confirm") await driver.revoke(plan, signal);
    }

    /** A call that resolved, whatever happened on the way, must have done what it says. */
    async function done(verb: Verb, result: unknown, plan: LeasePlan, secrets: LeaseSecrets): Promise<boolean> {
      if (result === "failed") return true;
      if (verb === "revoke") return (await driver.confirm(plan, secrets, signal)).verdict === "dead";
      if (verb === "confirm") return ["dead", "unknown"].includes((result as Confirmation).verdict);
      const letIn = await driver.probe(plan, secrets, signal).then(
        () => true,
        () => false,
      );
      return letIn === (verb === "mint");
    }

    async function call(verb: Verb, plan: LeasePlan, secrets: LeaseSecrets): Promise<unknown> {
      if (verb === "mint") return driver.mint(plan, secrets, signal);
      if (verb === "confirm") return driver.confirm(plan, secrets, signal);
      return driver[verb](plan, signal);
    }

    function taskOf(plan: LeasePlan, secretsKey: string): Omit<ChildTask, "verb"> {
      const { module, name: exported } = harness.driver;
      return { module: module.href, name: exported, install, plan, secretsKey, references: harness.references() };
    }

    test("confirm never says dead while a session runs", async () => {
      const { plan, secrets } = newLease();
      await driver.mint(plan, secrets, signal);
      const session = await harness.holdSession(plan, secrets);
      await driver.fence(plan, signal);
      for (let i = 0; i < 5; i += 1)
        expect(await driver.confirm(plan, secrets, signal)).not.toHaveProperty("verdict", "dead");
      expect(await session.alive()).toBe(true);
      expect(await recover(plan, secrets)).toBe("dead");
      await session.close();
    });

    test("lesson 12: an outage is not known, never dead, and ends without harm", async () => {
      const [minted, planned] = [newLease(), newLease()];
      await driver.mint(minted.plan, minted.secrets, signal);
      await harness.stopTarget();
      await expect(driver.mint(planned.plan, planned.secrets, signal)).rejects.toMatchObject({
        code: "target_unreachable",
      });
      await expect(driver.probe(minted.plan, minted.secrets, signal)).rejects.toMatchObject({
        code: "target_unreachable",
      });
      await expect(driver.fence(minted.plan, signal)).rejects.toMatchObject({ code: "target_unreachable" });
      await expect(driver.revoke(minted.plan, signal)).rejects.toMatchObject({ code: "target_unreachable" });
      for (const { plan, secrets } of [minted, planned]) {
        expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "unknown" });
      }
      expect((await driver.preflight(config(), harness.scope, signal)).some((check) => !check.ok)).toBe(true);
      await harness.startTarget();
      for (const { plan, secrets } of [minted, planned]) expect(await recover(plan, secrets)).toBe("dead");
    });

    test("an abort ends a call against a target that never answers", async () => {
      const { plan, secrets } = newLease(relay.port);
      relay.cutAt(1, "nothing, and hang");
      for (const verb of ["mint", "fence", "revoke", "confirm"] as const) {
        const abort = new AbortController();
        const made = relay.connections() + 1;
        const pending = (async () => {
          if (verb === "mint") return driver.mint(plan, secrets, abort.signal);
          if (verb === "confirm") return driver.confirm(plan, secrets, abort.signal);
          return driver[verb](plan, abort.signal);
        })();
        const settled = expect(pending).rejects.toThrow("enough");
        while (relay.connections() < made) await new Promise((done) => setTimeout(done, 2));
        abort.abort(new Error("enough"));
        await settled;
      }
      relay.heal();
    });

    test("the administrator's secret is read at each use, so a rotation in mid-life changes nothing", async () => {
      const { plan, secrets } = newLease();
      await driver.mint(plan, secrets, signal);
      if (harness.rotateAdmin === undefined) expect(harness.references()).toEqual({});
      await harness.rotateAdmin?.();
      await driver.fence(plan, signal);
      await driver.revoke(plan, signal);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "dead" });
    });

    test("an orphan is found by name and removed; another installation's lease is left alone", async () => {
      const theirs = newLease();
      const sessions = [await findable(theirs)];
      const others = install;
      install = randomBase32(6);
      const ours = newLease();
      sessions.push(await findable(ours));
      const found = await driver.list(config(), install, signal);
      expect(found).toHaveLength(1);
      for (const orphan of found)
        expect(await recover(freshDriver().planForOrphan(config(), orphan), ours.secrets)).toBe("dead");
      expect(await driver.list(config(), install, signal)).toEqual([]);
      expect(await driver.list(config(), others, signal)).toHaveLength(1);
      await driver.probe(theirs.plan, theirs.secrets, signal);
      expect(await recover(theirs.plan, theirs.secrets)).toBe("dead");
      for (const session of sessions) await session?.close();
    });

    test("many leases at once do not stand in each other's way", async () => {
      const before = await lines();
      const leases = Array.from({ length: 12 }, () => newLease());
      const sessions = await Promise.all(leases.map(findable));
      expect(await driver.list(config(), install, signal)).toHaveLength(12);
      await Promise.all(leases.map(({ plan, secrets }) => recover(plan, secrets)));
      expect(await lines()).toEqual(before);
      for (const session of sessions) await session?.close();
    });

    test("what it promises is stated", () => {
      const promises = harness.kind.promises(config());
      expect(["none", "login", "session"]).toContain(promises.nativeExpiry);
      expect(promises.worstCaseRevokeMs).toBeGreaterThan(0);
    });
  });
}

/** Runs `attempt` for step 1, 2, 3 … until one says that its call ended before that step. */
async function eachStep(attempt: (step: number) => Promise<boolean>): Promise<number> {
  for (let step = 1; step <= STEPS_MAX; step += 1) if (!(await attempt(step))) return step;
  throw new Error(`more than ${STEPS_MAX} steps`);
}

interface Relay {
  readonly port: number;
  /** At the client's `step`th message from now on: loses it or its answer, calls `tell`, and lets nobody through. */
  cutAt(step: number, lost: "the message" | "the answer" | "nothing, and hang", tell?: () => void): void;
  /** Lets everybody through again. Says whether the cut had happened. */
  heal(): boolean;
  /** Connections accepted so far. */
  connections(): number;
  close(): Promise<void>;
}

/** A TCP relay in front of the target that counts what the client sends. */
async function startRelay(targetPort: number): Promise<Relay> {
  const sockets = new Set<Socket>();
  let plan: { step: number; lost: string; tell: (() => void) | undefined } | undefined;
  let [seen, cut, accepted] = [0, false, 0];
  const server = createServer((client) => {
    accepted += 1;
    if (cut && plan?.lost !== "nothing, and hang") {
      client.destroy();
      return;
    }
    const target = connect(targetPort, "127.0.0.1");
    for (const socket of [client, target]) {
      sockets.add(socket.on("error", () => {}));
      socket.on("close", () => sockets.delete(socket));
    }
    client.on("close", () => void (cut || target.destroy()));
    target.on("close", () => client.destroy());
    target.on("data", (bytes) => void (cut || client.write(bytes)));
    client.on("data", (bytes) => {
      seen += 1;
      if (cut) return;
      if (plan === undefined || seen < plan.step) {
        target.write(bytes);
        return;
      }
      cut = true;
      plan.tell?.();
      if (plan.lost === "nothing, and hang") return;
      // The whole network is gone for this client: its other connections too.
      for (const socket of sockets) if (socket !== target || plan.lost === "the message") socket.destroy();
      if (plan.lost === "the answer") target.end(bytes);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  return {
    port,
    connections: () => accepted,
    cutAt(step, lost, tell) {
      plan = { step, lost, tell };
      seen = 0;
    },
    heal() {
      const happened = cut;
      if (plan?.lost === "nothing, and hang") for (const socket of sockets) socket.destroy();
      [plan, cut] = [undefined, false];
      return happened;
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

interface Child {
  readonly process: ChildProcess;
  /** Whether the call resolved; false when the process was killed. Rejects when the call failed by itself. */
  readonly finished: Promise<boolean>;
}

function startChild(task: ChildTask): Child {
  const script = fileURLToPath(new URL("./conformance-child.ts", import.meta.url));
  const child = spawn(process.execPath, [script], { stdio: ["pipe", "pipe", "pipe"] });
  let [out, errors] = ["", ""];
  child.stdout.on("data", (bytes: Buffer) => (out += bytes.toString()));
  child.stderr.on("data", (bytes: Buffer) => (errors += bytes.toString()));
  child.stdin.end(JSON.stringify(task));
  const finished = (async () => {
    const [code, how] = (await once(child, "close")) as [number | null, string | null];
    if (how === "SIGKILL") return false;
    if (code !== 0 || out !== "done\n") throw new Error(`the child ended with ${code}: ${errors}`);
    return true;
  })();
  return { process: child, finished };
}
