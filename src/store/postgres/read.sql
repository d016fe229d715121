-- Reads a conversation row by row. The first row has no message and the start of a turn after all
-- others; the turn's own rows carry the start that they are stored with.
-- $1 appid, $2 turn_id
SELECT name, message, (extract(epoch FROM start) * 1000000)::bigint
FROM (
    SELECT NULL AS name, NULL AS message, '-infinity' AS at, NULL::uuid AS turn_id, NULL::bigint AS seq,
        greatest(now(), max(coalesce(turn_start, time)) + interval '1 microsecond') AS start
    FROM chatts WHERE appid = $1
    UNION ALL
    SELECT name, message, coalesce(turn_start, time), turn_id, seq,
        CASE WHEN turn_id = $2::uuid THEN turn_start END
    FROM chatts WHERE appid = $1
) AS conversation
ORDER BY at, turn_id, seq
