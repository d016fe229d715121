-- Statements that drop this server's views. SQLite alters no table that some view does not fit.
SELECT 'DROP VIEW IF EXISTS ' || name FROM sqlite_schema WHERE type = 'view' AND name GLOB 'chatts_*_[0-9]'
