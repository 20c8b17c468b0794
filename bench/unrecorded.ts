// Preloaded (`--import`) into the one `glass serve` that a benchmark measures without recording, and into its threads.
// Glasskey itself has no such mode: this puts another journal in the place of its own, by Node's module hooks.
import { registerHooks } from "node:module";

registerHooks({
  resolve(specifier, context, next) {
    const here = context.parentURL?.endsWith("/server/src/data-plane.ts") === true;
    if (!here || specifier !== "./recording/journal.ts") return next(specifier, context);
    return {
      url: new URL("./unrecorded-journal.ts", import.meta.url).href,
      format: "module-typescript",
      shortCircuit: true,
    };
  },
});
