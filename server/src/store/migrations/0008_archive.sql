-- Where the log and the recordings are copied to, and how far. The log is the outbox: a place has a cursor and nothing else.

create table archives (
  -- As the object store calls itself: `s3://bucket/prefix`, or a folder; for a mirror with `mirror ` before it.
  place text primary key,
  -- The greatest size of which a dated checkpoint is there, with all that it covers.
  size bigint not null default 0 check (size >= 0),
  dated_at timestamptz,
  -- Full tiles and bundles of the entries below this one are there, and their chunks, except those that are owed.
  next_index bigint not null default 0 check (next_index >= 0),
  -- The greatest size of which a witnessed checkpoint is there.
  witnessed bigint not null default 0 check (witnessed >= 0),
  claimed_by text,
  claimed_until timestamptz,
  -- Since it last worked: how often it failed in a row, with what, and whether asking again alone will not help.
  failures integer not null default 0,
  failed_at timestamptz,
  retry_at timestamptz,
  last_error text,
  refused boolean not null default false
);

-- Every object that an archive is known to hold, and under which version; what is owed has no `stored_at`.
create table archive_objects (
  place text not null references archives,
  path text not null,
  version text not null default '',
  sha256 bytea not null check (octet_length(sha256) = 32),
  bytes bigint,
  locked_until timestamptz,
  stored_at timestamptz,
  checked_at timestamptz,
  -- What was wrong when it was looked at last; null: nothing.
  fault text,
  primary key (place, path)
);
create index archive_objects_owed on archive_objects (place, path) where stored_at is null;
create index archive_objects_checked on archive_objects (place, checked_at) where stored_at is not null;
create index archive_objects_faults on archive_objects (place, path) where fault is not null;
