-- What the model is sent before a prompt: the newest whole turns that fit. Walks back message by message, as
-- far as they do. The same as the function `llmchat_past_1` of PostgreSQL, whose file explains the rules.
-- ?1 appid, ?2 turn_id, ?3 before: only turns that began earlier count, ?4 bytes of the prompt, ?5 whether the
-- past may be cut before it, ?6 bytes in all, ?7 messages at most, ?8 bytes of the past that are returned at once
WITH RECURSIVE messages_in_order AS NOT MATERIALIZED (
    -- In the order of the index. Rows of others that hold no text are left out.
    SELECT appid, turn_id, name, message, rowid AS line,
        coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000, -9223372036854775808) AS at,
        coalesce(turn_id, '') AS turn
    FROM chatts INDEXED BY chatts_context
    WHERE owner = '' AND appid = ?1 AND typeof(name) = 'text' AND typeof(message) = 'text'
), walk (at, turn, line, role, is_old, bytes, messages, turns, is_after_cut) AS (
    SELECT * FROM (
        SELECT at, turn, line, name, turn_id IS NULL, ?4 + octet_length(message), 1, 2, false
        FROM messages_in_order
        WHERE at <= ?3 AND (at < ?3 OR turn < ?2)
        ORDER BY at DESC, turn DESC, line DESC LIMIT 1
    )
    UNION ALL
    SELECT coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000, -9223372036854775808),
        coalesce(turn_id, ''), m.rowid, name, turn_id IS NULL, bytes + octet_length(message), messages + 1,
        turns + (is_old OR coalesce(turn_id, '') <> turn),
        (is_old OR coalesce(turn_id, '') <> turn) AND role NOT IN ('assistant', 'tool')
    -- Three steps, each a search of the index: in the same turn, at the same time, earlier.
    FROM walk AS w JOIN chatts AS m ON m.rowid = coalesce(
        (SELECT line FROM messages_in_order
         WHERE at = w.at AND turn = w.turn AND line < w.line
         ORDER BY line DESC LIMIT 1),
        (SELECT line FROM messages_in_order
         WHERE at = w.at AND turn < w.turn
         ORDER BY turn DESC, line DESC LIMIT 1),
        (SELECT line FROM messages_in_order
         WHERE at < w.at
         ORDER BY at DESC, turn DESC, line DESC LIMIT 1)
    )
    WHERE bytes <= ?6 AND messages <= ?7
), walked (newest, messages, is_cut) AS (
    SELECT max(at), max(messages), ifnull(max(bytes) > ?6 OR max(messages) > ?7, false) FROM walk
), first AS (
    SELECT * FROM walk
    WHERE messages = (SELECT iif(is_cut, (SELECT max(messages) - 1 FROM walk WHERE is_after_cut), messages) FROM walked)
)
SELECT max(CAST(unixepoch('subsec') * 1000000 AS integer), ifnull(newest + 1, 0)),
    ifnull(first.turns, 1),
    ifnull(first.bytes, iif(?5 OR NOT is_cut, ?4, NULL)),
    is_cut,
    CASE WHEN first.bytes - ?4 <= ?8 THEN (
        SELECT group_concat(json, ',')
        FROM (
            SELECT json_object('role', name, 'content', message) AS json
            FROM messages_in_order
            WHERE at >= first.at AND (at > first.at OR turn > first.turn OR turn = first.turn AND line >= first.line)
                AND at <= ?3 AND (at < ?3 OR turn < ?2)
            ORDER BY at, turn, line
        )
    ) END
FROM walked LEFT JOIN first
