import { describe, GlassError } from "../../core/errors.ts";
import type { JsonObject } from "../../core/json.ts";
import type { Check, DriverTools } from "../target.ts";
import { authorityLine, issuePass, targetAuthority, validity, type Pass } from "./authority.ts";
import {
  extensionsFor,
  isControlLogin,
  OWN_LOGIN,
  userOf,
  type Control,
  type SshConfig,
  type SshPlan,
} from "./config.ts";
import { askControl, valuesOf, type ControlTarget } from "./control.ts";
import { publicKeyLine } from "./keys.ts";
import type { Lanes } from "./lanes.ts";
import { offer, reach } from "./login.ts";
import { sourceAddresses } from "./route.ts";
import type { Channel, Connection } from "./types.ts";
import { Writer } from "./wire.ts";

/** A lease that there is none of, for ever revoked on every host: its refusal proves that sshd reads the list. */
export const CANARY = "000000000000";

const SKEW_MS = 30_000; // certificates begin a minute early and end a minute late
const WIDE_MS = 24 * 3_600_000;

export interface Means {
  readonly tools: DriverTools;
  readonly lanes: Lanes;
}

/** @throws GlassError `target_unfit` unless the lease's user can be let in and, where there is a control login, shut out. */
export function requireRevocable(plan: SshPlan, [canary, probe]: readonly boolean[]): void {
  if (canary !== false) {
    throw new GlassError(
      "target_unfit",
      "the host lets a revoked certificate in, so an early end could not be enforced there",
      {
        next: `In sshd_config: RevokedKeys ${plan.control?.revokedKeys ?? ""}; then reload sshd.`,
      },
    );
  }
  if (probe !== true) {
    throw new GlassError(
      "target_unfit",
      `the host lets nobody in as ${plan.user} with a certificate of this Glasskey`,
      {
        next: "`glass target check` says which line is missing on the host.",
      },
    );
  }
}

/**
 * Asks a host, by behaviour and not by reading its files, whether a lease could be opened and ended there. Runs nothing as the
 * lease's user. Adds one entry, of a lease that does not exist, to Glasskey's own list of revoked keys.
 */
export async function inspect(
  config: SshConfig,
  scope: JsonObject | undefined,
  means: Means,
  signal: AbortSignal,
): Promise<readonly Check[]> {
  const check = new Inspection(config, scope, means, signal);
  return check.all();
}

class Inspection {
  readonly #config: SshConfig;
  readonly #scope: JsonObject | undefined;
  readonly #means: Means;
  readonly #signal: AbortSignal;
  readonly #checks: Check[] = [];
  readonly #authorityLine: string;

  constructor(config: SshConfig, scope: JsonObject | undefined, means: Means, signal: AbortSignal) {
    [this.#config, this.#scope, this.#means, this.#signal] = [config, scope, means, signal];
    this.#authorityLine = authorityLine(means.tools);
  }

  async all(): Promise<readonly Check[]> {
    const { control } = this.#config;
    const user = userOf(this.#scope);
    try {
      await sourceAddresses(this.#config);
    } catch (error) {
      return [failed("reach", describe(error), error)];
    }
    const controlled = control === null ? undefined : await this.#control(control, user);
    if (controlled === false) return this.#checks; // nothing was reached, or it is another host
    if (user !== undefined) await this.#user(user, controlled);
    else if (control === null) await this.#reach();
    if (control === null && this.#checks.every(({ check, ok }) => ok || (check !== "reach" && check !== "host key"))) {
      this.#ok(
        "control",
        "no control login: what a session left running is not provable, an early end is proved after a minute",
      );
    }
    return this.#checks;
  }

  #ok(check: string, detail: string): void {
    this.#checks.push({ check, ok: true, detail });
  }

  #bad(check: string, detail: string, fix: string): void {
    this.#checks.push({ check, ok: false, detail, fix });
  }

