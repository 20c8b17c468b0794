import type { Observation } from "../access/access.ts";
import { formatDuration } from "../core/duration.ts";
import { unreachable } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import { moment, oneLine } from "../notify/text.ts";
import { scopeWords } from "./scope-words.ts";
import { factMark, html, sign, whole, type Html } from "./link-markup.ts";

/** What somebody is asked to decide on. All texts are of strangers; the page escapes them and shows what is unseen. */
export interface RequestView {
  readonly grant: string;
  readonly requester: string;
  /** Whose link this is. */
  readonly person: string;
  readonly playbook: string;
  readonly summary: string;
  readonly target: string;
  readonly kind: string;
  readonly scope: JsonObject;
  readonly reason: string;
  /** What policy.yaml says that the code is for. */
  readonly reasonMeans: string | undefined;
  readonly why: string;
  readonly incident: string | undefined;
  readonly evidence: readonly Observation[];
  /** Why more people than usual must agree. */
  readonly quorum: readonly string[];
  readonly need: number;
  readonly saidYes: readonly string[];
  /** How long it opens, or how much longer. */
  readonly durationMs: number;
  readonly extension: boolean;
  readonly askedAt: Date;
  readonly decideBy: Date;
  readonly now: Date;
}

export type LinkPage =
  /** A token that is forged, cut, of another installation or over: one page for all, it tells nothing. */
  | { readonly kind: "dead" }
  | { readonly kind: "unavailable" }
  | { readonly kind: "ineligible"; readonly reasons: readonly string[] }
  | { readonly kind: "decide"; readonly request: RequestView; readonly problem?: string }
  | {
      readonly kind: "done";
      readonly tone: "yes" | "no" | "over";
      readonly title: string;
      readonly text: string;
      readonly commands: readonly string[];
      readonly request: RequestView;
    };

/** The page of a signed link, whole. Pure. */
export function linkPage(page: LinkPage): string {
  switch (page.kind) {
    case "dead":
      return whole("This link does not work", [
        sign("over"),
        html`<h1>This link does not work</h1>
          <p class="lead">It is over, incomplete, or not one of ours. Nothing was decided by opening it.</p>
          <p>If somebody still waits for you, their request is here:<br /><code>glass status</code></p>`,
      ]);
    case "unavailable":
      return whole("Glasskey cannot answer", [
        sign("over"),
        html`<h1>Glasskey cannot answer now</h1>
          <p class="lead">
            Open the link again in a moment: it shows whether your decision was taken. Deciding twice does no harm.
          </p>`,
      ]);
    case "ineligible":
      return whole("Not yours to decide", [
        sign("over"),
        html`<h1>This is not yours to decide any more</h1>
          <p class="lead">The policy in force does not let you decide on this request. Nothing was changed.</p>
          ${page.reasons.map((reason) => html`<p>${reason}</p>`)}`,
      ]);
    case "decide":
      return whole(titleOf(page.request), decideParts(page.request, page.problem), leftOf(page.request));
    case "done":
      return whole(page.title, [
        sign(page.tone),
        html`<h1>${page.title}</h1>
          <p class="lead">${page.text}</p>
          ${
            page.commands.length === 0
              ? html``
              : html`<p>${page.commands.map((command) => html`<code>${command}</code><br />`)}</p>`
          }`,
        html`<section class="card"><dl>${facts(page.request)}</dl></section>`,
      ]);
    default:
      return unreachable(page);
  }
}

function leftOf({ now, decideBy }: RequestView): string {
  return `${rounded(Math.max(0, decideBy.getTime() - now.getTime()))} left`;
}

function titleOf({ requester, target, extension }: RequestView): string {
  return extension ? `${requester} asks for more time on ${target}` : `${requester} asks to open ${target}`;
}

