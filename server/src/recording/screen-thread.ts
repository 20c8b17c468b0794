import { Worker } from "node:worker_threads";
import type { ErrorCode } from "@glasskey/contract/errors";
import { GlassError } from "../core/errors.ts";
import { tooSlow } from "./match.ts";
import type { StoredRecord } from "./record.ts";
import { undrawable } from "./screen.ts";
import type { Line } from "./outputs.ts";
import type { Drawn, Hit, Job, Question } from "./screen-worker.ts";

/** What each job answers. */
interface Answers {
  draw: Drawn;
  lines: Line;
  search: Hit;
}

/** A thread that draws, or searches, one recording after another. */
export interface ScreenThread<T> extends AsyncDisposable {
  /**
   * Gives it the next records, at most some hundred KiB.
   * @throws GlassError `usage` when they take too long or too much memory; the thread is gone then.
   */
  feed(records: readonly StoredRecord[], options?: Partial<Omit<Question, "records">>): Promise<T[]>;
}

/** For records of about 64 KiB, which take a few milliseconds: only what was made to be slow needs longer. */
const FEED_MS = 15_000;
const HEAP_MB = 192;

/** Starts the thread. @param feedMs how long one call of `feed` may take. */
export function startScreenThread<K extends Job["do"]>(
  job: Extract<Job, { do: K }>,
  feedMs = FEED_MS,
): ScreenThread<Answers[K]> {
  const worker = new Worker(new URL("./screen-worker.ts", import.meta.url), {
    workerData: job,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MB, maxYoungGenerationSizeMb: 32 },
    stdout: true, // what a library prints is nobody's output
    stderr: true,
  });
  let failed: GlassError | undefined;
  let waiting: PromiseWithResolvers<Answers[K][]> | undefined;
  const fail = (error: GlassError): void => {
    failed ??= error;
    waiting?.reject(failed);
  };
  worker.on("message", (message: { answer: Answers[K][] } | { code: ErrorCode; error: string }) => {
    if ("answer" in message) waiting?.resolve(message.answer);
    else fail(new GlassError(message.code, message.error));
  });
  worker.on("error", (cause) => fail(tooMuch(job, cause)));
  worker.on("exit", () => fail(tooMuch(job)));
  worker.unref();
  let turn: Promise<unknown> = Promise.resolve();

  return {
    feed(records, { frames = "all", last = false } = {}) {
      const result = turn.then(async () => {
        if (failed !== undefined) throw failed;
        waiting = Promise.withResolvers();
        worker.ref();
        const timer = setTimeout(() => {
          fail(tooMuch(job));
          void worker.terminate();
        }, feedMs);
        try {
          worker.postMessage({ records, frames, last } satisfies Question);
          return await waiting.promise;
        } finally {
          clearTimeout(timer);
          waiting = undefined;
          worker.unref();
        }
      });
      turn = result.catch(() => {});
      return result;
    },
    async [Symbol.asyncDispose]() {
      failed ??= new GlassError("internal", "the screen's thread was ended");
      await worker.terminate();
    },
  };
}

function tooMuch(job: Job, cause?: unknown): GlassError {
  if (job.do !== "search" || !job.pattern.regex) return undrawable(cause);
  return tooSlow(cause);
}
