import { afterEach, expect, test } from "vitest";
import { testTools } from "../conformance-child.ts";
import { parseConfig } from "./config.ts";
import { createDriver } from "./credentials.ts";
import { startFakeTarget, type FakeTarget } from "./fixtures/fake-target.ts";

const tools = testTools("ab12cd", () => ({}));
let target: FakeTarget | undefined;

afterEach(async () => {
  await target?.close();
  target = undefined;
});

test.each([
  ["opens no channel", false],
  ["answers nothing on a channel", true],
])("a check of a host that lets in and %s ends when its time is over, and says so", async (_what, opens) => {
  const stop = new AbortController();
  target = await startFakeTarget(() => ({
    onOpen(_open, accept) {
      if (opens) {
        accept.accept({
          onData: () => {},
          onRequest: () => new Promise(() => {}),
          onEof: () => {},
          onClose: () => {},
        });
      }
      // Its time is over only now: that the host was reached and let in is certain.
      stop.abort(new DOMException("the check's time is over", "TimeoutError"));
    },
    onRequest: () => Promise.resolve({ ok: false }),
    onClose: () => {},
  }));
  const parsed = parseConfig({ host: "127.0.0.1", port: target.port, hostKeys: { pin: [...target.hostKeys] } });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  const checks = await createDriver(tools).preflight(parsed.value, { user: "root", shell: true }, stop.signal);
  expect(checks.filter(({ ok }) => !ok)).toMatchObject([{ check: "reach" }]);
});
