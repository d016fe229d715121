-- Writes are made again when their answer was lost: a row's id is what makes that safe. An old
-- table may hold an id twice, so only new rows are held to it.
CREATE UNIQUE INDEX IF NOT EXISTS chatts_row ON chatts (id) WHERE turn_id IS NOT NULL;
