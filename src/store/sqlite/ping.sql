-- Reads the file's first page: whether there is a database.
SELECT count(*) FROM sqlite_master
