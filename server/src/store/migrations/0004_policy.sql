-- Which policy is in force, what evidence a grant had, who is told, and the look back afterwards.

-- Every bundle that was ever in force or refused by content; `files` is what every process serves from, so that a restart
-- works without git, and processes with different folders still decide alike.
create table bundles (
  hash text primary key check (hash ~ '^[0-9a-f]{64}$'),
  files bytea not null check (octet_length(files) <= 67108864),
  created_at timestamptz not null default now()
);

-- One row per change of what is in force, the newest generation is. `plan` tells who gained and who lost.
create table bundle_generations (
  generation bigint primary key check (generation > 0),
  hash text not null references bundles (hash),
  source text not null,
  commit_id text,
  author text,
  signer text,
  plan jsonb,
  node text not null,
  at timestamptz not null default now()
);

alter table grants add column bundle text; -- the bundle's hash at the request
-- The observations that the decision stood on: fact, value, source, when observed and how old, as an array.
alter table grants add column evidence jsonb not null default '[]';
alter table grants add column quorum jsonb not null default '[]'; -- why more approvals were needed, as sentences
alter table grants add column opened_unanswered boolean not null default false;
create index grants_playbook on grants (playbook, created_at);

-- The grant's end moved, and the target's own expiry has to follow.
alter table leases add column extend_due boolean not null default false;

-- One for each use; opened when the grant opens, signed when it is closed.
create table reviews (
  grant_id text primary key references grants (id),
  playbook text not null,
  requester text not null,
  opened_at timestamptz not null default now(),
  due_at timestamptz not null,
  -- When somebody was told that it is overdue.
  overdue_at timestamptz,
  signed_at timestamptz,
  signed_by text,
  verdict text check (verdict in ('justified', 'not_justified')),
  note bytea,
  check ((signed_at is null) = (signed_by is null)),
  check ((signed_at is null) = (verdict is null)),
  check (signed_by is null or signed_by <> requester)
);
create index reviews_unsigned on reviews (playbook, due_at) where signed_at is null;

-- The outbox: written in the transaction of what it tells of, delivered at least once.
create table notices (
  id text primary key,
  grant_id text references grants (id),
  channel text not null,
  event text not null,
  round integer not null default 0,
  -- For a person's own channel: the person.
  person text,
  -- Whether its delivery counts as having called somebody, for `unanswered`.
  page boolean not null default false,
  content bytea not null,
  created_at timestamptz not null default now(),
  next_at timestamptz not null default now(),
  -- After this moment it would only confuse; null: for ever.
  expires_at timestamptz,
  claimed_by text,
  claimed_until timestamptz,
  attempts integer not null default 0,
  last_error text,
  delivered_at timestamptz,
  receipt text,
  given_up_at timestamptz,
  check (delivered_at is null or given_up_at is null)
);
create index notices_due on notices (next_at) where delivered_at is null and given_up_at is null;
create index notices_grant on notices (grant_id);

-- What a source pushed to Glasskey, until it says otherwise or the fact is too old to count.
create table evidence_facts (
  source text not null,
  fact text not null,
  value text not null check (value in ('true', 'false', 'unknown')),
  severity text,
  -- Who is on call, for a rota.
  people jsonb,
  observed_at timestamptz not null,
  expires_at timestamptz not null,
  received_at timestamptz not null default now(),
  primary key (source, fact)
);

-- Pushes that were taken, so that none is taken twice. A push is refused for its age long before its row goes.
create table evidence_pushes (
  source text not null,
  id text not null check (length(id) <= 128),
  received_at timestamptz not null default now(),
  primary key (source, id)
);
