import { openCheckpoint, parseVerifierKey, VerifyError, type NoteSigner, type NoteVerifier } from "@glasskey/verify";
import { sql } from "kysely";
import type pg from "pg";
import { GlassError } from "../core/errors.ts";
import type { Store, Tx } from "../store/database.ts";
import { append } from "./append.ts";
import { integrity } from "./tree.ts";

/** The log's key of that generation, 1 and up: derived, so that every process of an installation has it. */
export type SignerOf = (generation: number) => NoteSigner;

/** One generation of the log's key, as auditors know it. */
export interface LogKey {
  readonly generation: number;
  readonly vkey: string;
  readonly addedAt: Date;
  /** Null while it signs. */
  readonly retiredAt: Date | null;
}

/** The keys of the moment: who signs now, and whose signatures are still known. */
export interface KeysInForce {
  readonly signers: readonly [NoteSigner, ...NoteSigner[]];
  /** All of them, former ones too. */
  readonly verifiers: readonly NoteVerifier[];
}

/** Which keys sign the log, and the change of them. Who may change them is decided before. */
export interface LogKeys {
  /** Every generation, oldest first. */
  list(): Promise<readonly LogKey[]>;
  /**
   * Puts the next generation into force, with its entry `log.key_added`; every checkpoint from here on has its signature
   * too. @param actor a pseudonymous person id.
   * @throws GlassError `conflict` when there are {@link MAX_IN_FORCE} already.
   */
  add(actor: string): Promise<LogKey>;
  /**
   * The key of that generation signs no more, with the entry `log.key_retired`. What it signed still verifies.
   * @throws GlassError `not_found`; `conflict` for the last key, for one that is retired, and while no checkpoint has the
   *   signature of a key that stays.
   */
  retire(generation: number, actor: string): Promise<LogKey>;
  /** Every key that ever signed, former ones too. */
  verifiers(): Promise<readonly NoteVerifier[]>;
  /** The keys as the file `log.vkey` has them: one to a line, those in force first. */
  text(): Promise<string>;
  /** The same for a person, with comments that say which are in force. */
  described(): Promise<string>;
}

/** Held shared while a head is signed and published, and alone while the keys change. */
const LOCK = 0x676c6b79; // "glky"
/** Two while a key is replaced, and one to spare. Each costs a signature for every checkpoint. */
export const MAX_IN_FORCE = 3;

/**
 * Opens the table of keys, putting generation 1 into force on first use.
 * @throws GlassError `config_invalid` when the origin is another than the one that the log was begun with. A key in the
 *   table that is not this installation's is found when a head is to be signed; here it is never believed.
 */
export async function openLogKeys(store: Store, signerOf: SignerOf): Promise<LogKeys> {
  await store
    .insertInto("log_keys")
    .values({ generation: 1, vkey: signerOf(1).vkey, retired_at: null })
    .onConflict((c) => c.doNothing())
    .execute();

  const read = async (from: Store | Tx): Promise<readonly LogKey[]> =>
    (await from.selectFrom("log_keys").selectAll().orderBy("generation").execute()).map((row) => ({
      ...{ generation: row.generation, vkey: row.vkey, addedAt: row.added_at, retiredAt: row.retired_at },
    }));
  const change = <T>(work: (tx: Tx) => Promise<T>): Promise<T> =>
    store.transaction().execute(async (tx) => {
      // Nothing is signed meanwhile: a process that hangs here must not keep it so.
      await sql`set local idle_in_transaction_session_timeout = '5s'`.execute(tx);
      await sql`select pg_advisory_xact_lock(${LOCK})`.execute(tx);
      return work(tx);
    });

  /** Of what the table says, the generations count; the keys are our own. */
  const own = async (): Promise<readonly LogKey[]> =>
    (await read(store)).map((key) => ({ ...key, vkey: signerOf(key.generation).vkey }));

  const begun = (await read(store))[0];
  if (begun !== undefined && nameOf(begun.vkey) !== signerOf(1).name) throw otherKey(begun, signerOf(1));
  return {
    list: own,
    add: (actor) =>
      change(async (tx) => {
        const keys = await read(tx);
        const { signers } = keysInForce(keys, signerOf);
        if (signers.length >= MAX_IN_FORCE)
          throw new GlassError("conflict", `${signers.length} keys sign already, and that is the most`, {
            next: "Retire one first: glass log keys, then glass log key retire GENERATION",
          });
        const generation = Math.max(...keys.map((key) => key.generation)) + 1;
        const { vkey } = signerOf(generation);
        const row = await tx
          .insertInto("log_keys")
          .values({ generation, vkey, added_at: sql<Date>`clock_timestamp()`, retired_at: null })
          .returning("added_at")
          .executeTakeFirstOrThrow();
        await append(tx, { type: "log.key_added", at: new Date(), actor, data: { generation, vkey } });
        return { generation, vkey, addedAt: row.added_at, retiredAt: null };
      }),
    retire: (generation, actor) =>
      change(async (tx) => {
        const keys = await read(tx);
        keysInForce(keys, signerOf);
        const key = keys.find((candidate) => candidate.generation === generation);
        if (key === undefined)
          throw new GlassError("not_found", `the log has no key of generation ${generation}`, {
            next: "List them: glass log keys",
          });
        if (key.retiredAt !== null) throw new GlassError("conflict", `key ${generation} is retired already`);
        const staying = keys.filter((other) => other !== key && other.retiredAt === null);
        if (staying.length === 0)
          throw new GlassError("conflict", `key ${generation} is the only one that signs`, {
            next: "Add another first: glass log key add",
          });
        await mustBeSignedBy(tx, staying);
        const row = await tx
          .updateTable("log_keys")
          .set({ retired_at: sql<Date>`clock_timestamp()` })
          .where("generation", "=", generation)
          .returning("retired_at")
          .executeTakeFirstOrThrow();
        const { vkey } = key;
        await append(tx, { type: "log.key_retired", at: new Date(), actor, data: { generation, vkey } });
        return { ...key, retiredAt: row.retired_at };
      }),
    verifiers: async () => (await own()).map(({ vkey }) => parseVerifierKey(vkey)),
    text: async () =>
      inOrder(await own())
        .map(({ vkey }) => `${vkey}\n`)
        .join(""),
    described: async () => describeKeys(await own()),
  };
}

