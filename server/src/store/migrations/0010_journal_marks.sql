-- The id of the file that a frame is in: a sequence alone is reached by an older copy of the journal too, once it was
-- started often enough. Null: not known, as before this column was there.
alter table journals
  add column opened_file text,
  add column sealed_file text;
