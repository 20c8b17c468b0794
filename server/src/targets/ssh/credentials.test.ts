import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { newId } from "../../core/ids.ts";
import type { JsonObject } from "../../core/json.ts";
import { testTools } from "../conformance-child.ts";
import type { Check, LeaseDriver, LeasePlan } from "../target.ts";
import { authorityLine, credentialSigner, issuePass, targetAuthority } from "./authority.ts";
import { parseCertificate } from "./certificate.ts";
import { parseConfig, planOf } from "./config.ts";
import { createDriver } from "./credentials.ts";
import { dial } from "./dial.ts";
import { missingHost, startHost, type TestHost } from "./fixtures/host.ts";
import { closedPort } from "./fixtures/harness.ts";
import { missingSshd, startSshd, type TestSshd } from "./fixtures/sshd.ts";
import { hostSetup } from "./host-setup.ts";
import { signerFromSeed, publicKeyLine } from "./keys.ts";
import { createLanes } from "./lanes.ts";
import { sourceAddresses } from "./route.ts";
import { run } from "./run.ts";

const tools = testTools("ab12cd", () => ({}));
const secrets = { derive: tools.derive };
const { signal } = new AbortController();

function config(change: JsonObject): JsonObject {
  const parsed = parseConfig({ host: "127.0.0.1", ...change });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return parsed.value;
}

function planFor(driver: LeaseDriver, of: JsonObject, scope: JsonObject = { user: "root", shell: true }): LeasePlan {
  const endsAt = new Date(Date.now() + 600_000);
  return driver.plan({ install: "ab12cd", lease: newId("lease"), target: "web-1", config: of, scope, endsAt });
}

const pinned = (key: string, port: number): JsonObject => ({ port, hostKeys: { pin: [key] } });
const KEY = publicKeyLine(signerFromSeed(Buffer.alloc(32, 1)).blob);

describe("issue", () => {
  const driver = createDriver(tools);
  const plan = planFor(driver, config({ ...pinned(KEY, 22), from: ["10.0.0.7", "10.1.0.0/24"] }), {
    user: "deploy",
    forward: ["db:5432"],
  });
  const at = new Date("2026-03-01T12:00:00.250Z");

  test("a fresh key for each session, and a certificate for one principal, one minute and the gateway's addresses", async () => {
    const to = { session: newId("session"), at, endsAt: new Date(at.getTime() + 600_000) };
    const [one, two] = [await driver.issue(plan, secrets, to), await driver.issue(plan, secrets, to)];
    const [a, b] = [one, two].map((credential) => parseCertificate(credentialSigner(credential).blob));
    expect(a).toMatchObject({
      ...{ type: "user", keyId: planOf(plan).lease, principals: ["deploy"] },
      criticalOptions: new Map([["source-address", "10.0.0.7,10.1.0.0/24"]]),
      extensions: new Map([["permit-port-forwarding", ""]]),
      validAfter: BigInt(Math.floor(at.getTime() / 1000) - 60),
      validBefore: BigInt(Math.floor(at.getTime() / 1000) + 60),
    });
    expect(a?.key.blob).not.toEqual(b?.key.blob);
    expect(a?.serial).not.toBe(b?.serial);
    expect(a?.authority.toString("base64")).toBe(authorityLine(tools).split(" ")[1]);
  });

  test("never past the lease's end, whatever was decided when; and not at all after it", async () => {
    const endsAt = new Date(at.getTime() + 20_000);
    const issued = await driver.issue(plan, secrets, { session: newId("session"), at, endsAt });
    expect(parseCertificate(credentialSigner(issued).blob).validBefore).toBe(
      BigInt(Math.floor(endsAt.getTime() / 1000)),
    );
    await expect(driver.issue(plan, secrets, { session: newId("session"), at, endsAt: at })).rejects.toMatchObject({
      code: "grant_over",
    });
    const orphan = driver.planForOrphan(config(pinned(KEY, 22)), {
      name: planOf(plan).lease,
      lease: "ls_000000000000",
    });
    await expect(driver.issue(orphan, secrets, { session: newId("session"), at, endsAt })).rejects.toMatchObject({
      code: "grant_over",
    });
  });

  test("the plan holds no key and no certificate", () => {
    expect(JSON.stringify(plan)).not.toMatch(/PRIVATE|cert-v01|"key"/);
  });

  test("a certificate that could be used from anywhere is never made", () => {
    const pass = {
      keyId: "x",
      principal: "x",
      from: [],
      extensions: [],
      validAfter: new Date(0),
      validBefore: new Date(),
    };
    expect(() => issuePass(pass, targetAuthority(tools))).toThrow("where it may be used from");
  });

  test("the gateway's address is the one that packets to the host would leave from", async () => {
    expect(await sourceAddresses({ host: "127.0.0.1", port: 22, from: [] })).toEqual(["127.0.0.1"]);
    expect(await sourceAddresses({ host: "localhost", port: 22, from: [] })).toContain("127.0.0.1");
    expect(await sourceAddresses({ host: "127.0.0.1", port: 22, from: ["10.0.0.0/8"] })).toEqual(["10.0.0.0/8"]);
    await expect(sourceAddresses({ host: "no-such-name.invalid", port: 22, from: [] })).rejects.toMatchObject({
      code: "target_unreachable",
    });
  });
});

