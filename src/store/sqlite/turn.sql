-- A turn as it stands. Returns no row where there is none, or where it was deleted.
-- ?1 owner, ?2 appid, ?3 turn_id
--
--   is_stored         false: a turn of an older release, whose model and request are not known
--   state             'running', 'complete', 'stopped', 'partial', 'failed'
--   attempt           that is there, or else whose outcome is stored
--   started, ended    microseconds since the Unix epoch; null where it has none
--   code, error, final, usage          of that outcome
--   model, stream, request             what that attempt was asked with
--   reply_id, status                   of the reply's row, where it stands
--   message, raw, thinking, calls      what that attempt generated, so far where it is there
--   has_older         whether an attempt is there beside the reply of an older one, which stands
WITH known AS (
    SELECT * FROM chatts_standing_1 WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3
), parts AS (
    SELECT group_concat(content, '' ORDER BY from_content) AS content,
        group_concat(thinking, '' ORDER BY from_thinking) AS thinking,
        group_concat(calls, ',' ORDER BY from_calls) AS calls
    FROM chatts_parts
    WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3 AND attempt = (SELECT run FROM known)
), older_release AS (
    SELECT l.* FROM (SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM known)) CROSS JOIN chatts_lines_1 AS l
    WHERE owner = ?1 AND appid = ?2 AND (turn = ?3 OR turn = '' AND id = ?3)
        AND typeof(name) = 'text' AND typeof(message) = 'text'
    ORDER BY at DESC, turn DESC, line DESC LIMIT 1
)
SELECT true AS is_stored, CASE
        WHEN is_running THEN 'running'
        WHEN stop THEN 'stopped'
        ELSE iif(content + thinking + calls > 0, 'partial', 'failed')
    END AS state,
    run AS attempt, started, NULL AS ended, iif(is_running OR stop, NULL, 'turn_orphaned') AS code, NULL AS error, NULL AS final,
    NULL AS usage, asked_model AS model, asked_stream AS stream, asked_request AS request, reply_id, NULL AS status,
    (SELECT content FROM parts) AS message, NULL AS raw, (SELECT thinking FROM parts) AS thinking,
    (SELECT calls FROM parts) AS calls, has_reply AND attempt IS NOT run AS has_older
FROM known WHERE state <> 'deleted' AND run IS NOT NULL
UNION ALL
SELECT true, k.state, attempt, started, ended, code, error, final, usage, model, stream, request, reply_id, l.status,
    l.message, l.raw, l.thinking, l.calls, false
FROM known AS k
LEFT JOIN chatts AS l ON l.rowid = (
    SELECT line FROM chatts_lines_1 WHERE owner = ?1 AND appid = ?2 AND at = +k.started AND id = k.reply_id
)
WHERE k.state <> 'deleted' AND k.run IS NULL
UNION ALL
SELECT false,
    CASE
        WHEN name = 'assistant' THEN iif(status = 'partial', 'partial', 'complete')
        WHEN turn = '' THEN 'complete'
        ELSE 'failed'
    END,
    NULL, nullif(at, -9223372036854775808), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, iif(name = 'assistant', id, NULL),
    iif(name = 'assistant', status, NULL), iif(name = 'assistant', message, NULL), NULL, NULL, NULL, false
FROM older_release
