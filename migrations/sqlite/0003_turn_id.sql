-- This file and the next two add columns to a table made by an older server; a new table has them.
ALTER TABLE chatts ADD COLUMN turn_id text;
