import { postgres } from "./postgres/index.ts";
import { ssh } from "./ssh/index.ts";
import type { TargetKind } from "./target.ts";

/** Every kind of target this build knows. Only the composition roots import it. */
export const kinds: readonly TargetKind[] = [postgres, ssh];
