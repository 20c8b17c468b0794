-- Where the log goes on to. The log itself is the outbox: a sink is a cursor into it, and nothing is queued here.

create table sinks (
  name text not null,
  -- Empty for a sink that all processes share; the process's id for one that each has for itself (a file on its disk).
  node text not null default '',
  kind text not null,
  -- The first entry that the receiver has not acknowledged.
  next_index bigint not null check (next_index >= 0),
  -- Where the newest acknowledged batch began: what is sent once more where an acknowledgement means little.
  before_index bigint not null check (before_index >= 0),
  claimed_by text,
  claimed_until timestamptz,
  failures integer not null default 0,
  failing_since timestamptz,
  retry_at timestamptz not null default clock_timestamp(),
  last_error text,
  delivered_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  primary key (name, node),
  check (before_index <= next_index),
  check ((claimed_by is null) = (claimed_until is null))
);

-- Entries that a receiver refused for what they are. They wait here for a person; the others go on.
create table sink_parked (
  sink text not null,
  node text not null default '',
  idx bigint not null check (idx >= 0),
  error text not null,
  parked_at timestamptz not null default clock_timestamp(),
  -- A person asked for another attempt.
  retry boolean not null default false,
  primary key (sink, node, idx),
  foreign key (sink, node) references sinks (name, node)
);
