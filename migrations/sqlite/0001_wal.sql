-- Readers and the one writer do not wait for each other. The setting stays with the file.
PRAGMA journal_mode = WAL;
