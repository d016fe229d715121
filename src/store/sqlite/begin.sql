-- Begins a turn.
-- ?1 appid, ?2 turn_id, ?3 prompt: [[role, content, id], …]
INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start)
SELECT value ->> 0, value ->> 1, value ->> 2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?1, ?2, (
    SELECT max(CAST(unixepoch('subsec') * 1000000 AS integer), ifnull(max(
        coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000)
    ) + 1, 0))
    FROM chatts WHERE appid = ?1
)
FROM json_each(?3) WHERE true ORDER BY key
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
RETURNING turn_start, CASE WHEN id = ?3 ->> '$[0][2]' THEN (
    SELECT group_concat(
        '{"role":' || json_quote(name) || ',"content":' || json_quote(message) || '}', ','
        ORDER BY coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000),
            turn_id, rowid
    )
    FROM chatts WHERE appid = ?1 AND turn_id IS NOT ?2 AND typeof(name) = 'text' AND typeof(message) = 'text'
) END
