import { createBridge } from "./bridge.ts";
import { said, type Line, type Open } from "./line.ts";
import {
  OPEN_FAILURE,
  OpenRefused,
  type Accept,
  type Channel,
  type ChannelOpen,
  type Connection,
  type Request,
} from "./types.ts";
import {
  parseDirectStreamlocal,
  parseEndpoint,
  parseForwardedStreamlocal,
  parseStreamlocal,
  parseTcpOpen,
} from "./requests.ts";

/**
 * Forwards (RFC 4254, 7; OpenSSH's PROTOCOL, 2.4 for sockets): each connection through one is a statement with its bytes
 * counted both ways. What passes inside is not recorded, and so a playbook has to name each host and port.
 */

export interface Forwards {
  /** `direct-tcpip`, `direct-streamlocal@openssh.com`: the client reaches through the target. */
  fromClient(open: ChannelOpen, accept: Accept): void;
  /** What the target opens: connections to forwarded ports, to the agent and to the display of whoever asked for them. */
  fromTarget(open: ChannelOpen, accept: Accept): void;
  /** `tcpip-forward` and its like; undefined for a request that is none of forwards'. */
  request(request: Request): Promise<{ ok: boolean }> | undefined;
}

/** Ports and sockets on the target that one session may have it listen on. */
const MAX_LISTENING = 64;
const DONE = { ok: true } as const;
const FAILED = { ok: false } as const;

