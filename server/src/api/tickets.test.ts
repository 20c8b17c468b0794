import { expect, test } from "vitest";
import { createTickets } from "./tickets.ts";

test("there are so many for a person and so many in all, and what is given back can be taken again", () => {
  const tickets = createTickets(3, 2, { message: "too many", next: "wait" });
  const refused = expect.objectContaining({ code: "too_many_attempts", message: "too many", next: "wait" }) as Error;
  const first = tickets.take("ann");
  tickets.take("ann");
  expect(() => tickets.take("ann")).toThrow(refused);
  tickets.take("bob");
  expect(() => tickets.take("cas")).toThrow(refused);
  first[Symbol.dispose]();
  first[Symbol.dispose](); // given back once, however often it is said
  tickets.take("cas");
  expect(() => tickets.take("ann")).toThrow(refused);
});
