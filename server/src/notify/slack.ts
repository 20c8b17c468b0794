import { GlassError } from "../core/errors.ts";
import type { SlackChannel } from "./config.ts";
import { linkUrl, type Delivery } from "./delivery.ts";
import { commandsOf, factsOf, sentenceOf, whyOf, wordsOf } from "./message.ts";
import { refusal } from "./post.ts";

const MAX_SECTION = 2_900; // Slack takes 3,000 characters of text in a section
const ERROR_WORD = /^[a-z][a-z_]{2,59}$/;

/**
 * Posts to an incoming webhook (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks): JSON with
 * `text` and Block Kit `blocks`; 200 and the two letters `ok` say that it was taken, and nothing else does.
 */
export async function sendSlack(channel: SlackChannel, delivery: Delivery): Promise<string> {
  const url = webhookUrl(delivery.secret(channel.webhook));
  const headers = { "content-type": "application/json; charset=utf-8" };
  const answer = await delivery.post(url, headers, JSON.stringify(slackPayload(delivery)));
  const said = answer.body.trim();
  if (answer.status !== 200 || said !== "ok") {
    throw refusal(answer, delivery.nowMs, ERROR_WORD.test(said) ? said : "");
  }
  const id = answer.headers["x-slack-req-id"];
  return typeof id === "string" && /^[A-Za-z0-9_-]{1,80}$/.test(id) ? `200 ok ${id}` : "200 ok";
}

/** @throws GlassError `config_invalid` without quoting what was read. */
export function webhookUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "https:") {
    throw new GlassError("config_invalid", "what `webhook` refers to is not an https:// URL");
  }
  return url;
}

function slackPayload(delivery: Pick<Delivery, "message" | "link" | "url">): object {
  const { message } = delivery;
  const title = wordsOf(message.event).title;
  const facts = factsOf(message).map(([label, value]) => `*${label}:* ${escapeMrkdwn(value)}`);
  const why = whyOf(message);
  const link = linkUrl(delivery);
  const parts = [
    `*${title}*\n${escapeMrkdwn(sentenceOf(message))}`,
    facts.join("\n"),
    why === undefined ? "" : `*Why:*\n> ${escapeMrkdwn(why)}`,
    link === undefined
      ? ""
      : `*<${link}|Look at the request and decide>*\nThis link is yours alone. Do not pass it on.`,
    commandsOf(message)
      .map((command) => `\`${command}\``)
      .join("\n"),
  ];
  return {
    // What notifications on a phone's lock screen show: no link, and no words of the requester.
    text: `${title}: ${escapeMrkdwn(sentenceOf(message))}`,
    unfurl_links: false,
    unfurl_media: false,
    blocks: parts
      .filter((part) => part !== "")
      // `verbatim`: no @name, #channel or bare address in a text becomes a mention or a link.
      .map((text) => ({ type: "section", text: { type: "mrkdwn", text: text.slice(0, MAX_SECTION), verbatim: true } })),
  };
}

/**
 * Text as mrkdwn that shows as it was written: `&`, `<` and `>` are the characters that begin a mention, a link or
 * `<!channel>`. The others only change the look: a word joiner keeps them from pairing, and names with `_` inside stay as
 * they are, to be copied.
 */
function escapeMrkdwn(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll("`", "ˋ")
    .replaceAll(/[*~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])/g, (char) => `\u2060${char}\u2060`);
}