export function createForwards(line: Line): Forwards {
  const { tape } = line;
  const listening = new Map<string, Open>();
  /** What is being asked for: taken already, but nothing that the target opens belongs to it yet. */
  const asked = new Set<string>();

  /** Joins a channel that one side opens to one that is opened on the other, under a statement of its own. */
  const join = (via: string, text: string, open: ChannelOpen, accept: Accept, to: Connection): void => {
    const toTarget = to === line.target;
    const data = Buffer.from(open.data);
    const bytes = { in: 0, out: 0 };
    let ended: { code: string; message: string } | undefined;
    let over = false;
    const finish = (): void => {
      if (over) return;
      over = true;
      line.open.delete(entry);
      tape.end(n, {
        ...(ended === undefined ? {} : { error: ended }),
        bytes: bytes.in + bytes.out,
        detail: { in: bytes.in, out: bytes.out },
      });
    };
    const bridge = createBridge({
      moved(direction, data) {
        bytes[direction] += data.length;
        line.moved(direction, data.length);
        line.activity.touch();
      },
      over: finish,
    });
    const entry: Open = {
      warn: () => {},
      end(code, message) {
        ended ??= { code, message };
        finish();
      },
    };
    const connect = async (): Promise<void> => {
      const [near, far] = toTarget ? [bridge.client, bridge.target] : [bridge.target, bridge.client];
      let other: Channel;
      try {
        other = await to.open(open.type, data, far);
      } catch (error) {
        if (over) return;
        ended = { code: "refused", message: said(error instanceof Error ? error.message : "") };
        const reason = error instanceof OpenRefused && error.reason > 0 ? error.reason : OPEN_FAILURE.connectFailed;
        accept.refuse(reason, ended.message);
        return finish();
      }
      if (over) return other.abort();
      const own = accept.accept(near);
      if (toTarget) bridge.join(own, other);
      else bridge.join(other, own);
    };
    const n = tape.begin(via, text, {}, () => void connect());
    line.open.add(entry);
  };

  const prohibit = (accept: Accept, text: string): void => accept.refuse(OPEN_FAILURE.administrativelyProhibited, text);

  // -------------------------------------------------------------------------------------------- the client's

  const fromClient = (open: ChannelOpen, accept: Accept): void => {
    if (open.type === "direct-tcpip") {
      const { host, port } = parseTcpOpen(open.data);
      const text = `${said(host)}:${port}`;
      const verdict = line.decide({ ask: "direct-tcpip", host, port });
      if (verdict.ok) return join(verdict.via, text, open, accept, line.target);
      return prohibit(accept, line.refuse("forward", text, ownTarget(line, host, port) ?? verdict));
    }
    const path = parseDirectStreamlocal(open.data);
    const verdict = line.decide({ ask: "direct-streamlocal", path });
    if (verdict.ok) return join(verdict.via, said(path), open, accept, line.target);
    prohibit(accept, line.refuse("forward", said(path), verdict));
  };

  // -------------------------------------------------------------------------------------------- the target's

  const fromTarget = (open: ChannelOpen, accept: Accept): void => {
    switch (open.type) {
      case "forwarded-tcpip": {
        const { host, port, originHost, originPort } = parseTcpOpen(open.data);
        if (!listening.has(keyOf(host, port))) break;
        const text = `${said(host)}:${port} from ${said(originHost)}:${originPort}`;
        return join("remote-forward", text, open, accept, line.client);
      }
      case "forwarded-streamlocal@openssh.com": {
        const path = parseForwardedStreamlocal(open.data);
        if (!listening.has(path)) break;
        return join("remote-forward", said(path), open, accept, line.client);
      }
      case "auth-agent@openssh.com":
        if (!line.expects(open.type)) break;
        return join("agent", "the client's agent", open, accept, line.client);
      case "x11": {
        if (!line.expects(open.type)) break;
        const { host, port } = parseEndpoint(open.data);
        return join("x11", `from ${said(host)}:${port}`, open, accept, line.client);
      }
    }
    const what = said(open.type);
    prohibit(
      accept,
      line.refuse("target", what, { reason: `the target opened a channel of type ${what} that nobody asked for` }),
    );
  };

  // -------------------------------------------------------------------------------------------- listening

  const listen = (
    request: Request,
    at: { text: string; key: string },
    question: Parameters<Line["decide"]>[0],
  ): Promise<{ ok: boolean }> => {
    const verdict = line.decide(question);
    if (!verdict.ok) {
      line.refuse("remote-forward", at.text, verdict);
      return Promise.resolve(FAILED);
    }
    if (listening.size + asked.size >= MAX_LISTENING || listening.has(at.key) || asked.has(at.key)) {
      line.refuse("remote-forward", at.text, { reason: "it is forwarded already, or too much is" });
      return Promise.resolve(FAILED);
    }
    const answer = Promise.withResolvers<{ ok: boolean }>();
    const data = Buffer.from(request.data);
    asked.add(at.key);
    const ask = async (): Promise<void> => {
      asked.delete(at.key);
      if (over) return answer.resolve(FAILED);
      // Before the answer: what connects to the port may be told in the same breath.
      listening.set(at.key, entry);
      const told = await line.target.request(request.type, true, data).catch(() => FAILED);
      if (told.ok) return answer.resolve(DONE);
      if (listening.get(at.key) === entry) listening.delete(at.key);
      entry.end("error", "the target does not listen there");
      answer.resolve(FAILED);
    };
    const n = tape.begin(verdict.via, at.text, {}, () => void ask());
    let over = false;
    const entry: Open = {
      warn: () => {},
      end(code, message) {
        if (over) return;
        over = true;
        line.open.delete(entry);
        tape.end(n, code === "cancelled" ? { tag: "cancelled" } : { error: { code, message } });
      },
    };
    line.open.add(entry);
    return answer.promise;
  };

  const cancel = async (request: Request, key: string): Promise<{ ok: boolean }> => {
    const held = listening.get(key);
    if (held === undefined) return FAILED;
    listening.delete(key); // at once: what the target opens from here on was not asked for
    held.end("cancelled", "");
    return { ok: (await line.target.request(request.type, true, Buffer.from(request.data))).ok };
  };

  return {
    fromClient,
    fromTarget,
    request(request) {
      switch (request.type) {
        case "tcpip-forward": {
          const { host, port } = parseEndpoint(request.data);
          const at = { text: `${said(host)}:${port}`, key: keyOf(host, port) };
          return listen(request, at, { ask: "tcpip-forward", host, port });
        }
        case "streamlocal-forward@openssh.com": {
          const path = parseStreamlocal(request.data);
          const at = { text: said(path), key: path };
          return listen(request, at, { ask: "streamlocal-forward", path });
        }
        case "cancel-tcpip-forward": {
          const { host, port } = parseEndpoint(request.data);
          return cancel(request, keyOf(host, port));
        }
        case "cancel-streamlocal-forward@openssh.com": {
          const path = parseStreamlocal(request.data);
          return cancel(request, path);
        }
        default:
          return undefined;
      }
    },
  };
}

/** As the target names a forwarded port in what it opens: the address that it was asked with (RFC 4254, 7.2). */
function keyOf(address: string, port: number): string {
  return `${address} ${port}`;
}

/** `ssh -J GRANT@gateway user@host` to the grant's own target: there is a shorter way, and it is recorded. */
function ownTarget(line: Line, host: string, port: number): { reason: string; next: string } | undefined {
  const { plan, session } = line;
  const loop = port === plan.port && ["localhost", "127.0.0.1", "::1", session.target].includes(host.toLowerCase());
  if (!loop && !(host.toLowerCase() === plan.host.toLowerCase() && port === plan.port)) return undefined;
  return {
    reason: `${session.target} is not reached by jumping through the gateway, because that could not be recorded`,
    next: `Sign in to the gateway itself, without -J: ssh ${session.grant}@GATEWAY (it brings you to ${session.target} as ${plan.user}).`,
  };
}
