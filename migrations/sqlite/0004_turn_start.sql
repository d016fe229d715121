ALTER TABLE chatts ADD COLUMN turn_start integer;
