import { numberedPayload, type StoredRecord } from "./record.ts";
import type { Shown } from "./screen.ts";

export interface Line extends Omit<Shown, "what"> {
  /** `output`: written by a command without a terminal. */
  readonly what: Shown["what"] | "output";
  readonly n: number;
  readonly timeUs: number;
}

/** Longer lines are told in parts. */
const MAX_LINE = 4_096;
const MAX_OUTPUTS = 64;

/** Puts the output of commands without a terminal together to lines. Memory: a line for each that is not over. */
export interface Outputs {
  /** Commands' streams whose last line is not complete. */
  readonly size: number;
  /** @throws GlassError `integrity` for a malformed record. */
  take(record: StoredRecord): Line[];
  /** What is left of that command, or of all. */
  end(n?: number): Line[];
}

export function createOutputs(): Outputs {
  interface Open {
    readonly n: number;
    readonly decoder: TextDecoder;
    text: string;
    stamp: number;
    timeUs: number;
  }
  const open = new Map<string, Open>();
  const lineOf = ({ n, stamp, timeUs }: Open, text: string): Line[] =>
    text.trim() === "" ? [] : [{ what: "output", n, text: text.trimEnd(), stamp, timeUs }];
  const close = (key: string, one: Open): Line[] => {
    open.delete(key);
    return lineOf(one, one.text + one.decoder.decode());
  };
  return {
    get size() {
      return open.size;
    },
    take(record) {
      const { n, bytes } = numberedPayload(record);
      const key = `${n} ${bytes[0]}`;
      const found: Line[] = [];
      let one = open.get(key);
      if (one === undefined) {
        const [oldest] = open;
        if (open.size >= MAX_OUTPUTS && oldest !== undefined) found.push(...close(...oldest));
        one = { n, decoder: new TextDecoder("utf-8", { ignoreBOM: true }), text: "", stamp: 0, timeUs: 0 };
        open.set(key, one);
      }
      const parts = one.decoder.decode(bytes.subarray(1), { stream: true }).split(/\r?\n/u);
      for (const [i, part] of parts.entries()) {
        if (one.text === "") [one.stamp, one.timeUs] = [record.seq, record.timeUs];
        one.text += part;
        for (; one.text.length > MAX_LINE; one.text = one.text.slice(MAX_LINE))
          found.push(...lineOf(one, one.text.slice(0, MAX_LINE)));
        if (i === parts.length - 1) break; // the rest of this line comes with the next record
        found.push(...lineOf(one, one.text));
        one.text = "";
      }
      return found;
    },
    end: (n) => [...open].filter(([, one]) => n === undefined || one.n === n).flatMap(([key, one]) => close(key, one)),
  };
}
