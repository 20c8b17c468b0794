-- Everything that Glasskey must remember. Credentials are not among it: a lease's password is derived, never stored.

create table installation (
  only_one boolean primary key default true check (only_one),
  install text not null check (install ~ '^[0-9a-hjkmnp-tv-z]{6}$'),
  created_at timestamptz not null default now()
);

-- Keys under the root key. Old versions stay, to open what they sealed.
create table keyring (
  version integer primary key check (version > 0),
  wrapped bytea not null,
  created_at timestamptz not null default now()
);

-- Log leaves name people only by these ids; deleting a row erases the name from the log.
create table pseudonyms (
  id text primary key,
  person text not null unique
);

-- One row per Glasskey process; a process whose seen_at is old is dead, and its sessions are over.
create table nodes (
  id text primary key,
  started_at timestamptz not null default now(),
  seen_at timestamptz not null default now()
);

create table tokens (
  hash bytea primary key,
  person text not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null
);

-- What a grant pinned: the playbook exactly as it was decided upon.
create table playbook_versions (
  hash text primary key,
  playbook text not null,
  content jsonb not null,
  first_used_at timestamptz not null default now()
);

create table grants (
  id text primary key,
  state text not null check (state in ('pending', 'approved', 'opening', 'active', 'closing', 'closed', 'reviewed',
                                       'denied', 'withdrawn', 'timed_out', 'failed')),
  playbook text not null,
  playbook_hash text not null references playbook_versions (hash),
  target text not null,
  kind text not null,
  requester text not null,
  reason text not null,
  why bytea not null,
  incident text,
  need integer not null check (need >= 0),
  duration_ms bigint not null check (duration_ms > 0),
  max_ms bigint not null check (max_ms >= duration_ms),
  idle_ms bigint check (idle_ms > 0),
  extensions_used integer not null default 0,
  -- The round of approvals that an asked-for extension waits for; null: none is asked for.
  extension_round integer check (extension_round > 0),
  decision jsonb not null,
  created_at timestamptz not null default now(),
  decide_by timestamptz not null,
  approved_at timestamptz,
  -- Fixed when the grant is approved: a late opening or a later connect never gets a fresh window.
  ends_at timestamptz,
  active_at timestamptz,
  last_busy_at timestamptz,
  closing_at timestamptz,
  closed_at timestamptz,
  end_cause text,
  ended_by text,
  end_text text,
  proof jsonb,
  check (state in ('pending', 'denied', 'withdrawn', 'timed_out') or ends_at is not null),
  check (state not in ('closed', 'reviewed') or proof is not null)
);
create index grants_open on grants (state, decide_by) where state in ('pending', 'approved', 'opening', 'active', 'closing');
create index grants_requester on grants (requester, created_at);

create table approvals (
  grant_id text not null references grants (id),
  -- 0: for the grant itself; n: for its n-th extension.
  round integer not null default 0 check (round >= 0),
  person text not null,
  verdict text not null check (verdict in ('approve', 'deny')),
  at timestamptz not null default now(),
  primary key (grant_id, round, person)
);

create table leases (
  id text primary key,
  grant_id text references grants (id), -- null: an orphan that a sweep found
  target text not null,
  kind text not null,
  state text not null check (state in ('planned', 'minting', 'live', 'closing', 'dead')),
  plan bytea not null,
  install text not null,
  ends_at timestamptz not null,
  worst_case_revoke_ms bigint not null,
  created_at timestamptz not null default now(),
  next_at timestamptz not null default now(),
  claimed_by text,
  claimed_until timestamptz,
  attempts integer not null default 0,
  last_error text,
  fenced_at timestamptz,
  revoked_at timestamptz,
  dead_at timestamptz,
  paged_at timestamptz,
  before bytea,
  evidence jsonb,
  check (state <> 'dead' or evidence is not null)
);
create index leases_due on leases (next_at) where state <> 'dead';
create index leases_grant on leases (grant_id);
-- At most one credential of a grant can be on its way or in use.
create unique index leases_one_live on leases (grant_id) where state in ('planned', 'minting', 'live');

create table sessions (
  id text primary key,
  grant_id text not null references grants (id),
  lease_id text not null references leases (id),
  node text not null,
  person text not null,
  remote_address text not null,
  client jsonb not null,
  opened_at timestamptz not null default now(),
  kill_asked_at timestamptz,
  kill_asked_by text,
  closed_at timestamptz,
  cause text,
  detail text,
  statements bigint not null default 0,
  refused bigint not null default 0,
  bytes_in bigint not null default 0,
  bytes_out bigint not null default 0,
  -- The recording's progress: the last record and chunk sealed, and whether the end of the session is in it.
  sealed_seq bigint not null default 0,
  sealed_chunks integer not null default 0,
  recording_complete boolean not null default false
);
create index sessions_open on sessions (grant_id) where closed_at is null;
create index sessions_grant on sessions (grant_id);

-- Destroying a row's key makes the recording unreadable for ever; the log still verifies.
create table session_keys (
  session text primary key references sessions (id),
  wrapped bytea,
  destroyed_at timestamptz,
  check ((wrapped is null) = (destroyed_at is not null))
);

create table chunks (
  session text not null references sessions (id),
  chunk integer not null check (chunk >= 0),
  sha256 bytea not null check (length(sha256) = 32),
  bytes bigint not null,
  first_seq bigint not null,
  last_seq bigint not null,
  sealed_at timestamptz not null default now(),
  primary key (session, chunk)
);

-- One open alarm per key; raising it again is silent.
create table alarms (
  id text primary key,
  key text not null,
  text text not null,
  raised_at timestamptz not null default now(),
  cleared_at timestamptz
);
create unique index alarms_open on alarms (key) where cleared_at is null;
