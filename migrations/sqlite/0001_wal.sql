-- Readers and the one writer do not block each other. The setting is stored in the file.
PRAGMA journal_mode = WAL;
