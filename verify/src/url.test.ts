import { gzipSync } from "node:zlib";
import { afterEach, expect, test } from "vitest";
import { buildLog, recordedSession } from "../testing/log.ts";
import { serveLog, type Hook, type TestServer } from "../testing/serve.ts";
import { FormatError } from "./errors.ts";
import { formatProblem, type Report } from "./report.ts";
import { signCheckpoint } from "./checkpoint.ts";
import type { LogSource } from "./source.ts";
import { openUrl, type UrlOptions } from "./url.ts";
import { verifyLog, type VerifyOptions } from "./verify.ts";

const session = recordedSession("se_0123456789ab", 20);
const events = Array.from({ length: 1_500 }, (_, n) => JSON.stringify({ n, type: "login.succeeded" }));
const log = buildLog({ entries: [...events, ...session.entries], chunks: session.files });
const vkey = log.signer.vkey;

const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
});

async function serve(hook?: Hook, files: ReadonlyMap<string, Uint8Array> = log.files): Promise<TestServer> {
  const server = await serveLog(files, hook);
  stops.push(server.stop);
  return server;
}

async function verifyUrl(
  options: UrlOptions,
  more: Partial<VerifyOptions> = {},
): Promise<Report & { lines: readonly string[] }> {
  const source = openUrl({ retryMs: 1, ...options });
  try {
    const report = await verifyLog({ source, vkey, ...more });
    return { ...report, lines: report.problems.map(formatProblem) };
  } finally {
    source.close();
  }
}

test("a log verifies over HTTP like the same folder, and the report says that nothing was listed", async () => {
  const { url } = await serve();
  const report = await verifyUrl({ url });
  expect(report).toMatchObject({ ok: true, size: 1_520, listed: false, totals: { chunks: 20, sessions: 1 } });
});

test("over HTTP an edit, a missing file and a swapped recording are named as in a folder", async () => {
  const edited = new Map<string, Buffer>(log.files);
  const put = (path: string, change: (bytes: Buffer) => void): void => {
    const bytes = Buffer.from(log.files.get(path) ?? "");
    change(bytes);
    edited.set(path, bytes);
  };
  put("tile/entries/002", (bytes) => bytes.writeUInt8(0x7a, 5));
  put("chunks/se_0123456789ab/7.gkc", (bytes) => bytes.reverse());
  edited.delete("tile/0/004");
  const { url } = await serve(undefined, edited);
  const report = await verifyUrl({ url });
  expect(report.ok).toBe(false);
  expect(report.lines).toEqual([
    "tile/entries/002, entry 512: was changed: the tree has another hash for this entry",
    "tile/0/004: is missing",
    expect.stringMatching(/^chunks\/se_0123456789ab\/7\.gkc, entry 1507: was changed/),
  ]);
});

test("the token goes with entries and recordings only, and its lack is named", async () => {
  const needed: Hook = (request, response) => {
    if (!/entries|chunks/.test(request.url ?? "") || request.headers.authorization === "Bearer s3cret") return false;
    response.writeHead(401).end();
    return true;
  };
  const server = await serve(needed);
  expect((await verifyUrl({ url: server.url, token: "s3cret" })).ok).toBe(true);
  const withToken = server.requests.filter(({ headers }) => headers.authorization !== undefined);
  expect(withToken.length).toBeGreaterThan(20);
  expect(withToken.every(({ url = "" }) => /^\/log\/(?:tile\/entries|chunks)\//.test(url))).toBe(true);
  const without = await verifyUrl({ url: server.url });
  expect(without.lines[0]).toMatch(/^tile\/entries\/\S+: was refused \(401\): it needs a token/);
  expect((await verifyUrl({ url: server.url, token: "wrong" })).lines[0]).toMatch(/the token does not allow it/);
});

test("redirects are refused, and the token never reaches where they lead", async () => {
  const elsewhere = await serve();
  const server = await serve((request, response) => {
    if (!request.url?.includes("entries")) return false;
    response.writeHead(302, { location: elsewhere.url + (request.url?.replace("/log/", "") ?? "") }).end();
    return true;
  });
  const report = await verifyUrl({ url: server.url, token: "s3cret" });
  expect(report.lines[0]).toMatch(/is said to be elsewhere \(302\), and redirects are not followed/);
  expect(elsewhere.requests).toEqual([]);
});

test("an answer that is too large, too slow, silent, cut off or a bomb ends in a finding", async () => {
  const answers: Record<string, Hook> = {
    "has more than": (_request, response) => {
      response.writeHead(200);
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(1 << 16)));
      };
      response.on("drain", more);
      more();
      return true;
    },
    "has more than the": (_request, response) => {
      response.writeHead(200, { "content-encoding": "gzip" }).end(gzipSync(Buffer.alloc(64 << 20)));
      return true;
    },
    "took too long": (_request, response) => {
      response.writeHead(200);
      const timer = setInterval(() => response.write("x"), 20);
      response.on("close", () => clearInterval(timer));
      return true;
    },
    "fell silent": () => true,
    "cannot be read": (_request, response) => {
      response.writeHead(200, { "content-length": 100 });
      response.write("half");
      response.socket?.end();
      return true;
    },
    "an encoding": (_request, response) => {
      response.writeHead(200, { "content-encoding": "br" }).end("x");
      return true;
    },
    "was answered with 503": (_request, response) => {
      response.writeHead(503).end("<html>");
      return true;
    },
  };
  for (const [why, hook] of Object.entries(answers)) {
    const server = await serve((request, response) => request.url === "/log/checkpoint" && hook(request, response));
    const limits =
      why === "fell silent"
        ? { idleMs: 1_000 }
        : { idleMs: 10_000, answerMs: why === "took too long" ? 1_500 : 60_000 };
    const report = await verifyUrl({ url: server.url, ...limits });
    expect(report.lines, why).toEqual([expect.stringContaining(why)]);
    expect(report.ok).toBe(false);
  }
});

