ALTER TABLE chatts ADD COLUMN status text NOT NULL DEFAULT 'complete';
