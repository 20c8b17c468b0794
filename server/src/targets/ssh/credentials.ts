import { describe, GlassError } from "../../core/errors.ts";
import type { Confirmation, DriverTools, Evidence, Fingerprint, LeaseDriver } from "../target.ts";
import { issuePass, targetAuthority, validity, type Pass } from "./authority.ts";
import {
  BACKDATE_MS,
  CERTIFICATE_MS,
  configOf,
  createPlan,
  isControlLogin,
  isInstall,
  isLeaseName,
  orphanPlan,
  OWN_LOGIN,
  planOf,
  type SshPlan,
} from "./config.ts";
import { askControl, valuesOf, type ControlTarget } from "./control.ts";
import { readFingerprint } from "./fingerprint.ts";
import { createLanes } from "./lanes.ts";
import { offer } from "./login.ts";
import { CANARY, inspect, requireRevocable } from "./preflight.ts";
import { publicKeyLine } from "./keys.ts";
import { sourceAddresses } from "./route.ts";

const AT_ONCE = 3; // logins per target beside the sessions'
const FENCES_AT_ONCE = 2; // of their own, so that a fence never waits for a slow fingerprint
const LATE_MS = 2_000; // certificates count whole seconds
const MAX_LEFT = 20; // as the script tells; a host that wishes us ill may tell more, and longer ones
const MAX_LISTED = 200;

/** What tests change. */
export interface DriverOptions {
  /** Length of a certificate's validity after the decision, in ms. */
  readonly certificateMs?: number;
}

/**
 * Leases on a host by certificates: nothing is put on the host when one is minted, and each session has a certificate of its
 * own for a minute. With a control login the host itself refuses the lease from the fence on, and what its sessions left
 * running is ended there; without one, proof waits until the last certificate has expired.
 */