describe.skipIf(missingSshd() !== undefined)("a host without a control login", () => {
  let sshd: TestSshd;
  beforeAll(async () => {
    sshd = await startSshd({ trustedUserCas: [authorityLine(tools)] });
  });
  afterAll(() => sshd.dispose());

  const plain = (): JsonObject => config(pinned(sshd.hostKeys.ed25519, sshd.port));

  test("an end is not known until the last certificate has expired; then the host itself refuses it", async () => {
    const driver = createDriver(tools, { certificateMs: 4_000 });
    const plan = planFor(driver, plain());
    await driver.mint(plan, secrets, signal);
    await driver.probe(plan, secrets, signal);
    const at = new Date();
    const credential = await driver.issue(plan, secrets, {
      session: newId("session"),
      at,
      endsAt: new Date(at.getTime() + 600_000),
    });
    const { connection } = await dial({ ...planOf(plan) }, credentialSigner(credential), signal);
    connection.destroy();
    await driver.fence(plan, signal);
    await driver.revoke(plan, signal);
    const early = await driver.confirm(plan, secrets, signal, at);
    if (Date.now() < at.getTime() + 4_000)
      expect(early).toMatchObject({ verdict: "unknown", why: expect.stringContaining("valid until") });
    let proof = early;
    for (let n = 0; n < 200 && proof.verdict !== "dead"; n += 1) {
      await new Promise((done) => setTimeout(done, 200));
      proof = await driver.confirm(plan, secrets, signal, at);
    }
    expect(proof).toMatchObject({ verdict: "dead" });
    expect(Date.now()).toBeGreaterThan(at.getTime() + 4_000);
    const evidence = proof.verdict === "dead" ? proof.evidence : [];
    expect(evidence[0]?.answered).toBe("refused; a valid one of no lease was let in on the same connection");
    expect(evidence[1]).toEqual({
      asked: "processes that its sessions left on the host",
      answered: "not provable: this target has no control login",
    });
    await expect(dial({ ...planOf(plan) }, credentialSigner(credential), signal)).rejects.toMatchObject({
      code: "target_unreachable",
    });
  });

  test("a certificate that the host would still let in is never a proof, whatever our clock says", async () => {
    const driver = createDriver(tools);
    const plan = planFor(driver, plain());
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 3_600_000 }); // as if the host's clock were an hour behind
    try {
      const lastIssue = new Date(Date.now() - 120_000);
      expect(await driver.confirm(plan, secrets, signal, lastIssue)).toEqual({
        verdict: "alive",
        left: [expect.stringContaining("its clock is behind")],
      });
    } finally {
      vi.useRealTimers();
    }
    expect(await driver.confirm(plan, secrets, signal, new Date(Date.now() - 120_000))).toMatchObject({
      verdict: "dead",
    });
  });

  test("when nobody knows the last issue, the lease's own end counts", async () => {
    const driver = createDriver(tools);
    const plan = planFor(driver, plain());
    expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "unknown" });
    const over = await driver.extend(plan, new Date(Date.now() - 10_000), signal);
    expect(await driver.confirm(over, secrets, signal)).toMatchObject({ verdict: "dead" });
  });

  test("a host that does not answer is not known", async () => {
    const driver = createDriver(tools);
    const plan = planFor(driver, config(pinned(sshd.hostKeys.ed25519, await closedPort())));
    const over = await driver.extend(plan, new Date(Date.now() - 10_000), signal);
    expect(await driver.confirm(over, secrets, signal)).toMatchObject({ verdict: "unknown" });
    await expect(driver.mint(plan, secrets, signal)).rejects.toMatchObject({ code: "target_unreachable" });
  });

  test("the fingerprint is the host's key, and says that there is no more", async () => {
    const driver = createDriver(tools);
    expect((await driver.fingerprint(planFor(driver, plain()), "ab12cd", signal)).lines).toEqual([
      expect.stringMatching(/^host key SHA256:[A-Za-z0-9+/]{43} ssh-ed25519$/),
      "nothing else is seen: this target has no control login",
    ]);
    expect(await driver.list(plain(), "ab12cd", signal)).toEqual([]);
  });

  test("another host key than the one in the target file stops everything, and both are named", async () => {
    const driver = createDriver(tools);
    const plan = planFor(driver, config(pinned(KEY, sshd.port)));
    for (const verb of ["mint", "probe", "fingerprint"] as const) {
      const call =
        verb === "fingerprint" ? driver.fingerprint(plan, "ab12cd", signal) : driver[verb](plan, secrets, signal);
      await expect(call).rejects.toMatchObject({
        code: "target_untrusted",
        message: expect.stringMatching(/SHA256:.*SHA256:/),
      });
    }
    const checks = await driver.preflight(config(pinned(KEY, sshd.port)), { user: "root" }, signal);
    expect(checks.filter(({ ok }) => !ok)).toMatchObject([
      { check: "host key", fix: expect.stringContaining("hostKeys:") },
    ]);
  });
});

