import { createHash } from "node:crypto";
import { visible } from "../notify/text.ts";

const STYLE = `
:root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1b1a17;--dim:#65615a;--line:#e2dfd8;--mark:#b45309;
--yes:#14713d;--yes-ink:#fff;--no:#b3261e;--warn-bg:#fdf1dc;--warn:#8a4b07;--quote:#f1efe9}
@media(prefers-color-scheme:dark){:root{--bg:#131210;--card:#1d1b18;--ink:#f2efe8;--dim:#a8a297;--line:#35322c;
--mark:#f0a43c;--yes:#35a869;--yes-ink:#06150c;--no:#ff8a80;--warn-bg:#33260f;--warn:#f4c06c;--quote:#26231f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:17px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
main{max-width:38rem;margin:0 auto;padding:16px 16px 32px}
header{display:flex;align-items:center;justify-content:space-between;gap:12px;margin:2px 0 18px;font-size:15px}
.brand{display:flex;align-items:center;gap:8px;font-weight:650;letter-spacing:.01em}
.brand svg{width:20px;height:20px;color:var(--mark);flex:none}
.left{background:var(--warn-bg);color:var(--warn);border-radius:99px;padding:4px 12px;font-weight:600;
font-variant-numeric:tabular-nums;white-space:nowrap}
h1{font-size:26px;line-height:1.2;letter-spacing:-.01em;margin:0 0 6px;font-weight:700}
.lead{color:var(--dim);margin:0 0 18px}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:2px 16px;margin:0 0 14px}
blockquote{margin:0 0 14px;background:var(--quote);border-left:4px solid var(--mark);border-radius:4px 14px 14px 4px;
padding:12px 16px;overflow:hidden}
blockquote p{margin:0;white-space:pre-wrap;unicode-bidi:isolate}
.tag{display:block;font-size:13px;font-weight:600;color:var(--dim);margin:0 0 2px}
dl{margin:0}
dl div{padding:10px 0;border-bottom:1px solid var(--line);display:grid;grid-template-columns:5.4rem 1fr;gap:12px;
align-items:baseline}
dl div:last-child{border-bottom:0}
dt{font-size:14px;font-weight:600;color:var(--dim);line-height:1.3}
dd{margin:0;unicode-bidi:isolate}
dd small,li small{color:var(--dim);font-size:14px;display:block}
ul{list-style:none;margin:0;padding:0}
li{padding-left:24px;position:relative}
li+li{margin-top:8px}
li svg{position:absolute;left:0;top:5px;width:16px;height:16px}
.f-true{color:var(--yes)}
.f-false{color:var(--no)}
.f-unknown{color:var(--warn)}
li span{color:var(--ink)}
.problem,.quorum{background:var(--warn-bg);color:var(--warn);border-radius:14px;padding:12px 16px;margin:0 0 14px}
.problem p,.quorum p{margin:0}
code{font:15px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--quote);border-radius:6px;
padding:3px 8px;display:inline-block;margin:3px 0}
form{position:sticky;bottom:0;background:var(--bg);border-top:1px solid var(--line);margin:0 -16px;
padding:12px 16px calc(12px + env(safe-area-inset-bottom));display:grid;grid-template-columns:1fr 1.25fr;gap:10px}
.as{grid-column:1/-1;margin:0;font-size:14px;color:var(--dim)}
button{font:inherit;min-height:60px;border-radius:14px;padding:8px 12px;cursor:pointer;border:2px solid transparent;
line-height:1.25;touch-action:manipulation}
button b{display:block;font-size:18px}
button span{font-size:14px}
.yes{background:var(--yes);color:var(--yes-ink)}
.no{background:transparent;color:var(--no);border-color:var(--no)}
button:focus-visible{outline:3px solid var(--mark);outline-offset:2px}
.sign{width:56px;height:56px;border-radius:50%;display:grid;place-items:center;margin:20px 0 14px;color:var(--card);
background:var(--dim)}
.sign svg{width:30px;height:30px}
.sign.s-yes{background:var(--yes);color:var(--yes-ink)}
.sign.s-no{background:var(--no)}
@media(min-width:700px){main{padding-top:40px}form{border-top:0;position:static;padding:8px 16px}}
`;

