-- The log's keys, and what witnesses said. The keys themselves are derived from the keyring (ADR 4): here is which of them
-- are in force, so that every process signs with the same ones.

create table log_keys (
  generation integer primary key check (generation >= 1),
  vkey text not null unique check (octet_length(vkey) between 20 and 4096),
  added_at timestamptz not null default now(),
  retired_at timestamptz
);

-- A key is added, and retired once. Nothing else ever changes, and one is always left.
create function log_keys_only_retire() returns trigger language plpgsql as $$
begin
  if new.generation <> old.generation or new.vkey <> old.vkey or new.added_at <> old.added_at
     or old.retired_at is not null or new.retired_at is null then
    raise exception 'log_keys: a key is only ever retired: % refused', tg_op using errcode = 'insufficient_privilege';
  end if;
  if not exists (select from log_keys where retired_at is null and generation <> old.generation) then
    raise exception 'log_keys: the last key is never retired' using errcode = 'insufficient_privilege';
  end if;
  return new;
end $$;
create trigger log_keys_only_retire before update on log_keys
  for each row execute function log_keys_only_retire();
create trigger log_keys_no_delete before delete on log_keys
  for each row execute function log_append_only();
create trigger log_keys_no_truncate before truncate on log_keys
  for each statement execute function log_append_only();

-- Checkpoints that satisfied the witness policy of their time, with the cosignature lines appended. Whoever reads one
-- checks its signatures: a row alone is no proof of anything.
create table witnessed_checkpoints (
  size bigint primary key check (size > 0),
  root bytea not null check (octet_length(root) = 32),
  note text not null check (octet_length(note) <= 262144),
  witnessed_at timestamptz not null default now()
);
create trigger witnessed_checkpoints_append_only before update or delete on witnessed_checkpoints
  for each row execute function log_append_only();
create trigger witnessed_checkpoints_no_truncate before truncate on witnessed_checkpoints
  for each statement execute function log_append_only();

-- One process asks the witnesses at a time. The claim of a dead one runs out.
create table witness_claim (
  only_one boolean primary key default true check (only_one),
  claimed_by text,
  claimed_until timestamptz
);
insert into witness_claim default values;
