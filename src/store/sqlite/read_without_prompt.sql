-- Reads a conversation row by row; each row carries the start of a turn after it.
-- ?1 appid
SELECT name, message, (
    SELECT max(CAST(unixepoch('subsec') * 1000000 AS integer), ifnull(max(
        coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000)
    ) + 1, 0))
    FROM chatts WHERE appid = ?1
)
FROM chatts WHERE appid = ?1
ORDER BY coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000),
    turn_id, rowid
