import type { TargetCheck, TargetSetup } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { usage } from "../errors.ts";
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
      // Line by line, and none of them broken: they are there to be copied.
      if (!ok && fix !== undefined) out.sayAll(fix.split("\n").map((line) => `      ${plain(line)}`));
    });
  }
  return targets.every(({ checks }) => checks.every(({ ok }) => ok)) ? 0 : 1;
}

/** What to put on a target, for people step by step, or as a whole for a tool. */
export async function targetSetup({ args, options, out }: Invocation): Promise<number> {
  const { kind, format } = options as { kind?: string; format?: string };
  const name = args[0];
  if ((name === undefined) === (kind === undefined)) {
    throw usage("name a target, or a kind", "glass target setup NAME, or before its file is there: --kind ssh");
  }
  const path =
    name === undefined
      ? `/v1/kinds/${encodeURIComponent(kind ?? "")}/setup`
      : `/v1/targets/${encodeURIComponent(name)}/setup`;
  const setup = await call<TargetSetup>(readLogin(), "GET", path);
  const whole = format === undefined ? undefined : setup.formats[format];
  if (format !== undefined && whole === undefined) {
    throw usage(`there is no format "${plain(format)}"`, `There are: ${Object.keys(setup.formats).join(", ")}`);
  }
  out.value(setup);
  if (whole !== undefined) {
    out.sayAll(whole.trimEnd().split("\n"));
    return 0;
  }
  setup.steps.forEach(({ title, file, text }, i) => {
    if (i > 0) out.say();
    out.say(`${out.bold(`${i + 1}. ${plain(title)}`)}${file === undefined ? "" : `  ${plain(file)}`}`);
    out.sayAll(
      text
        .trimEnd()
        .split("\n")
        .map((line) => `    ${line}`),
    );
  });
  out.hint(`As a whole: --format ${Object.keys(setup.formats).join("|")}`);
  return 0;
}
