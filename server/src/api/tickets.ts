import { GlassError } from "../core/errors.ts";

/** Permission to do something costly, given back at the end of the block. */
export interface Tickets {
  /** @throws GlassError `too_many_attempts` when there is none left, for this person or at all. */
  take(person: string): Disposable;
}

export function createTickets(
  inAll: number,
  perPerson: number,
  refusal: { readonly message: string; readonly next: string },
): Tickets {
  const count = new Map<string, number>();
  let all = 0;
  return {
    take(person) {
      const mine = count.get(person) ?? 0;
      if (all >= inAll || mine >= perPerson)
        throw new GlassError("too_many_attempts", refusal.message, { next: refusal.next });
      all++;
      count.set(person, mine + 1);
      let given = false;
      return {
        [Symbol.dispose]() {
          if (given) return;
          given = true;
          all--;
          const left = (count.get(person) ?? 1) - 1;
          if (left > 0) count.set(person, left);
          else count.delete(person);
        },
      };
    },
  };
}
