import type { Gateway } from "./gateway.ts";

/**
 * In place of a data plane whose journal is not to be trusted: it listens nowhere, so nobody begins a session, and there is
 * none to cut. The control plane goes on to end, revoke and prove.
 */
export function closedGateway(): Gateway {
  return {
    ports: [],
    journal: { id: "", openedSequence: 0 },
    cut: () => Promise.resolve(0),
    extend: () => Promise.resolve(),
    sessions: () => Promise.resolve([]),
    identify: () => Promise.resolve(),
    refuseNew: () => Promise.resolve(),
    stop: () => Promise.resolve(),
    whenDead: new Promise(() => {}),
  };
}