test("a passing failure is tried again, and compressed answers are read", async () => {
  const failed = new Set<string>();
  const server = await serve((request, response) => {
    const path = request.url ?? "";
    if (!failed.has(path)) {
      failed.add(path);
      if (path.endsWith("checkpoint")) response.writeHead(503).end();
      else request.socket.destroy();
      return true;
    }
    const bytes = log.files.get(path.replace("/log/", ""));
    if (bytes === undefined) return false;
    response.writeHead(200, { "content-encoding": "gzip" }).end(gzipSync(bytes));
    return true;
  });
  expect((await verifyUrl({ url: server.url })).lines).toEqual([]);
});

test("a server that shows one history and, when that does not fit, another one that goes on, is found by the first", async () => {
  const other = buildLog({ entries: log.entries.slice(0, 1_400).with(3, Buffer.from("{}")) });
  let asked = 0;
  const { url } = await serve((request, response) => {
    if (request.url !== "/log/checkpoint" || (asked += 1) > 1) return false;
    response.end(other.files.get("checkpoint"));
    return true;
  });
  const report = await verifyUrl({ url }, { settleMs: 5_000 });
  expect(report).toMatchObject({ ok: false, size: 1_520 });
  expect(report.lines).toEqual([
    expect.stringMatching(/^checkpoint of a moment ago: signs another history: the first 1400/),
  ]);
});

test("a log that is signed for a size without end, and mostly not there, is given up", async () => {
  const note = signCheckpoint({ origin: log.signer.name, size: 2 ** 40, root: Buffer.alloc(32) }, [log.signer]);
  const source: LogSource = {
    read(path, maxBytes) {
      if (path === "checkpoint") return Buffer.from(note);
      return /^tile\/1\/.*\d{3}$/.test(path) ? Buffer.alloc(maxBytes) : undefined;
    },
  };
  const report = await verifyLog({ source, vkey });
  expect(report.ok).toBe(false);
  expect(report.problemCount).toBeGreaterThan(100_000);
  expect(report.problemCount).toBeLessThan(100_100);
});

test("a partial tile that is gone is read from the full tile that it became", async () => {
  const whole = buildLog({ entries: Array.from({ length: 256 }, (_, n) => `{"n":${n}}`) });
  const early = buildLog({ entries: Array.from({ length: 100 }, (_, n) => `{"n":${n}}`) });
  const files = new Map(whole.files).set("checkpoint", early.files.get("checkpoint") ?? Buffer.alloc(0));
  const { url } = await serve(undefined, files);
  expect(await verifyUrl({ url })).toMatchObject({ ok: true, size: 100 });
});

test("only https is taken, http from this machine, and a URL without secrets in it", () => {
  for (const url of [
    "http://example.org/log/",
    "http://127.0.0.1.example.org/log/",
    "http://10.0.0.1/log",
    "ftp://127.0.0.1/",
    "https://ann:secret@example.org/log/",
    "https://example.org/log/?token=x",
    "https://",
    "log",
  ]) {
    expect(() => openUrl({ url }), url).toThrow(FormatError);
  }
  for (const url of ["https://example.org/log", "http://127.0.0.1:80", "http://[::1]:80/", "http://localhost/log"]) {
    openUrl({ url }).close();
  }
  expect(() => openUrl({ url: "https://example.org/", token: "two\nlines" })).toThrow(FormatError);
});
