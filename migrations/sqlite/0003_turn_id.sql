-- For a table made by an older server, like the next two; elsewhere the column is there.
ALTER TABLE chatts ADD COLUMN turn_id text;
