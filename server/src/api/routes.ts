import { errorBody } from "@glasskey/contract";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { FastifyBaseLogger, FastifyInstance, FastifyRequest, RawServerDefault } from "fastify";
import type { ZodTypeProvider } from "fastify-type-provider-zod";
import type { z } from "zod";
import { GlassError } from "../core/errors.ts";
import type { Api } from "./services.ts";

/** What a group of routes is registered on: Fastify with schemas from the contract. */
export type Routes = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  ZodTypeProvider
>;

/** Adds the error answers that every route can give to its schema. */
export function answers<T extends z.ZodType>(ok: T): { 200: T; "4xx": typeof errorBody; "5xx": typeof errorBody } {
  return { 200: ok, "4xx": errorBody, "5xx": errorBody };
}

/** Whose request this is. @throws GlassError `unauthenticated`. */
export async function personOf(
  api: Api,
  request: FastifyRequest,
): Promise<{ person: string; expiresAt: Date; token: string }> {
  const token = /^Bearer (\S{1,128})$/.exec(request.headers.authorization ?? "")?.[1];
  const found = token === undefined ? undefined : await api.personOfToken(token);
  // The name that logged in, not whoever has it as an alias by now.
  const same = found !== undefined && api.access.policy().person(found.person)?.name === found.person;
  if (token === undefined || found === undefined || !same) {
    throw new GlassError("unauthenticated", token === undefined ? "you are not logged in" : "your login is over", {
      next: "Run: glass login NAME",
    });
  }
  return { ...found, token };
}