  async #pass(change: Partial<Pass>): Promise<{ key: string; certificate: string }> {
    const from = await sourceAddresses(this.#config);
    const keyId = `gk_${this.#means.tools.install}_probe`;
    const pass = { keyId, principal: "", from, extensions: [], ...validity(new Date()), ...change };
    return issuePass(pass, targetAuthority(this.#means.tools));
  }

  async #tries(user: string, changes: readonly Partial<Pass>[]): Promise<readonly boolean[]> {
    const principal = this.#config.principal ?? user;
    const passes = await Promise.all(changes.map((change) => this.#pass({ principal, ...change })));
    const { host, port } = this.#config;
    return this.#means.lanes(`${host}:${port}`, this.#signal, () =>
      offer({ ...this.#config, user }, passes, this.#signal),
    );
  }

  /** Without a user or a control login there is nobody to log in as; the host and its key can be looked at all the same. */
  async #reach(): Promise<void> {
    try {
      await this.#tries("glasskey-check", [{ principal: "glasskey-check" }]);
      this.#ok("reach", "the host answers, and its key is the one in the target file");
    } catch (error) {
      this.#notReached(error);
    }
  }

  #notReached(error: unknown): void {
    if (!ranOut(this.#signal)) this.#signal.throwIfAborted();
    this.#checks.push(
      failed(
        error instanceof GlassError && error.code === "target_untrusted" ? "host key" : "reach",
        describe(error),
        error,
      ),
    );
  }

  /** @returns false when the host was not reached at all, undefined when only the control login does not work. */
  async #control(control: Control, user: string | undefined): Promise<{ user: boolean } | false | undefined> {
    const target: ControlTarget = { ...this.#config, control };
    const { tools, lanes } = this.#means;
    let letIn: boolean;
    try {
      [letIn = false] = await this.#tries(control.user, [
        { principal: control.principal, keyId: `gk_${tools.install}_control` },
      ]);
    } catch (error) {
      this.#notReached(error);
      return false;
    }
    this.#ok("reach", "the host answers, and its key is the one in the target file");
    if (!letIn) {
      await this.#refused("control login", control.user, control.principal, undefined);
      return undefined;
    }
    try {
      const sentAt = Date.now();
      const answer = await askControl(target, tools, lanes, ["hello", user ?? "-"], this.#signal);
      const skewMs = answer.now.getTime() - (sentAt + Date.now()) / 2;
      const missing = valuesOf(answer, "missing");
      if (valuesOf(answer, "uid").join() !== "0") {
        this.#bad(
          "control login",
          `${control.user} is not root there, and the script does not run by sudo`,
          `Force the command on the host, as \`glass target setup\` has it: command="sudo -n /usr/local/lib/glasskey/control …".`,
        );
      } else if (missing.length > 0) {
        this.#bad(
          "control login",
          `the host lacks ${missing.join(", ")}`,
          `On the host, install or allow: ${missing.join(", ")}.`,
        );
      } else this.#ok("control login", `as ${control.user}`);
      this.#clock(skewMs);
      await this.#revokedKeys(target, control);
      return { user: valuesOf(answer, "user").join() === "yes" };
    } catch (error) {
      if (!ranOut(this.#signal)) this.#signal.throwIfAborted();
      this.#checks.push(failed("control login", describe(error), error));
      return undefined;
    }
  }

  #clock(skewMs: number): void {
    const size = `${(Math.abs(skewMs) / 1000).toFixed(0)} s ${skewMs < 0 ? "behind" : "ahead"}`;
    if (Math.abs(skewMs) < SKEW_MS) this.#ok("clock", `the host's clock is right to ${Math.ceil(SKEW_MS / 1000)} s`);
    else
      this.#bad(
        "clock",
        `the host's clock is ${size}: certificates are valid for a minute`,
        "Set the host's clock, and keep it: timedatectl set-ntp true",
      );
  }

