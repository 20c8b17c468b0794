import type { Secret } from "../core/secret.ts";
import type { Message } from "./message.ts";
import type { Answer } from "./post.ts";

/** One message on its way to one channel: what to say, and the means to send it. */
export interface Delivery {
  /** The notice's id: the same at every attempt. */
  readonly id: string;
  readonly message: Message;
  /** For the person whose own channel this is, and who may decide. */
  readonly link: Secret | undefined;
  /** Where Glasskey itself is, `https://HOST:PORT`. */
  readonly url: string;
  readonly nowMs: number;
  /** Reads a secret reference of the channel. */
  readonly secret: (reference: string) => string;
  readonly post: (url: URL, headers: Readonly<Record<string, string>>, body: string) => Promise<Answer>;
}

/** The address of the page behind a signed link; as secret as the token in it. */
export function linkUrl({ link, url }: Pick<Delivery, "link" | "url">): string | undefined {
  return link === undefined ? undefined : `${url}/a/${link.reveal()}`;
}