describe.skipIf(missingHost() !== undefined)("target check names the line that is missing on the host", () => {
  let host: TestHost | undefined;
  afterEach(async () => {
    await host?.dispose();
    host = undefined;
  });

  const scope = { user: "deploy", shell: true, sftp: { read: ["/"] } };

  async function prepared(
    change: (host: TestHost) => void,
    control: JsonObject | null,
    settings: readonly string[] = [],
  ): Promise<TestHost> {
    host = await startHost({ config: settings });
    host.shell(hostSetup(tools, config({ ...pinned(host.hostKey, host.port), control })).formats["shell"] ?? "false");
    change(host);
    await host.start();
    return host;
  }

  async function check(of: TestHost, change: JsonObject, asked: JsonObject = scope): Promise<readonly Check[]> {
    const checks = await createDriver(tools).preflight(
      config({ ...pinned(of.hostKey, of.port), ...change }),
      asked,
      signal,
    );
    for (const one of checks) expect(one.ok || (one.fix ?? "") !== "").toBe(true);
    return checks.filter(({ ok }) => !ok);
  }

  test("a host that was set up as the text says is fit, with and without a control login", async () => {
    const one = await prepared(() => {}, { user: "glasskey" });
    expect(await check(one, { control: { user: "glasskey" } })).toEqual([]);
    expect(await check(one, {})).toEqual([]);
  });

  test("authority, principal, user, address", async () => {
    const control = { user: "glasskey" };
    const one = await prepared(
      (at) => at.shell("mkdir -p /etc/ssh/p; echo gk-web >/etc/ssh/p/glasskey; echo nobody >/etc/ssh/p/deploy"),
      control,
    );
    expect(await check(one, { control }, { ...scope, user: "absent" })).toMatchObject([
      { check: "login", detail: "there is no user absent on the host", fix: expect.stringContaining("useradd") },
    ]);
    expect(await check(one, { control, principal: "gk-web" })).toMatchObject([
      { check: "login", fix: "In the AuthorizedPrincipalsFile of deploy on the host, add the line: gk-web" },
    ]);
    expect(await check(one, { from: ["10.99.0.1"] })).toMatchObject([
      {
        check: "login",
        detail: expect.stringContaining("another address than 10.99.0.1"),
        fix: expect.stringContaining("from: [ADDRESS]"),
      },
    ]);
    one.shell(
      "echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfx83hgNdoeqRTOKxZ11vdGS7NL7HamvaOjzvDfduBe' >/etc/ssh/glasskey_ca.pub",
    );
    expect(await check(one, {})).toMatchObject([
      {
        check: "login",
        fix: expect.stringContaining(`TrustedUserCAKeys in sshd_config names:\n${authorityLine(tools)}\n`),
      },
    ]);
    expect(await check(one, { control })).toMatchObject([{ check: "control login" }, { check: "login" }]);
  });

  test("the list of revoked keys, the mark, terminals and sftp, each by what sshd does", async () => {
    const control = { user: "glasskey" };
    const broken = (at: TestHost): void => {
      at.shell(
        "sed -i -e '/^RevokedKeys/d' -e '/^AcceptEnv/d' /etc/ssh/sshd_config.d/50-glasskey.conf; sed -i -e '/^AcceptEnv/d' -e '/^Subsystem/d' /etc/ssh/sshd_config; echo 'PermitTTY no' >>/etc/ssh/sshd_config",
      );
    };
    const one = await prepared(broken, control);
    expect(await check(one, { control })).toMatchObject([
      { check: "revoked keys", fix: "In sshd_config: RevokedKeys /etc/ssh/glasskey_revoked_keys; then reload sshd." },
      { check: "mark", fix: "In sshd_config: AcceptEnv LC_GLASSKEY" },
      { check: "terminal", fix: "In sshd_config, for deploy: PermitTTY yes" },
      { check: "sftp", fix: "In sshd_config: Subsystem sftp internal-sftp" },
    ]);
    // And nothing is opened there: an end could not be enforced.
    const driver = createDriver(tools);
    const plan = planFor(driver, config({ ...pinned(one.hostKey, one.port), control }), scope);
    await expect(driver.mint(plan, secrets, signal)).rejects.toMatchObject({
      code: "target_unfit",
      next: expect.stringContaining("RevokedKeys"),
    });
    one.shell("rm /etc/ssh/glasskey_revoked_keys");
    expect((await check(one, { control }))[0]).toMatchObject({
      check: "revoked keys",
      detail: expect.stringContaining("there is no file /etc/ssh/glasskey_revoked_keys"),
      fix: expect.stringContaining("install -m 0644 /dev/null /etc/ssh/glasskey_revoked_keys"),
    });
  });

  test("a control login that is not root, or whose script is another", async () => {
    const control = { user: "glasskey" };
    const one = await prepared((at) => at.shell("rm /etc/sudoers.d/glasskey"), control);
    expect((await check(one, { control }))[0]).toMatchObject({ check: "control login" });
    one.shell(
      "printf '#!/bin/sh\\necho glasskey-control 7\\n' >/usr/local/lib/glasskey/control; echo 'glasskey ALL=(root) NOPASSWD: /usr/local/lib/glasskey/control' >/etc/sudoers.d/glasskey",
    );
    expect((await check(one, { control }))[0]).toMatchObject({
      check: "control login",
      detail: expect.stringContaining("another version"),
      fix: expect.stringContaining("glass target setup"),
    });
  });

  test("Glasskey's own login is no playbook's user: its sessions would speak with the script that ends leases", async () => {
    const control = { user: "glasskey" };
    const one = await prepared(() => {}, control);
    const asked = { ...scope, user: "glasskey" };
    expect(await check(one, { control }, asked)).toMatchObject([
      { check: "login", detail: expect.stringContaining("own login"), fix: expect.stringContaining("another user") },
    ]);
    const driver = createDriver(tools);
    const plan = planFor(driver, config({ ...pinned(one.hostKey, one.port), control }), asked);
    await expect(driver.mint(plan, secrets, signal)).rejects.toMatchObject({ code: "target_unfit" });
    const same = { host: "h", ...pinned(one.hostKey, 22), control };
    expect(parseConfig({ ...same, principal: "glasskey" })).toMatchObject({
      ok: false,
      problems: [{ path: ["principal"] }],
    });
    expect(parseConfig({ ...same, principal: "root", control: { user: "root" } })).toMatchObject({ ok: true });
  });

  test("a connection that has run nothing is not found on the host, so the proof waits for the gateway's cut", async () => {
    const control = { user: "glasskey" };
    const one = await prepared(() => {}, control);
    const driver = createDriver(tools);
    const plan = planFor(driver, config({ ...pinned(one.hostKey, one.port), control }), scope);
    const to = { session: newId("session"), at: new Date(), endsAt: new Date(Date.now() + 60_000) };
    const { connection } = await dial(planOf(plan), credentialSigner(await driver.issue(plan, secrets, to)), signal);
    try {
      await driver.fence(plan, signal);
      await driver.revoke(plan, signal);
      expect(await driver.confirm(plan, secrets, signal)).toMatchObject({ verdict: "dead" });
      const { stdout } = await run(connection, "id -un", { limitBytes: 1_000, signal });
      expect(stdout.toString()).toBe("deploy\n"); // the limit, as docs/ssh-target.md tells it
      expect(driver.cutsFirst).toBe(true);
    } finally {
      connection.destroy();
    }
  });

  test("a host that lies about its time and answers without end dates no proof, and fills no store", async () => {
    const control = { user: "glasskey" };
    const one = await prepared(
      (at) =>
        at.shell(`cat >/usr/local/lib/glasskey/control <<'END'
#!/bin/sh
set -- $1
verb=$(echo "$*" | sed 's/.*glasskey-control 1 \\([a-z]*\\).*/\\1/')
printf 'glasskey-control 1\\nnow 999999999999\\n'
case $verb in
  confirm) [ -e /etc/quiet ] || yes "left 1 $(head -c 400 /dev/zero | tr '\\0' x)" | head -n 2000; echo 'revoked yes' ;;
  list) for n in $(seq -w 1 9000); do echo "lease gk_ab12cd_00000000$n"; done ;;
esac
echo "done $verb"
END`),
      control,
    );
    const driver = createDriver(tools);
    const of = config({ ...pinned(one.hostKey, one.port), control });
    const found = await driver.list(of, "ab12cd", signal);
    expect(found.length).toBe(200);
    const orphan = driver.planForOrphan(of, { name: "gk_ab12cd_000000000001", lease: "ls_000000000001" });
    const proof = await driver.confirm(orphan, secrets, signal);
    expect(proof.verdict).toBe("alive");
    expect(JSON.stringify(proof).length).toBeLessThan(4_000);
    one.shell("touch /etc/quiet");
    const dead = await driver.confirm(orphan, secrets, signal);
    expect(dead).toMatchObject({ verdict: "dead" });
    expect(dead.verdict === "dead" ? dead.from.getTime() : Infinity).toBeLessThanOrEqual(Date.now());
  });

  test("a host that nobody listens on", async () => {
    host = await startHost();
    const port = await closedPort();
    const checks = await createDriver(tools).preflight(config(pinned(host.hostKey, port)), scope, signal);
    expect(checks).toMatchObject([{ check: "reach", ok: false, fix: expect.any(String) }]);
  });
});

test("lanes: so many at once for each host, in order, and who is aborted leaves", async () => {
  const lanes = createLanes(2);
  let [running, most] = [0, 0];
  const work = async (): Promise<void> => {
    running += 1;
    most = Math.max(most, running);
    await new Promise((done) => setImmediate(done));
    running -= 1;
  };
  const gone = new AbortController();
  const aborted = expect(
    Promise.all([...Array.from({ length: 10 }, () => lanes("a", signal, work)), lanes("a", gone.signal, work)]),
  ).rejects.toThrow("gone");
  gone.abort(new Error("gone"));
  await aborted;
  await Promise.all(Array.from({ length: 10 }, () => lanes("a", signal, work)));
  expect(most).toBe(2);
  await expect(lanes("a", signal, () => Promise.reject(new Error("work failed")))).rejects.toThrow("work failed");
  await lanes("a", signal, work);
  expect(running).toBe(0);
});
