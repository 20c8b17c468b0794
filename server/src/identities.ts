import { deriveSecret } from "./core/derive.ts";
import { GlassError } from "./core/errors.ts";
import type { JsonObject } from "./core/json.ts";
import type { Secret } from "./core/secret.ts";
import type { Keyring } from "./store/keyring.ts";
import type { DriverTools, GatewayIdentity, HostSetup, SecretResolver, TargetKind } from "./targets/target.ts";

/** What a kind's own secrets in this installation make: who its gateway is, and what its targets are told to trust. */
export interface Identities {
  /** What the driver of that kind is given. */
  tools(kind: string): DriverTools;
  /** For the data plane: {@link GatewayIdentity.listener} of each kind that listens and has one. */
  readonly listeners: Readonly<Record<string, JsonObject>>;
  /** {@link GatewayIdentity.trust}, for a listener on that port; empty where the kind has none. */
  trust(kind: string, port: number): string;
  /** Makes anew, and hands to the data plane, what is due for it. */
  renew(identify: (kind: string, listener: JsonObject) => Promise<void>): Promise<void>;
  /** @throws GlassError `not_found` for a kind that has no set-up to show, or that is none. */
  setup(kind: string, config: JsonObject): HostSetup;
}

export interface IdentityParts {
  readonly kinds: readonly TargetKind[];
  readonly keyring: Pick<Keyring, "derive">;
  readonly install: string;
  readonly resolve: SecretResolver;
  /** Names and addresses that people reach the gateway by. */
  readonly hosts: readonly string[];
  /** The kinds that are listened for. */
  readonly listeners: readonly string[];
  readonly now: () => Date;
}

const ANY_PORT = 0; // what a listener holds does not depend on it

export function createIdentities(parts: IdentityParts): Identities {
  const kinds = new Map(parts.kinds.map((kind) => [kind.kind, kind]));
  const derive = (kind: string) => {
    const key = parts.keyring.derive("kind", kind);
    return (purpose: string): Secret => deriveSecret(key, purpose);
  };
  const tools = (kind: string): DriverTools => ({
    ...{ install: parts.install, resolve: parts.resolve, derive: derive(kind) },
  });
  const make = (kind: string, port: number): GatewayIdentity | undefined =>
    kinds.get(kind)?.identity?.({ derive: derive(kind), hosts: parts.hosts, port, now: parts.now() });

  const made = new Map<string, GatewayIdentity>();
  for (const kind of parts.listeners) {
    const identity = make(kind, ANY_PORT);
    if (identity !== undefined) made.set(kind, identity);
  }
  return {
    tools,
    listeners: Object.fromEntries([...made].map(([kind, { listener }]) => [kind, listener])),
    trust: (kind, port) => (made.has(kind) ? (make(kind, port)?.trust ?? "") : ""),
    async renew(identify) {
      for (const [kind, { renewAt }] of made) {
        if (renewAt > parts.now()) continue;
        const fresh = make(kind, ANY_PORT);
        if (fresh === undefined) continue;
        await identify(kind, fresh.listener);
        made.set(kind, fresh);
      }
    },
    setup(name, config) {
      const kind = kinds.get(name);
      if (kind?.hostSetup !== undefined) return kind.hostSetup(tools(name), config);
      const shown = [...kinds.values()].filter(({ hostSetup }) => hostSetup !== undefined).map((one) => one.kind);
      throw new GlassError(
        "not_found",
        kind === undefined ? `there is no target kind "${name.slice(0, 40)}"` : `${name} has no set-up to show`,
        { next: kind === undefined ? `Kinds with one: ${shown.join(", ")}` : `See docs/${name}-target.md.` },
      );
    },
  };
}
