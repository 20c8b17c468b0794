import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LogPage, SinkList } from "@glasskey/contract";
import { expect, inject, test } from "vitest";
import { playbook, startTestSystem } from "../../testing/system.ts";
import { sinksSchema } from "../sinks/config.ts";
import { ownRules } from "../sinks/testing/ocsf-rules.ts";
import { validate } from "../sinks/testing/ocsf-schema.ts";
import { tagsOf, until } from "../sinks/testing/rig.ts";

test("a use of Glasskey arrives whole in a sink, as OCSF that validates; readers of the log see how far it is, and nobody else", async () => {
  const folder = await mkdtemp(join(tmpdir(), "glasskey-api-sinks-"));
  const sinks = sinksSchema.parse({ copy: { kind: "file", folder, from: "start" } });
  const files = { "playbooks/repair.yaml": playbook("repair") };
  const system = await startTestSystem(inject("pg18"), files, { sinks });
  try {
    const [ann, ida, sam] = [await system.as("ann"), await system.as("ida"), await system.as("sam")];
    const grant = await ann.break("repair");
    const client = await ann.connect(grant.grant);
    await client.query("select 1");
    await client.end();
    await ann.end(grant.grant);

    const lines = (): readonly string[] =>
      readdirSync(folder).flatMap((name) => readFileSync(join(folder, name), "utf8").split("\n").slice(0, -1));
    await until(() => lines().some((line) => line.includes('"event_code":"grant.closed"')));
    const { entries, size } = await ida.call<LogPage>("GET", "/v1/log?from=0");
    await until(() => lines().length >= size);
    expect(tagsOf(lines()).slice(0, size)).toEqual(entries.map(({ index, leafHash }) => ({ index, leafHash })));
    const events = lines().map((line) => JSON.parse(line) as Record<string, unknown>);
    for (const event of events) expect(validate(ownRules(), event)).toEqual([]);
    const types = events.map(({ metadata }) => (metadata as Record<string, unknown>)["event_code"]);
    for (const type of ["grant.requested", "lease.confirmed", "session.opened", "grant.closed"])
      expect(types).toContain(type);
    for (const name of ["ann", "ida"]) expect(lines().join("\n")).not.toContain(`"${name}"`);

    const { sinks: shown } = await ida.call<SinkList>("GET", "/v1/sinks");
    expect(shown).toMatchObject([{ sink: "copy", kind: "file", configured: true, failures: 0, parked: [] }]);
    expect(shown[0]?.nextIndex).toBeGreaterThanOrEqual(size);
    expect(await ida.call("POST", "/v1/sinks/copy/retry")).toEqual({ retried: 0 });
    expect(await ann.refused("GET", "/v1/sinks")).toMatchObject({ status: 403 });
    expect(await sam.refused("POST", "/v1/sinks/copy/retry")).toMatchObject({ status: 403 });
    expect(await ida.refused("POST", "/v1/sinks/nosuch/retry")).toMatchObject({ status: 404 });
  } finally {
    await system.dispose();
    await rm(folder, { recursive: true, force: true });
  }
});
