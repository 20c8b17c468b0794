import { buildApp } from "./app.ts";
import type { Api } from "./services.ts";

/** The API's OpenAPI 3.1 document, made from the routes' own schemas. No handler runs. */
export async function openApiDocument(): Promise<unknown> {
  const noServices = { access: {}, log: {} } as Api; // routes keep it for when they are called, which is never
  const app = await buildApp(noServices);
  try {
    return app.swagger();
  } finally {
    await app.close();
  }
}
