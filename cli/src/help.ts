import { COMMANDS, type Command } from "./commands.ts";
import { paragraph, table } from "./output.ts";

const SERVER: readonly (readonly [string, string])[] = [
  ["init DIR", "Make a folder to start from: glasskey.yaml, policy, people"],
  ["serve [--config FILE]", "Control plane and gateway in one process"],
  ["playbook lint|test|plan|explain|fmt", "Policy files, checked and explained offline"],
  ["archive restore --to DIR", "A log folder from the archive alone, without server and store"],
  ["secret", "A new secret for a person, and its line for people.yaml"],
];

export function overview(): string {
  const rows = COMMANDS.map((command) => [
    `  ${command.usage.replace("glass ", "").split(" [--")[0]?.split(" --")[0] ?? ""}`,
    command.summary,
  ]);
  const server = SERVER.map(([verb, summary]) => [`  ${verb}`, summary]);
  return [
    "glass: break-glass access. Every verb takes --json; `glass help VERB` says more.",
    "",
    ...table([...rows, ["", ""], ...server]).flat(),
    "",
    "Exit codes: 0 done, 1 failed, 2 usage, 3 denied by policy,",
    "            4 waiting for a human, 5 revocation not proved.",
    "",
  ].join("\n");
}

export function helpFor(command: Command): string {
  const options = Object.keys(command.options ?? {}).map((name) => [`  --${name}`, command.explain?.[name] ?? ""]);
  return [
    `${command.summary}.`,
    "",
    ...paragraph(command.usage, 2),
    ...(options.length === 0 ? [] : ["", ...table(options).flat()]),
    "",
  ].join("\n");
}
