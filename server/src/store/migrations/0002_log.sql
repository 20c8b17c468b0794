-- The audit log: what waits for an index, the entries, the Merkle tree over them, and every checkpoint ever signed.

create table log_queue (
  id bigint generated always as identity primary key,
  entry bytea not null check (octet_length(entry) between 2 and 65535),
  grant_id text
);
-- A queue is empty most of the time and churns otherwise; the usual fifth of the table would let it bloat.
alter table log_queue set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- No NOTIFY here: a transaction that notifies takes a lock of the whole cluster until it is synced, so commits would go one
-- by one (measured: 16 appenders, a third of the throughput). The sequencer looks ten times a second instead.

create table log_entries (
  idx bigint primary key check (idx >= 0),
  entry bytea not null check (octet_length(entry) between 2 and 65535),
  leaf_hash bytea not null check (octet_length(leaf_hash) = 32),
  grant_id text
);
create index log_entries_grant on log_entries (grant_id, idx) where grant_id is not null;

-- One row for each tile of 256 hashes; the rightmost of a level grows until it is full.
create table log_tiles (
  level smallint not null check (level between 0 and 7),
  idx bigint not null check (idx >= 0),
  hashes bytea not null check (octet_length(hashes) between 32 and 8192 and octet_length(hashes) % 32 = 0),
  primary key (level, idx)
);
alter table log_tiles alter column hashes set storage external; -- hashes do not compress

-- What is integrated: the sequencer moves it by compare-and-set, in the same transaction as the entries.
create table log_head (
  only_one boolean primary key default true check (only_one),
  size bigint not null check (size >= 0),
  root bytea not null check (octet_length(root) = 32)
);
insert into log_head (size, root) values (0, sha256(''::bytea));

-- The primary key is what refuses a second root at one size.
create table log_checkpoints (
  size bigint primary key check (size >= 0),
  root bytea not null check (octet_length(root) = 32),
  note text not null,
  signed_at timestamptz not null default now()
);

-- Append-only against mistakes and against anybody who is not the owner of the tables. Whoever can drop the triggers is
-- found out by verification.
create function log_append_only() returns trigger language plpgsql as $$
begin
  raise exception '% is append-only: % refused', tg_table_name, tg_op using errcode = 'insufficient_privilege';
end $$;
create trigger log_entries_append_only before update or delete on log_entries
  for each row execute function log_append_only();
create trigger log_entries_no_truncate before truncate on log_entries
  for each statement execute function log_append_only();
create trigger log_checkpoints_append_only before update or delete on log_checkpoints
  for each row execute function log_append_only();
create trigger log_checkpoints_no_truncate before truncate on log_checkpoints
  for each statement execute function log_append_only();
create trigger log_tiles_no_delete before delete on log_tiles
  for each row execute function log_append_only();
create trigger log_tiles_no_truncate before truncate on log_tiles
  for each statement execute function log_append_only();
create trigger log_head_no_delete before delete on log_head
  for each row execute function log_append_only();
create trigger log_head_no_truncate before truncate on log_head
  for each statement execute function log_append_only();

create function log_tiles_only_grow() returns trigger language plpgsql as $$
begin
  if new.level <> old.level or new.idx <> old.idx
     or substring(new.hashes from 1 for octet_length(old.hashes)) <> old.hashes then
    raise exception 'log_tiles only grows: % refused', tg_op using errcode = 'insufficient_privilege';
  end if;
  return new;
end $$;
create trigger log_tiles_only_grow before update on log_tiles
  for each row execute function log_tiles_only_grow();

create function log_head_only_grows() returns trigger language plpgsql as $$
begin
  if new.size <= old.size then
    raise exception 'log_head only grows: % refused', tg_op using errcode = 'insufficient_privilege';
  end if;
  return new;
end $$;
create trigger log_head_only_grows before update on log_head
  for each row execute function log_head_only_grows();
