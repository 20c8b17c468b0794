// `npm run generate [-- --check]`: writes the committed files that are made from code, or fails where one is out of date.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { openApiDocument } from "../server/src/api/openapi.ts";
import { policySchemas, SCHEMAS } from "../server/src/playbooks/json-schema.ts";
import { kinds } from "../server/src/targets/registry.ts";

const root = join(import.meta.dirname, "..");

const schemas = policySchemas(kinds.map(({ kind }) => kind));

const GENERATED: readonly { file: string; make: () => Promise<string> }[] = [
  { file: "contract/openapi.json", make: async () => `${JSON.stringify(await openApiDocument(), null, 2)}\n` },
  ...SCHEMAS.map((name) => ({
    file: `contract/schemas/${name}.schema.json`,
    make: async () => `${JSON.stringify(schemas[name], null, 2)}\n`,
  })),
];

const check = process.argv.includes("--check");
for (const { file, make } of GENERATED) {
  const path = join(root, file);
  const [now, wanted] = [await readFile(path, "utf8").catch(() => undefined), await make()];
  if (now === wanted) {
    process.stdout.write(`${file}: up to date\n`);
  } else if (check) {
    process.stdout.write(`${file}: out of date. Run \`npm run generate\` and commit the result.\n`);
    process.exitCode = 1;
  } else {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, wanted);
    process.stdout.write(`${file}: written\n`);
  }
}
