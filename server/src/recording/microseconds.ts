const ANCHOR_MS = 1_000;

/**
 * The wall clock in microseconds since 1970. Between two looks at the wall, a second apart, the monotonic clock gives the
 * fineness, so a wall clock that is set shows within a second; records keep their order by their sequence.
 */
export function microsecondClock(wallMs: () => number): () => number {
  let anchorUs = 0;
  let anchoredAtMs = Number.NEGATIVE_INFINITY;
  return () => {
    const monotonicMs = performance.now();
    if (monotonicMs - anchoredAtMs > ANCHOR_MS) {
      anchoredAtMs = monotonicMs;
      anchorUs = wallMs() * 1000;
    }
    return anchorUs + Math.floor((monotonicMs - anchoredAtMs) * 1000);
  };
}
