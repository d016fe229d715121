-- Reads a conversation row by row; the turn's own rows carry its start.
-- ?1 appid, ?2 turn_id
SELECT name, message, CASE WHEN turn_id = ?2 THEN turn_start END
FROM chatts WHERE appid = ?1
ORDER BY coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000),
    turn_id, rowid
