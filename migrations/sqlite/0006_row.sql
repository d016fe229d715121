-- A write is repeated when its answer was lost; the unique id makes that safe. An old table may
-- contain duplicate ids, so the index covers new rows only.
CREATE UNIQUE INDEX IF NOT EXISTS chatts_row ON chatts (id) WHERE turn_id IS NOT NULL;
