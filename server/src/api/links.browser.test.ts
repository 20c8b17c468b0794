import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium, type Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { playbook, PEOPLE, startTestSystem, type Client, type TestSystem } from "../../testing/system.ts";
import { createAuthority, issueServerCertificate } from "../core/certificates.ts";
import { fakeReceiver } from "../notify/testing/fakes.ts";

const PROGRAM = "/usr/bin/chromium";
const FLAGS = [
  ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
  ...["--disable-component-update", "--disable-sync"],
];

describe.skipIf(!existsSync(PROGRAM))("in a real browser", () => {
  let folder: string;
  let system: TestSystem;
  let browser: Browser;
  let receiver: Awaited<ReturnType<typeof fakeReceiver>>;
  let ann: Client;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "glasskey-browser-"));
    const authority = await createAuthority("the receiver's CA", 1);
    const identity = await issueServerCertificate(authority, ["127.0.0.1"], 1);
    const secret = `whsec_${Buffer.alloc(24, 9).toString("base64")}`;
    receiver = await fakeReceiver(identity, secret);
    const [caFile, secretFile] = [join(folder, "ca.pem"), join(folder, "secret")];
    await writeFile(caFile, authority.cert);
    await writeFile(secretFile, secret, { mode: 0o600 });
    const people = PEOPLE.replace("- { name: bob,", '- { name: bob, notify: ["webhook:bob"],');
    const channel = { kind: "webhook", url: receiver.url, secret: `\${file:${secretFile}}` } as const;
    system = await startTestSystem(
      inject("pg18"),
      {
        "people.yaml": people,
        "playbooks/consent.yaml": playbook("consent", { approve: "{ need: 1, from: { group: leads } }" }),
      },
      {
        notify: {
          channels: new Map([["webhook:bob", { ...channel, page: false, why: false, ca: caFile }]]),
          alarms: [],
        },
      },
    );
    ann = await system.as("ann");
    browser = await chromium.launch({ executablePath: PROGRAM, args: FLAGS });
  });
  afterAll(async () => {
    await browser?.close();
    await system?.dispose();
    await receiver?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  /** The link that bob got for this grant. */
  const linkFor = async (grant: string): Promise<string> => {
    const noticeOf = (): string => receiver.taken().find((seen) => seen.text.includes(grant))?.text ?? "";
    await expect.poll(noticeOf, { timeout: 20_000 }).not.toBe("");
    return /https:\/\/[^"\s]+\/a\/[A-Za-z0-9._~-]+/.exec(noticeOf())?.[0] ?? "the notice holds no link";
  };

  test("from the notice to one click on a phone's screen: opening the link changes nothing, the button opens the grant", async () => {
    const { grant } = await ann.break("consent");
    const phone = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 390, height: 844 } });
    const page = await phone.newPage();
    const faults: string[] = [];
    page.on("console", (message) => faults.push(message.text()));
    page.on("pageerror", (error) => faults.push(error.message));
    await page.goto(await linkFor(grant));
    expect(await page.evaluate<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(390);
    expect((await ann.grant(grant)).state).toBe("pending");
    const button = page.getByRole("button", { name: /approve/i });
    expect((await button.boundingBox())?.height).toBeGreaterThanOrEqual(44);
    await button.click();
    await page.waitForLoadState();
    expect(await page.getByRole("heading", { level: 1 }).innerText()).toBe("You said yes");
    const active = await ann.until(grant, ["active"]);
    expect(active.approvals.map(({ person }) => person)).toEqual(["bob"]);
    expect(faults).toEqual([]);
    await ann.end(grant);
    await phone.close();
  });

  test("a no by the other button, and the link is spent", async () => {
    const { grant } = await ann.break("consent");
    const phone = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 390, height: 844 } });
    const page = await phone.newPage();
    const link = await linkFor(grant);
    await page.goto(link);
    await page.getByRole("button", { name: /deny/i }).click();
    await page.waitForLoadState();
    expect((await ann.grant(grant)).state).toBe("denied");
    await page.goto(link);
    expect(await page.getByRole("button").count()).toBe(0);
    await phone.close();
  });
});