  async #revokedKeys(target: ControlTarget, control: Control): Promise<void> {
    const { tools, lanes } = this.#means;
    const [type = "", key = ""] = publicKeyLine(targetAuthority(tools).blob).split(" ");
    const canary = `gk_${tools.install}_${CANARY}`;
    try {
      await askControl(target, tools, lanes, ["fence", canary, control.revokedKeys, type, key], this.#signal);
    } catch (error) {
      if (!describe(error).includes(`there is no file ${control.revokedKeys}`)) throw error;
      const line = `RevokedKeys ${control.revokedKeys}`;
      const fix = `On the host: install -m 0644 /dev/null ${control.revokedKeys}\nThen in sshd_config: ${line}; and reload sshd.`;
      return this.#bad("revoked keys", describe(error), fix);
    }
    const own = { principal: control.principal };
    const [revoked] = await this.#tries(control.user, [
      { ...own, keyId: canary },
      { ...own, keyId: `gk_${tools.install}_control` },
    ]);
    if (revoked === false) this.#ok("revoked keys", `sshd refuses what is in ${control.revokedKeys}`);
    else {
      this.#bad(
        "revoked keys",
        "the host lets a revoked certificate in: sshd does not read the list",
        `In sshd_config: RevokedKeys ${control.revokedKeys}; then reload sshd.`,
      );
    }
  }

  async #user(user: string, controlled: { user: boolean } | undefined): Promise<void> {
    if (isControlLogin(this.#config, user)) {
      this.#bad("login", `${user}: ${OWN_LOGIN}`, "Name another user in the playbook's scope.");
      return;
    }
    const principal = this.#config.principal ?? user;
    try {
      const [letIn] = await this.#tries(user, [{}]);
      if (this.#config.control === null)
        this.#ok("reach", "the host answers, and its key is the one in the target file");
      if (letIn !== true) return await this.#refused("login", user, principal, controlled);
      this.#ok("login", `as ${user}, with the principal ${principal}`);
      await this.#channels(user, principal);
    } catch (error) {
      this.#notReached(error);
    }
  }

  /** Which line is missing, by what the host lets in when one thing about the certificate is changed. */
  async #refused(
    check: string,
    user: string,
    principal: string,
    controlled: { user: boolean } | undefined,
  ): Promise<void> {
    const { host } = this.#config;
    const wide = { validAfter: new Date(Date.now() - WIDE_MS), validBefore: new Date(Date.now() + WIDE_MS) };
    const everywhere = ["0.0.0.0/0", "::/0"];
    const why = async (change: Partial<Pass>): Promise<boolean> =>
      (await this.#tries(user, [{ principal, ...change }]))[0] === true;
    if (await why({ from: everywhere })) {
      const from = await sourceAddresses(this.#config);
      this.#bad(
        check,
        `${host} sees Glasskey come from another address than ${from.join(", ")}`,
        "Write the address that the host sees into the target file: from: [ADDRESS]. Its sshd log has it.",
      );
    } else if (await why(wide)) {
      this.#bad(
        "clock",
        "the host's clock is off by more than a minute: it takes a certificate for a day, and not one for a minute",
        "Set the host's clock, and keep it: timedatectl set-ntp true",
      );
    } else if (principal !== user && (await why({ principal: user }))) {
      this.#bad(
        check,
        `the host does not let the principal ${principal} in as ${user}`,
        `In the AuthorizedPrincipalsFile of ${user} on the host, add the line: ${principal}`,
      );
    } else if (controlled?.user === false) {
      this.#bad(
        check,
        `there is no user ${user} on the host`,
        `On the host: useradd --create-home --shell /bin/sh ${user}`,
      );
    } else if (controlled?.user === true) {
      this.#bad(
        check,
        `the host knows this Glasskey's authority and the user ${user}, and does not let the principal ${principal} in`,
        `Check there: AuthorizedPrincipalsFile (a line ${principal}), AllowUsers,\n` +
          `AllowGroups, PermitRootLogin, and whether ${user} is locked:\nusermod -p '*' ${user}`,
      );
    } else {
      this.#bad(
        check,
        `the host refuses Glasskey's certificate for ${user}: it does not know the authority, or not the user`,
        `In the file that TrustedUserCAKeys in sshd_config names:\n${this.#authorityLine}\n` +
          `If it is there, sshd's log says more: no user ${user}? AllowUsers?\n` +
          "AuthorizedPrincipalsFile? No file where RevokedKeys says?",
      );
    }
  }

  /** What sshd grants on a channel; nothing is run, and the sftp server is closed at once. */
  async #channels(user: string, principal: string): Promise<void> {
    const extensions = extensionsFor(this.#scope ?? {});
    const credential = await this.#pass({ principal, extensions });
    const target = { ...this.#config, user };
    const { connection } = await reach(target, credential, `a login as ${user}`, this.#signal);
    // A host may never answer: its connection goes when the time is over, and then there is nothing to say of what was asked.
    const abort = (): void => connection.destroy();
    this.#signal.addEventListener("abort", abort, { once: true });
    const granted = (type: string, data: Uint8Array): Promise<boolean> =>
      isGranted(connection, type, data).finally(() => this.#signal.throwIfAborted());
    try {
      this.#signal.throwIfAborted();
      const mark = new Writer().string("LC_GLASSKEY").string(`gk_${this.#means.tools.install}_${CANARY}`).done();
      if (await granted("env", mark)) this.#ok("mark", "sshd takes the mark LC_GLASSKEY");
      else
        this.#bad(
          "mark",
          "sshd does not take LC_GLASSKEY, the mark by which a session's processes are found",
          "In sshd_config: AcceptEnv LC_GLASSKEY",
        );
      if (extensions.includes("permit-pty")) {
        const pty = new Writer().string("dumb").uint32(80).uint32(24).uint32(0).uint32(0).string("\0").done();
        if (await granted("pty-req", pty)) this.#ok("terminal", "sshd gives terminals");
        else this.#bad("terminal", "sshd gives no terminal", `In sshd_config, for ${user}: PermitTTY yes`);
      }
      if (this.#scope?.["sftp"] !== undefined) {
        if (await granted("subsystem", new Writer().string("sftp").done())) this.#ok("sftp", "sshd has the subsystem");
        else this.#bad("sftp", "sshd has no subsystem sftp", "In sshd_config: Subsystem sftp internal-sftp");
      }
    } finally {
      this.#signal.removeEventListener("abort", abort);
      connection.destroy();
    }
  }
}

/** Whether sshd says yes to one request on a channel of its own. */
async function isGranted(connection: Connection, type: string, data: Uint8Array): Promise<boolean> {
  const none = { onRequest: () => Promise.resolve(false), onEof: () => undefined, onClose: () => undefined };
  let channel: Channel | undefined;
  channel = await connection.open("session", new Uint8Array(0), {
    ...none,
    onData: (bytes) => channel?.consumed(bytes.length),
  });
  try {
    return await channel.request(type, true, data);
  } finally {
    channel.abort();
  }
}

function failed(check: string, detail: string, error: unknown): Check {
  const next = error instanceof GlassError ? error.next : undefined;
  return {
    check,
    ok: false,
    detail,
    fix: next ?? "Check `host:` and `port:` in the target file, that sshd runs there, and firewalls on the way.",
  };
}

/** Whether the signal is one of `AbortSignal.timeout`: to a check, a host that does not answer in time is a finding. */
function ranOut(signal: AbortSignal): boolean {
  return signal.reason instanceof DOMException && signal.reason.name === "TimeoutError";
}
