-- Stores a prompt. The start of its turn is later than that of every turn before.
-- ?1 appid, ?2 turn_id, ?3 prompt: [[role, content, id], …]
INSERT INTO chatts (owner, name, message, id, time, appid, turn_id, turn_start)
SELECT '', value ->> 0, value ->> 1, value ->> 2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?1, ?2,
    max(CAST(unixepoch('subsec') * 1000000 AS integer), ifnull((
        SELECT max(coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000, -9223372036854775808)) + 1
        FROM chatts INDEXED BY chatts_context WHERE owner = '' AND appid = ?1
    ), 0))
FROM json_each(?3) WHERE true ORDER BY key
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
RETURNING turn_start
