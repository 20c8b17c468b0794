import type { Clock } from "../core/clock.ts";
import { SourceFault, type Told } from "./source.ts";

/** What came of a question. `observedAt` is when the source was asked, or itself learnt the fact. */
export type Asked<T> = { readonly observedAt: Date; readonly ageMs: number } & (
  | { readonly ok: true; readonly value: T }
  | {
      readonly ok: false;
      /** In words without secrets. */
      readonly why: string;
      /** What it said before; for people to read, never to decide by. */
      readonly before?: { readonly value: T; readonly ageMs: number };
    }
);

const FAILURES = 3;
const PAUSE_MS = 10_000; // one slow break in ten seconds, at worst, while a source is down
const MAX_KEPT = 1000; // references are what people typed
const MAX_AT_ONCE = 32;
/** What a source said earlier than this is no help to anybody. */
const REMEMBER_MS = 3_600_000;

/** Lets questions through until a source fails thrice in a row; then one every ten seconds, until that one is answered. */
export interface Breaker {
  /** Why the source is not asked now; undefined: ask it, and tell what came of it. */
  pausedFor(): string | undefined;
  answered(): void;
  failed(why: string): void;
}

export function createBreaker(name: string, clock: Clock, warn: (line: string) => void): Breaker {
  let failures = 0;
  let nextAtMs = 0;
  let lastWhy = "";
  return {
    pausedFor() {
      if (failures < FAILURES) return undefined;
      const nowMs = clock.monotonicMs();
      if (nowMs < nextAtMs) return `${lastWhy}; it is asked again in ${Math.ceil((nextAtMs - nowMs) / 1000)}s`;
      nextAtMs = nowMs + PAUSE_MS; // this question is the trial
      return undefined;
    },
    answered() {
      if (failures >= FAILURES) warn(`evidence: ${name} answers again`);
      failures = 0;
    },
    failed(why) {
      failures += 1;
      lastWhy = why;
      if (failures < FAILURES) return;
      nextAtMs = clock.monotonicMs() + PAUSE_MS;
      if (failures === FAILURES) warn(`evidence: ${name} is down: ${why}`);
    },
  };
}

/**
 * Asks one source one kind of question. The same question is under way once at most; an answer counts until it is too old;
 * no answer within `timeoutMs` is unknown. Never rejects.
 */
export function createAsker<T>(options: {
  clock: Clock;
  breaker: Breaker;
  maxAgeMs: number;
  timeoutMs: number;
  ask: (ref: string, signal: AbortSignal) => Promise<Told<T>>;
}): (ref: string) => Promise<Asked<T>> {
  const { clock, breaker, maxAgeMs, timeoutMs, ask } = options;
  const kept = new Map<string, { value: T; askedAt: Date; askedAtMs: number; ageThenMs: number; untilMs: number }>();
  const underWay = new Map<string, Promise<Asked<T>>>();

  const answer = (ref: string): Asked<T> | undefined => {
    const entry = kept.get(ref);
    const nowMs = clock.monotonicMs();
    if (entry === undefined || nowMs >= entry.untilMs) return undefined;
    const { value, askedAt: observedAt, askedAtMs, ageThenMs } = entry;
    return { ok: true, value, observedAt, ageMs: Math.round(nowMs - askedAtMs + ageThenMs) };
  };

  const unknown = (ref: string, why: string): Asked<T> => {
    const entry = kept.get(ref);
    const ageMs = entry === undefined ? 0 : Math.round(clock.monotonicMs() - entry.askedAtMs + entry.ageThenMs);
    const before = entry === undefined || ageMs > REMEMBER_MS ? {} : { before: { value: entry.value, ageMs } };
    return { ok: false, why, observedAt: clock.now(), ageMs: 0, ...before };
  };

  const askNow = async (ref: string): Promise<Asked<T>> => {
    const askedAt = clock.now();
    const askedAtMs = clock.monotonicMs();
    try {
      const told = await inTime(timeoutMs, (signal) => ask(ref, signal));
      breaker.answered();
      const { at: observedAt, ageMs: ageThenMs } = told.learnt ?? { at: askedAt, ageMs: 0 };
      // Its age counts from the question: what it says may have been so when the question was sent.
      const untilMs = askedAtMs + Math.min(maxAgeMs, told.freshForMs ?? maxAgeMs);
      kept.delete(ref);
      const [oldest] = kept.keys();
      if (kept.size >= MAX_KEPT && oldest !== undefined) kept.delete(oldest);
      kept.set(ref, { value: told.value, askedAt: observedAt, askedAtMs, ageThenMs, untilMs });
      const ageMs = Math.round(clock.monotonicMs() - askedAtMs + ageThenMs);
      return { ok: true, value: told.value, observedAt, ageMs };
    } catch (error) {
      const fault = error instanceof SourceFault ? error : new SourceFault("asking it failed inside Glasskey");
      if (fault.down) breaker.failed(fault.message);
      else breaker.answered();
      return unknown(ref, fault.message);
    }
  };

  return async (ref) => {
    const known = answer(ref) ?? underWay.get(ref);
    if (known !== undefined) return known;
    const paused = underWay.size >= MAX_AT_ONCE ? "too many questions to it are under way" : breaker.pausedFor();
    if (paused !== undefined) return unknown(ref, paused);
    const asked = askNow(ref).finally(() => underWay.delete(ref));
    underWay.set(ref, asked);
    return asked;
  };
}

/** Gives up at the time, whether or not the work listens to its signal. */
async function inTime<T>(timeoutMs: number, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const abort = new AbortController();
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    abort.abort();
    late.reject(new SourceFault(`it did not answer within ${timeoutMs / 1000}s`, true));
  }, timeoutMs);
  try {
    return await Promise.race([work(abort.signal), late.promise]);
  } finally {
    clearTimeout(timer);
    abort.abort(); // what is still open of several questions
  }
}