/** No script, no image, no frame, nothing from elsewhere; the one style is named by its hash. */
export const LINK_PAGE_HEADERS: Readonly<Record<string, string>> = {
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": [
    "default-src 'none'",
    `style-src 'sha256-${createHash("sha256").update(STYLE).digest("base64")}'`,
    "form-action 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
  ].join("; "),
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "x-robots-tag": "noindex, nofollow",
  "cross-origin-opener-policy": "same-origin",
};

/** Made here and not in a template: a formatter that touches a white space in it would break its hash. */
const STYLE_ELEMENT: Html = { markup: `<style>${STYLE}</style>` };

/** Markup that is safe to put into a page; only {@link html} makes it. */
export interface Html {
  readonly markup: string;
}

/** Text values are made visible and escaped; only what `html` made goes in as it is. */
export function html(
  parts: TemplateStringsArray,
  ...values: readonly (string | number | Html | readonly Html[])[]
): Html {
  const shown = values.map((value) => {
    if (typeof value === "string") return escapeHtml(visible(value));
    if (typeof value === "number") return String(value);
    return "markup" in value ? value.markup : value.map((one) => one.markup).join("");
  });
  return { markup: parts.map((part, index) => part + (shown[index] ?? "")).join("") };
}

function escapeHtml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");
}

const KEY = html`<svg
  viewBox="0 0 24 24"
  fill="none"
  stroke="currentColor"
  stroke-width="2"
  stroke-linecap="round"
  aria-hidden="true"
>
  <circle cx="8" cy="12" r="4.5" />
  <path d="M12.5 12H22M18 12v4M22 12v3" />
</svg>`;

/** The round sign above an answer. */
export function sign(tone: "yes" | "no" | "over"): Html {
  const paths = {
    yes: html`<path d="M5 12.5l4.5 4.5L19 7.5" />`,
    no: html`<path d="M6.5 6.5l11 11M17.5 6.5l-11 11" />`,
    over: html`<path d="M6 12h12" />`,
  };
  return html`<div class="sign s-${tone}">
    <svg
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      stroke-width="2.5"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      ${paths[tone]}
    </svg>
  </div>`;
}

/** The mark beside a fact: it holds, it does not, nobody knows. */
export function factMark(value: "true" | "false" | "unknown"): Html {
  const paths = {
    true: html`<path d="M3 8.5l3.5 3.5L13 5" />`,
    false: html`<path d="M4 4l8 8M12 4l-8 8" />`,
    unknown: html`<path d="M5.5 5.6a2.6 2.6 0 1 1 3.6 2.6c-.8.4-1.1.8-1.1 1.6M8 12.6v.1" />`,
  };
  return html`<svg
    viewBox="0 0 16 16"
    fill="none"
    stroke="currentColor"
    stroke-width="2"
    stroke-linecap="round"
    stroke-linejoin="round"
    aria-hidden="true"
  >
    ${paths[value]}
  </svg>`;
}

/** A whole document, which needs {@link LINK_PAGE_HEADERS}. @param left what the pill in the corner says. */
export function whole(title: string, parts: readonly Html[], left?: string): string {
  const page = html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover" />
        <meta name="robots" content="noindex" />
        <title>${title} · Glasskey</title>
        ${STYLE_ELEMENT}
      </head>
      <body>
        <main>
          <header>
            <span class="brand">${KEY}Glasskey</span
            >${left === undefined ? html`` : html`<span class="left">${left}</span>`}
          </header>
          ${parts}
        </main>
      </body>
    </html> `;
  return page.markup;
}
