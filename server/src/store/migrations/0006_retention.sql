-- Holds on recordings, and what is known of those whose key was destroyed.

create table holds (
  id text primary key,
  grant_id text not null references grants (id),
  -- Null: every session of the grant, also those that are still to come.
  session text references sessions (id),
  why bytea not null,
  held_by text not null,
  held_at timestamptz not null default now(),
  released_by text,
  released_at timestamptz,
  check ((released_by is null) = (released_at is null))
);
create index holds_grant on holds (grant_id);

create table erasures (
  session text primary key references sessions (id),
  cause text not null check (cause in ('retention', 'person')),
  erased_by text,
  why bytea,
  erased_at timestamptz not null default now(),
  -- When the table of keys was written anew without it; null: the store's file may still hold the wrapped key's bytes.
  scrubbed_at timestamptz,
  check ((cause = 'person') = (erased_by is not null)),
  check ((why is null) = (erased_by is null))
);
create index erasures_unscrubbed on erasures (erased_at) where scrubbed_at is null;

create index session_keys_kept on session_keys (session) where wrapped is not null;

-- Whatever a session calls first in its search path, these call PostgreSQL's own.
alter function log_append_only() set search_path = pg_catalog;
alter function log_tiles_only_grow() set search_path = pg_catalog;
alter function log_head_only_grows() set search_path = pg_catalog;
