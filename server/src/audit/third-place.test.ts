import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createCosigner } from "@glasskey/verify";
import { expect, inject, test } from "vitest";
import { startTestSystem } from "../../testing/system.ts";

test("a server whose witness knows more than its store opens nothing, signs nothing and says why; one that is silent stops nobody", async () => {
  const key = createCosigner("witness.example/w", generateKeyPairSync("ed25519").privateKey).vkey;
  const server = createServer((request, response) => {
    request.resume();
    response.writeHead(409, { "content-type": "text/x.tlog.size" }).end("4000\n");
  });
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const system = await startTestSystem(inject("pg18"), {}, { witnesses: { need: 1, of: [{ key, url }] } });
  try {
    const ann = await system.as("ann");
    const refusal = await ann.refused("POST", "/v1/grants", { playbook: "repair", reason: "outage", why: "the tests" });
    expect(refusal.code).toBe("integrity");
    expect(system.warnings.join("\n")).toContain("witness.example/w saw: it knows 4000 entries");
    const [row] = await system.storeQuery<{ n: number }>("select count(*)::int as n from log_checkpoints");
    expect(row?.n).toBe(0);
    await system.stop();
    await new Promise<void>((resolve) => void server.close(() => resolve()));
    const second = await system.startSecond();
    const again = await system.as("ann", second);
    expect((await again.break("repair")).state).not.toBe("denied");
    expect(system.warnings.join("\n")).toContain("no witness says whether this is the newest state");
  } finally {
    await system.dispose();
    server.closeAllConnections();
  }
});
