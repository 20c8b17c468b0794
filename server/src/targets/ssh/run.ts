import { GlassError } from "../../core/errors.ts";
import { encodeString, parseExitSignal, parseNumber } from "./requests.ts";
import type { Channel, ChannelHandlers, Connection } from "./types.ts";

export interface RunOptions {
  readonly stdin?: Uint8Array;
  /** The most output that is taken of each stream; more ends the command. */
  readonly limitBytes: number;
  readonly signal: AbortSignal;
}

export interface RunResult {
  /** Exit status; absent where a signal ended the command, or the host did not say. */
  readonly code: number | undefined;
  /** Without SIG, such as `KILL`. */
  readonly signal: string | undefined;
  readonly stdout: Buffer;
  readonly stderr: Buffer;
}

const NONE = Buffer.alloc(0);

/**
 * Runs one command on a channel of its own, to its end. The host's shell reads the command: quote what is in it.
 * @throws GlassError `target_unreachable` when it could not be run or said too much; OpenRefused, SshError as
 *   `Connection.open`; the signal's reason
 */
export async function run(connection: Connection, command: string, options: RunOptions): Promise<RunResult> {
  const { stdin = NONE, limitBytes, signal } = options;
  signal.throwIfAborted();
  const done = Promise.withResolvers<void>();
  done.promise.catch(() => {}); // it may fail before anybody waits for it
  const streams: [Buffer[], Buffer[]] = [[], []];
  const sizes: [number, number] = [0, 0];
  let code: number | undefined;
  let ended: string | undefined;
  let channel: Channel | undefined;
  const gone = Promise.withResolvers<never>();
  gone.promise.catch(() => {});
  const fail = (error: unknown): void => {
    done.reject(error);
    channel?.abort();
  };
  const handlers: ChannelHandlers = {
    onData(data, stream) {
      const index = stream === 0 ? 0 : 1;
      sizes[index] += data.length;
      if (sizes[index] > limitBytes) {
        return fail(new GlassError("target_unreachable", `a command on the target said more than ${limitBytes} bytes`));
      }
      streams[index].push(Buffer.from(data));
      channel?.consumed(data.length);
    },
    onRequest({ type, data }) {
      if (type === "exit-status") code = parseNumber(data);
      else if (type === "exit-signal") ended = parseExitSignal(data).name;
      return Promise.resolve(false);
    },
    onEof: () => {},
    onClose: () => done.resolve(),
  };
  const abort = (): void => {
    gone.reject(signal.reason);
    fail(signal.reason);
  };
  signal.addEventListener("abort", abort, { once: true });
  try {
    const opening = connection.open("session", NONE, handlers);
    // A host may never answer: nobody waits for it longer than the caller does, and what opens later is closed.
    opening.then(
      (late) => {
        if (signal.aborted) late.abort();
      },
      () => {},
    );
    channel = await Promise.race([opening, gone.promise]);
    if (signal.aborted) abort();
    const started = channel.request("exec", true, encodeString(command));
    channel.write(stdin);
    channel.eof();
    if (!(await started)) {
      await Promise.race([done.promise, Promise.resolve()]); // where it is known why, that is the reason
      throw new GlassError("target_unreachable", "the target did not run a command of Glasskey's");
    }
    await done.promise;
    if (code === undefined && ended === undefined) {
      throw new GlassError("target_unreachable", "the connection to the target ended before a command did");
    }
    return { code, signal: ended, stdout: Buffer.concat(streams[0]), stderr: Buffer.concat(streams[1]) };
  } catch (error) {
    channel?.abort();
    throw error;
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
