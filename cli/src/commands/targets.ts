import type { TargetCheck } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { readLogin } from "../home.ts";
import { plain, table } from "../output.ts";

export async function targetCheck({ args, out }: Invocation): Promise<number> {
  const { targets } = await call<{ targets: TargetCheck[] }>(
    readLogin(),
    "POST",
    "/v1/targets/check",
    args[0] === undefined ? {} : { target: args[0] },
  );
  out.value({ targets });
  for (const { target, kind, playbook, checks } of targets) {
    out.say(`${out.bold(target)} (${kind})${playbook === null ? "" : `, as playbook ${playbook} needs it`}`);
    const lines = table(
      checks.map(({ check, ok, detail }) => [`  ${ok ? out.green("✓") : out.red("✗")} ${plain(check)}`, plain(detail)]),
    );
    checks.forEach(({ ok, fix }, i) => {
      out.sayAll(lines[i] ?? []);
      if (!ok && fix !== undefined) out.say(`      ${plain(fix)}`);
    });
  }
  return targets.every(({ checks }) => checks.every(({ ok }) => ok)) ? 0 : 1;
}