export function createDriver(tools: DriverTools, options: DriverOptions = {}): LeaseDriver {
  const lanes = createLanes(AT_ONCE);
  const fences = createLanes(FENCES_AT_ONCE);
  const certificateMs = options.certificateMs ?? CERTIFICATE_MS;
  const authority = targetAuthority(tools);
  const [authorityType = "", authorityKey = ""] = publicKeyLine(authority.blob).split(" ");

  function withControl(plan: SshPlan): ControlTarget | undefined {
    return plan.control === null ? undefined : { ...plan, control: plan.control };
  }

  /** A certificate for the plan's user; by default one of the lease, valid now. */
  async function passFor(plan: SshPlan, change: Partial<Pass> = {}): Promise<{ key: string; certificate: string }> {
    const from = await sourceAddresses(plan);
    const pass: Pass = {
      ...{ keyId: plan.lease, principal: plan.principal, from, extensions: [], ...validity(new Date()) },
      ...change,
    };
    return issuePass(pass, authority);
  }

  /** Whether sshd lets these in, one after the other on one connection; the last is a certificate that no lease has. */
  async function letsIn(
    plan: SshPlan,
    changes: readonly Partial<Pass>[],
    signal: AbortSignal,
  ): Promise<readonly boolean[]> {
    return lanes(`${plan.host}:${plan.port}`, signal, async () => {
      const passes = [];
      for (const change of changes) passes.push(await passFor(plan, change));
      return offer(plan, passes, signal);
    });
  }

  const probeId = (plan: SshPlan): string => `${plan.lease.slice(0, "gk_ab12cd".length)}_probe`;

  async function confirmWithControl(plan: SshPlan, control: ControlTarget, signal: AbortSignal): Promise<Confirmation> {
    const evidence: Evidence[] = [];
    const leased = await passFor(plan, plan.user === "" ? { principal: "nobody" } : {});
    if (plan.user !== "") {
      const [lease, other] = await letsIn(plan, [{ validAfter: new Date(0) }, { keyId: probeId(plan) }], signal);
      if (lease !== false) return { verdict: "alive", left: [`${plan.lease} can still log in as ${plan.user}`] };
      evidence.push({
        asked: `a fresh login as ${plan.user} with a valid certificate of ${plan.lease}`,
        answered: refusalBeside(other),
      });
    }
    const [type = "", blob = ""] = publicKeyLine(Buffer.from(leased.certificate, "base64")).split(" ");
    const askedAt = new Date(); // by our clock: the host's may say anything
    const answer = await askControl(
      control,
      tools,
      lanes,
      ["confirm", plan.lease, control.control.revokedKeys, type, blob],
      signal,
    );
    const left = valuesOf(answer, "left").map((process) => `process ${process.slice(0, 80)}`);
    if (left.length > 0) return { verdict: "alive", left: left.slice(0, MAX_LEFT) };
    if (valuesOf(answer, "revoked").join() !== "yes") {
      return {
        verdict: "alive",
        left: [`${plan.lease} is not among the revoked keys in ${control.control.revokedKeys}`],
      };
    }
    return {
      verdict: "dead",
      from: askedAt,
      evidence: [
        ...evidence,
        { asked: `a certificate of ${plan.lease} against ${control.control.revokedKeys}`, answered: "revoked" },
        {
          asked: `processes of ${plan.lease} on the host: its mark, what started them by sshd, and all below them`,
          answered: "none",
        },
      ],
    };
  }

  async function confirmByExpiry(
    plan: SshPlan,
    lastIssue: Date | undefined,
    signal: AbortSignal,
  ): Promise<Confirmation> {
    if (plan.user === "")
      return { verdict: "unknown", why: "without a control login nothing can be asked about an orphan" };
    const end = new Date(plan.validUntil);
    const until = lastIssue === undefined ? end : new Date(lastIssue.getTime() + certificateMs);
    if (Date.now() < until.getTime() + LATE_MS) {
      return {
        verdict: "unknown",
        why: `the lease's last certificate is valid until ${until.toISOString()}; the host is asked after that`,
      };
    }
    // Valid for ever before, and as late as any certificate of the lease can have been: whatever time it is on the host, it
    // lets this one in as long as it would let one of them in, now or later.
    const expired = { validAfter: new Date(0), validBefore: until };
    const [lease, other] = await letsIn(plan, [expired, { keyId: probeId(plan) }], signal);
    if (lease !== false) {
      return {
        verdict: "alive",
        left: [`the host still lets in a certificate that expired at ${until.toISOString()}: its clock is behind`],
      };
    }
    return {
      verdict: "dead",
      from: new Date(),
      evidence: [
        {
          asked: `a login as ${plan.user} with a certificate of ${plan.lease} that expired at ${until.toISOString()}, as its last one did`,
          answered: refusalBeside(other),
        },
        {
          asked: "processes that its sessions left on the host",
          answered: "not provable: this target has no control login",
        },
      ],
    };
  }

  return {
    cutsFirst: true, // a connection that has run nothing yet bears no mark, and may run something until the gateway cuts it

    async preflight(config, scope, signal) {
      return inspect(configOf(config), scope, { tools, lanes }, signal);
    },

    plan(request) {
      return createPlan(request);
    },

    async mint(lease, _secrets, signal) {
      const plan = planOf(lease);
      if (plan.user === "") throw new GlassError("target_unfit", "an orphan's plan can only be revoked, not minted");
      const control = withControl(plan);
      if (isControlLogin(plan, plan.user)) {
        throw new GlassError("target_unfit", `${plan.user}: ${OWN_LOGIN}`, {
          next: "Name another user in the playbook's scope.",
        });
      }
      if (control !== undefined) {
        const canary = `${plan.lease.slice(0, "gk_ab12cd_".length)}${CANARY}`;
        const request = ["fence", canary, control.control.revokedKeys, authorityType, authorityKey] as const;
        await askControl(control, tools, lanes, request, signal);
        requireRevocable(plan, await letsIn(plan, [{ keyId: canary }, { keyId: probeId(plan) }], signal));
      } else {
        requireRevocable(plan, [false, ...(await letsIn(plan, [{ keyId: probeId(plan) }], signal))]);
      }
    },

    async probe(lease, _secrets, signal) {
      const plan = planOf(lease);
      const [letIn] = await letsIn(plan, [{}], signal);
      if (letIn !== true) {
        throw new GlassError("target_unfit", `the host does not let ${plan.lease} in as ${plan.user}`, {
          next: "`glass target check` says which line is missing on the host.",
        });
      }
    },

    async issue(lease, _secrets, { at, endsAt }) {
      const plan = planOf(lease);
      const until = new Date(Math.min(at.getTime() + certificateMs, endsAt.getTime()));
      if (plan.user === "" || until <= at) throw new GlassError("grant_over", "the grant has ended");
      const validAfter = new Date(at.getTime() - BACKDATE_MS);
      return passFor(plan, { extensions: plan.extensions, validAfter, validBefore: until });
    },

    async extend(lease, endsAt) {
      return { ...planOf(lease), validUntil: endsAt.toISOString() };
    },

    async fence(lease, signal) {
      const plan = planOf(lease);
      const control = withControl(plan);
      if (control === undefined) return; // nothing is issued any more; what was, expires within a minute
      const request = ["fence", plan.lease, control.control.revokedKeys, authorityType, authorityKey] as const;
      await askControl(control, tools, fences, request, signal);
    },

    async revoke(lease, signal) {
      const plan = planOf(lease);
      const control = withControl(plan);
      if (control === undefined) return;
      const request = ["revoke", plan.lease, control.control.revokedKeys, authorityType, authorityKey] as const;
      const answer = await askControl(control, tools, lanes, request, signal);
      const left = valuesOf(answer, "left");
      if (left.length === 0) return;
      throw new GlassError(
        "not_proved",
        `processes of ${plan.lease} could not be ended: ${left.slice(0, 5).join(", ")}`,
        {
          next: "On the host: see what they wait for (ps -o pid,stat,wchan,comm -p PID). Glasskey keeps trying.",
        },
      );
    },

    async confirm(lease, _secrets, signal, lastIssue) {
      try {
        const plan = planOf(lease);
        const control = withControl(plan);
        return control === undefined
          ? await confirmByExpiry(plan, lastIssue, signal)
          : await confirmWithControl(plan, control, signal);
      } catch (error) {
        signal.throwIfAborted();
        return { verdict: "unknown", why: describe(error) };
      }
    },

    async list(config, install, signal) {
      const { control, ...target } = configOf(config);
      if (!isInstall(install)) throw new GlassError("usage", "an installation id has 6 characters of base 32");
      if (control === null) return []; // a lease leaves nothing on the host that could be found from outside
      const answer = await askControl({ ...target, control }, tools, lanes, ["list", install], signal);
      const names = valuesOf(answer, "lease").filter((name) => isLeaseName(name) && name.startsWith(`gk_${install}_`));
      return [...new Set(names)]
        .slice(0, MAX_LISTED)
        .map((name) => ({ name, lease: `ls_${name.slice(`gk_${install}_`.length)}` }));
    },

    planForOrphan(config, orphan) {
      return orphanPlan(config, orphan);
    },

    async fingerprint(lease, install, signal): Promise<Fingerprint> {
      if (!isInstall(install)) throw new GlassError("usage", "an installation id has 6 characters of base 32");
      const plan = planOf(lease);
      return readFingerprint(plan, { tools, lanes }, signal);
    },
  };
}

/** A refusal says more beside a certificate that differs in one thing and is let in. */
function refusalBeside(other: boolean | undefined): string {
  return other === true
    ? "refused; a valid one of no lease was let in on the same connection"
    : "refused, as was a valid one of no lease";
}
