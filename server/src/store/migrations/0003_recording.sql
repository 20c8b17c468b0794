-- How far each journal is sealed. A journal that is shorter than this, or gone, is found out at start.
create table journals (
  -- The process's name for it, the same at every start.
  name text primary key,
  -- The id in the headers of its files.
  journal text not null,
  -- The last opening that was taken notice of.
  opened_sequence bigint not null default 0,
  -- The greatest frame that a committed chunk has a record of.
  sealed_sequence bigint not null default 0,
  -- All frames up to this one are in committed chunks.
  complete_sequence bigint not null default 0
);

-- Which journal holds what is not sealed yet, and the frame of the last record that is.
alter table sessions add column journal text;
alter table sessions add column journal_sequence bigint not null default 0;
create index sessions_unsealed on sessions (journal) where journal is not null and not recording_complete;
