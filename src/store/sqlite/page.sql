-- A page of a conversation, oldest message first. Always returns a row; without messages its columns from `id` on
-- are null.
-- ?1 owner, ?2 appid, ?3 messages at most, ?4 id of the message that the page ends before, or null, ?5 bytes at most
--
--   is_gone     there is no such message
--   running     turn_id of the newest turn that runs, or null
--   more        whether older messages stand before the page
--   id, turn_id, role, content         as it was generated
--   time        microseconds since the Unix epoch, or null
--   status      'complete', 'partial', 'stopped'
--   thinking, calls, usage             or null
WITH orphans AS (
    -- What attempts left whose lease has run out, where no reply stands.
    SELECT +started AS at, turn_id, reply_id, r.attempt AS run, r.stop,
        content + thinking + calls AS bytes
    FROM chatts_runs AS r CROSS JOIN chatts_turns AS t USING (owner, appid, turn_id)
    WHERE owner = ?1 AND appid = ?2 AND r.expires <= CAST(unixepoch('subsec') * 1000000 AS integer)
        AND content + thinking + calls > 0
        AND NOT EXISTS (
            SELECT 1 FROM chatts_lines_1 AS l
            WHERE l.owner = ?1 AND l.appid = ?2 AND l.at = +started AND l.id = reply_id
        )
), before AS (
    -- A row of an older server has an id that no index has, and that may be there twice.
    SELECT 9223372036854775807 AS at, '' AS turn, 0 AS line WHERE ?4 IS NULL
    UNION ALL
    SELECT * FROM (
        SELECT at, turn_id AS turn, 9223372036854775807 AS line FROM orphans WHERE reply_id = ?4
        UNION ALL
        SELECT coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000, -9223372036854775808),
            turn_id, rowid
        FROM chatts WHERE id = ?4 AND turn_id IS NOT NULL AND owner = ?1 AND appid = ?2
        UNION ALL
        SELECT at, turn, line
        FROM (
            SELECT 1 WHERE ?4 IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM chatts WHERE id = ?4 AND turn_id IS NOT NULL AND owner = ?1 AND appid = ?2
            )
        ) CROSS JOIN chatts_lines_1
        WHERE owner = ?1 AND appid = ?2 AND turn = '' AND id = ?4
        ORDER BY at, turn, line LIMIT 1
    )
), newest AS (
    SELECT * FROM (
        SELECT at, turn, line, NULL AS run, NULL AS stop,
            octet_length(ifnull(raw, message)) + ifnull(octet_length(thinking), 0) + ifnull(octet_length(calls), 0) AS bytes
        FROM chatts_lines_1
        WHERE owner = ?1 AND appid = ?2 AND typeof(name) = 'text' AND typeof(message) = 'text'
            AND at <= (SELECT at FROM before) AND (at, turn, line) < (SELECT at, turn, line FROM before)
        ORDER BY at DESC, turn DESC, line DESC LIMIT ?3 + 1
    )
    UNION ALL
    SELECT at, turn_id, 9223372036854775807, run, stop, bytes FROM orphans
    WHERE (at, turn_id) < (SELECT at, turn FROM before)
    ORDER BY at DESC, turn DESC, line DESC LIMIT ?3 + 1
), numbered AS (
    SELECT *, row_number() OVER so_far AS number, sum(bytes) OVER so_far AS total
    FROM newest
    WINDOW so_far AS (ORDER BY at DESC, turn DESC, line DESC ROWS UNBOUNDED PRECEDING)
), page AS (
    SELECT * FROM numbered WHERE number <= ?3 AND (total <= ?5 OR number = 1)
)
SELECT NOT EXISTS (SELECT 1 FROM before) AS is_gone,
    (SELECT turn_id FROM chatts_runs JOIN chatts_turns USING (owner, appid, turn_id)
     WHERE owner = ?1 AND appid = ?2 AND chatts_runs.expires > CAST(unixepoch('subsec') * 1000000 AS integer)
     ORDER BY started DESC, turn_id DESC LIMIT 1) AS running,
    (SELECT count(*) FROM newest) > (SELECT count(*) FROM page) AS more,
    iif(run IS NULL, m.id, t.reply_id) AS id,
    iif(run IS NULL, ifnull(m.turn_id, m.id), turn) AS turn_id,
    iif(run IS NULL, m.name, 'assistant') AS role,
    CASE WHEN run IS NULL THEN ifnull(m.raw, m.message) ELSE ifnull((
        SELECT group_concat(content, '' ORDER BY from_content) FROM chatts_parts
        WHERE owner = ?1 AND appid = ?2 AND turn_id = turn AND attempt = run
    ), '') END AS content,
    iif(run IS NULL, CAST(round(unixepoch(m.time, 'subsec') * 1000) AS integer) * 1000, at) AS time,
    CASE WHEN run IS NULL THEN m.status WHEN stop THEN 'stopped' ELSE 'partial' END AS status,
    CASE WHEN run IS NULL THEN m.thinking ELSE (
        SELECT group_concat(thinking, '' ORDER BY from_thinking) FROM chatts_parts
        WHERE owner = ?1 AND appid = ?2 AND turn_id = turn AND attempt = run
    ) END AS thinking,
    CASE WHEN run IS NULL THEN m.calls ELSE (
        SELECT group_concat(calls, ',' ORDER BY from_calls) FROM chatts_parts
        WHERE owner = ?1 AND appid = ?2 AND turn_id = turn AND attempt = run
    ) END AS calls,
    iif(run IS NULL AND m.id = t.reply_id, t.usage, NULL) AS usage
FROM (SELECT 1)
LEFT JOIN page
LEFT JOIN chatts AS m ON m.rowid = iif(run IS NULL, line, NULL)
LEFT JOIN chatts_turns AS t ON t.owner = ?1 AND t.appid = ?2 AND t.turn_id = iif(turn = '', m.id, turn)
ORDER BY number DESC
