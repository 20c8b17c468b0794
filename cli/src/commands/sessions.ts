import type { SessionView } from "@glasskey/contract";
import { call } from "../client.ts";
import type { Invocation } from "../commands.ts";
import { readLogin } from "../home.ts";
import { grantArgument } from "../ids.ts";
import { bytes, clock, plain, table } from "../output.ts";

export async function sessions({ args, options, out }: Invocation): Promise<number> {
  const query = new URLSearchParams();
  if (args[0] !== undefined) query.set("grant", grantArgument(args));
  if (options["open"] === true) query.set("open", "true");
  const { sessions: found } = await call<{ sessions: SessionView[] }>(readLogin(), "GET", `/v1/sessions?${query}`);
  out.value({ sessions: found });
  if (found.length === 0) out.say("No sessions.");
  const head = ["SESSION", "ENDED BY", "WHO", "TARGET", "BEGAN", "STATEMENTS", "OUT", ""].map((text) => out.dim(text));
  const rows = found.map((session) => {
    const open = session.closedAt === null; // counts come with its end
    const refused = session.refused === 0 ? "" : `, ${session.refused} refused`;
    return [
      ...[
        out.bold(session.session),
        open ? out.green("open") : plain(session.cause ?? ""),
        session.person,
        session.target,
      ],
      ...[
        clock(session.openedAt),
        open ? "–" : `${session.statements}${refused}`,
        open ? "–" : bytes(session.bytesOut),
      ],
      session.recordingComplete ? "" : out.dim("recording goes on"),
    ];
  });
  out.sayAll(found.length === 0 ? [] : table([head, ...rows]).flat());
  return 0;
}
