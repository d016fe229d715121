-- What becomes of a prompt, and what the model is sent of its conversation: the newest whole turns that fit.
-- Comes before `begin.sql` or `again.sql`, outside the lock that all writers wait for, and once more where those
-- answer with another turn. The rules are those of PostgreSQL's function `llmchat_past_1`.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 attempt, ?5 key or null, ?6 body_hash or null, ?7 bytes of the prompt, ?8 whether
-- the past may be cut before it, ?9 bytes in all, ?10 messages at most, ?11 bytes that are returned at once; of a
-- turn that is stored its own prompt counts, not ?7 and ?8
--
--   turn_id, run  the turn, which is another one where the key is known; the attempt of it that is there, or null
--   outcome       as of `begin.sql`: 'reused', 'deleted', 'follow', 'replay', with the key alone; null: to be begun
--   is_stored     whether the turn is stored: its prompt is in `past` then, too
--   unsettled     whether the conversation has attempts whose text is to be taken in first: `settle.sql`
--   turns, bytes  what is sent, the prompt included; `bytes` is null where it does not fit
--   older         whether something was left out
--   past          JSON objects with commas in between; null where there are none, or too many bytes
WITH RECURSIVE own AS (
    -- The place is that of its last row before its reply; null where the outcome is known, then nothing is read.
    SELECT turn_id, run, true AS is_stored, outcome, iif(outcome IS NULL, +started, NULL) AS at,
        iif(older_row IS NULL, turn_id, '') AS turn,
        iif(older_row IS NULL, ifnull(reply_row - 1, 9223372036854775807), older_row - (older_row IS reply_row)) AS line
    FROM (
        SELECT *,
            CASE
                WHEN standing = 'deleted' THEN standing
                WHEN ?5 IS NOT NULL AND body_hash IS NOT ?6 THEN 'reused'
                WHEN run = ?4 OR standing = 'replay' AND ?5 IS NULL THEN NULL
                ELSE standing
            END AS outcome,
            (SELECT line FROM chatts_lines_1
             WHERE owner = ?1 AND appid = ?2 AND at = +s.started AND id = s.reply_id) AS reply_row,
            (SELECT line FROM chatts_lines_1
             WHERE owner = ?1 AND appid = ?2 AND at = +s.started AND turn = '' AND id = s.turn_id) AS older_row
        FROM chatts_standing_1 AS s
        WHERE owner = ?1 AND appid = ?2
            AND (state <> 'deleted' OR expires > CAST(unixepoch('subsec') * 1000000 AS integer))
            AND turn_id = ifnull((
                SELECT turn_id FROM chatts_turns
                WHERE owner = ?1 AND appid = ?2 AND key = ?5
                    AND (state <> 'deleted' OR expires > CAST(unixepoch('subsec') * 1000000 AS integer))
            ), ?3)
        LIMIT 1
    )
    UNION ALL
    SELECT ?3, NULL, false, NULL, 9223372036854775807, ?3, 0
    LIMIT 1
), messages_in_order AS NOT MATERIALIZED (
    -- Rows of others that hold no text are left out, and those that are for people alone.
    SELECT * FROM chatts_lines_1
    WHERE owner = ?1 AND appid = ?2 AND typeof(name) = 'text' AND typeof(message) = 'text'
        AND (thinking IS NULL OR calls IS NOT NULL OR octet_length(message) > 0)
), walk (at, turn, line, role, is_old, bytes, messages, turns, is_after_cut) AS (
    SELECT m.at, m.turn, m.line, name, m.turn_id IS NULL, iif(is_stored, 0, ?7) + octet_length(message), 1,
        iif(iif(m.turn = '', id, m.turn) = own.turn_id, 1, 2), false
    FROM (
        SELECT * FROM messages_in_order
        WHERE at <= (SELECT at FROM own) AND (at, turn, line) <= (SELECT at, turn, line FROM own)
        ORDER BY at DESC, turn DESC, line DESC LIMIT 1
    ) AS m CROSS JOIN own
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
    WHERE bytes <= ?9 AND messages <= ?10
), walked (messages, older) AS (
    SELECT max(messages), ifnull(max(bytes) > ?9 OR max(messages) > ?10, false) FROM walk
), first AS (
    SELECT * FROM walk
    WHERE messages = (SELECT iif(older, (SELECT max(messages) - 1 FROM walk WHERE is_after_cut), messages) FROM walked)
)
SELECT own.turn_id, run, outcome, is_stored,
    EXISTS (
        SELECT 1 FROM chatts_runs
        WHERE owner = ?1 AND appid = ?2 AND attempt <> ?4 AND NOT settled
            AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer)
    ) AS unsettled,
    ifnull(first.turns, 1) AS turns,
    ifnull(first.bytes, CASE
        WHEN is_stored THEN iif(older, NULL, 0)
        WHEN ?8 OR NOT older THEN ?7
    END) AS bytes,
    older,
    CASE WHEN first.bytes - iif(is_stored, 0, ?7) <= ?11 THEN (
        SELECT group_concat(json, ',')
        FROM (
            SELECT json_object('role', name, 'content', message) AS json
            FROM messages_in_order AS m
            WHERE m.at >= first.at
                AND (m.at > first.at OR m.turn > first.turn OR m.turn = first.turn AND m.line >= first.line)
                AND m.at <= own.at AND (m.at < own.at OR m.turn < own.turn OR m.turn = own.turn AND m.line <= own.line)
            ORDER BY m.at, m.turn, m.line
        )
    ) END AS past
FROM own JOIN walked LEFT JOIN first