function decideParts(request: RequestView, problem: string | undefined): readonly Html[] {
  const { requester, person, extension, durationMs, need, saidYes } = request;
  const missing = Math.max(1, need - saidYes.length);
  const effect = extension ? `${formatDuration(durationMs)} longer` : `opens it for ${formatDuration(durationMs)}`;
  return [
    html`<h1>${titleOf(request)}</h1>
      <p class="lead">${request.summary}</p>`,
    problem === undefined ? html`` : html`<div class="problem" role="alert"><p>${problem}</p></div>`,
    request.quorum.length === 0
      ? html``
      : html`<div class="quorum">
          <p><b>More people than usual must agree.</b></p>
          ${request.quorum.map((reason) => html`<p>${reason}</p>`)}
        </div>`,
    html`<blockquote>
      <span class="tag">Why, in the words of ${requester}</span>
      <p>${request.why}</p>
    </blockquote>`,
    html`<section class="card"><dl>${facts(request)}</dl></section>`,
    html`<form method="post">
      <p class="as">You decide as <b>${person}</b>. This link is yours alone.</p>
      <button class="no" name="verdict" value="deny">
        <b>Deny</b><span>${extension ? "the end stays" : "ends the request"}</span>
      </button>
      <button class="yes" name="verdict" value="approve">
        <b>Approve</b><span>${missing > 1 ? `your yes is ${saidYes.length + 1} of ${need}` : effect}</span>
      </button>
    </form>`,
  ];
}

function facts(request: RequestView): readonly Html[] {
  const { now, reason, reasonMeans, need, saidYes } = request;
  const told = request.evidence.some(({ fact }) => fact === `incident:${request.incident}`);
  const rows: readonly (readonly [string, Html | readonly Html[] | undefined])[] = [
    ["Target", html`${request.target} <small>${request.kind}</small>`],
    ["May do", scopeWords(request.scope).map((line) => html`${line}<br />`)],
    [
      request.extension ? "Longer by" : "For",
      html`${formatDuration(request.durationMs)}${request.extension ? "" : ", from the last approval"}`,
    ],
    ["Reason", html`${reason}${reasonMeans === undefined ? html`` : html` <small>${reasonMeans}</small>`}`],
    ["Incident", request.incident === undefined || told ? undefined : html`${request.incident}`],
    [
      "Evidence",
      request.evidence.length === 0
        ? undefined
        : html`<ul>
            ${request.evidence.map(
              (fact) =>
                html`<li class="f-${fact.value}">
                  ${factMark(fact.value)}<span>${evidenceWords(fact, request.requester)}</span
                  ><small>${sourceWords(fact, now)}</small>
                </li>`,
            )}
          </ul>`,
    ],
    ["Agreed", html`${saidYes.length} of ${need}${saidYes.length === 0 ? "" : `: ${saidYes.join(", ")}`}`],
    ["Asked", request.extension ? undefined : html`${ago(now.getTime() - request.askedAt.getTime())}`],
    ["Decide by", html`${moment(request.decideBy)}`],
    ["Playbook", html`${request.playbook} <small>${request.grant}</small>`],
  ];
  return rows.flatMap(([label, value]) =>
    value === undefined
      ? []
      : [
          html`<div>
            <dt>${label}</dt>
            <dd>${value}</dd>
          </div>`,
        ],
  );
}

function evidenceWords({ fact, value, severity }: Observation, requester: string): string {
  const [kind = "", ...rest] = fact.split(":");
  const name = rest.join(":");
  const claim =
    kind === "oncall"
      ? { true: `${requester} is on call for ${name}`, false: `${requester} is not on call for ${name}` }
      : {
          true: `Incident ${name} is open${severity === undefined ? "" : `: ${severity}`}`,
          false: `Incident ${name} is not open`,
        };
  if (value !== "unknown") return claim[value];
  return kind === "oncall"
    ? `Nobody knows whether ${requester} is on call for ${name}`
    : `Nobody knows whether incident ${name} is open`;
}

function sourceWords({ source, observedAt, detail }: Observation, now: Date): string {
  const observedMs = Date.parse(observedAt);
  const who = source === "static" ? "the rota in the policy" : source;
  const age = Number.isFinite(observedMs) ? `, ${ago(now.getTime() - observedMs)}` : "";
  return `${who}${age}${detail === undefined ? "" : `: ${oneLine(detail, 200)}`}`;
}

function ago(ms: number): string {
  if (ms < 5_000) return "just now";
  return `${rounded(ms)} ago`;
}

function rounded(ms: number): string {
  if (ms < 60_000) return `${Math.floor(ms / 1_000)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min`;
  const hours = Math.floor(ms / 3_600_000);
  return hours < 48 ? `${hours} h ${Math.floor((ms % 3_600_000) / 60_000)} min` : `${Math.floor(hours / 24)} days`;
}
