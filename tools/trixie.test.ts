import { expect, test } from "vitest";
import { renamedSources } from "./trixie.ts";

const DEB822 = `Types: deb
# a snapshot
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
`;

test("the private sources are the system's own, of the other release, with the same keys, and nothing else", () => {
  expect(renamedSources("bookworm", DEB822, "")).toEqual({
    name: "trixie.sources",
    text: `Types: deb
URIs: http://mirror.example/debian
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`,
  });
  const list = `# deb http://old.example bookworm main
deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
`;
  expect(renamedSources("bookworm", "", list)).toEqual({
    name: "trixie.list",
    text: "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main\n",
  });
  expect(renamedSources("bookworm", "", "deb http://vendor.example stable main\n")).toBeUndefined();
  expect(renamedSources("bookworm", "", "")).toBeUndefined();
});
