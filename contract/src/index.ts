export * from "./api.ts";
export * from "./errors.ts";
export * from "./events.ts";
export * from "./evidence.ts";
export * from "./policy.ts";