/** Who checks the newest checkpoint with the remaining keys must not find that none of them has signed it. */
async function mustBeSignedBy(tx: Tx, staying: readonly LogKey[]): Promise<void> {
  const newest = await tx
    .selectFrom("log_checkpoints")
    .select("note")
    .orderBy("size", "desc")
    .limit(1)
    .executeTakeFirst();
  const verifiers = staying.map(({ vkey }) => parseVerifierKey(vkey));
  try {
    if (newest !== undefined) openCheckpoint(newest.note, verifiers);
  } catch (cause) {
    if (!(cause instanceof VerifyError)) throw cause;
    throw new GlassError("conflict", "no checkpoint has the signature of a key that would stay", {
      next: "Try again in a second. If it stays so, no process signs: glass log status",
      cause,
    });
  }
}

/**
 * Who signs by this table. Every key in it is made again from the keyring and compared: a row that somebody put there
 * gives nobody a signature.
 * @throws GlassError `config_invalid`, `integrity` as {@link openLogKeys} says.
 */
function keysInForce(
  rows: readonly Pick<LogKey, "generation" | "vkey" | "retiredAt">[],
  signerOf: SignerOf,
): KeysInForce {
  const verifiers: NoteVerifier[] = [];
  const signers: NoteSigner[] = [];
  for (const { generation, vkey, retiredAt } of rows) {
    const signer = signerOf(generation);
    if (signer.vkey !== vkey) throw otherKey({ generation, vkey }, signer);
    verifiers.push(parseVerifierKey(vkey));
    if (retiredAt === null) signers.push(signer);
  }
  const [first, ...more] = signers;
  if (first === undefined) throw integrity("none of its keys is in force");
  return { signers: [first, ...more], verifiers };
}

function nameOf(vkey: string): string {
  return vkey.split("+", 1)[0] ?? "";
}

function otherKey({ generation, vkey }: Pick<LogKey, "generation" | "vkey">, own: NoteSigner): GlassError {
  const name = nameOf(vkey);
  if (name === own.name) return integrity(`key ${generation} in its table is not this installation's`);
  return new GlassError("config_invalid", `the log was begun as ${name}, and glasskey.yaml says ${own.name}`, {
    next: `Set \`log: { origin: ${name} }\`. A log keeps its origin for ever: auditors know it by that.`,
  });
}

/** The keys of the moment, on a sequencer's connection. With `hold`, they do not change before its transaction ends. */
export async function readKeys(client: pg.Client, signerOf: SignerOf, hold = false): Promise<KeysInForce> {
  if (hold) await client.query("select pg_advisory_xact_lock_shared($1)", [LOCK]);
  const { rows } = await client.query<{ generation: number; vkey: string; retiredAt: Date | null }>(
    `select generation, vkey, retired_at as "retiredAt" from log_keys order by generation`,
  );
  return keysInForce(rows, signerOf);
}

function inOrder(keys: readonly LogKey[]): readonly LogKey[] {
  return [...keys.filter((key) => key.retiredAt === null), ...keys.filter((key) => key.retiredAt !== null)];
}

function describeKeys(keys: readonly LogKey[]): string {
  const lines = inOrder(keys).flatMap(({ generation, vkey, retiredAt }) => {
    const life =
      retiredAt === null ? "in force: every new checkpoint has its signature" : `retired ${retiredAt.toISOString()}`;
    return [`# Key ${generation}, ${life}.`, vkey];
  });
  return `${lines.join("\n")}\n`;
}
