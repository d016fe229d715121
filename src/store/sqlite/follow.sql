-- What attempts generated since the last time, for those who follow them.
-- ?1 JSON: [[owner, appid, turn_id, attempt, content, thinking, calls], …]: what is known (bytes, bytes, number)
--
--   number             of the row in ?1, from 0
--   state              'running'; 'orphaned': its lease has run out; 'ended': `turn.sql` tells how; 'deleted'
--   attempt            that is there now, or whose outcome is stored; texts of another one are from its beginning
--   stop               whether it is to end
--   content_at, thinking_at, calls_at  where the texts begin, which is not after what is known
--   content, thinking, calls           the texts; null where nothing is new
WITH asked AS (
    SELECT key AS number, value ->> 0 AS owner, value ->> 1 AS appid, value ->> 2 AS turn_id, value ->> 3 AS attempt,
        value ->> 4 AS content, value ->> 5 AS thinking, value ->> 6 AS calls
    FROM json_each(?1)
)
SELECT a.number,
    CASE
        WHEN r.expires > CAST(unixepoch('subsec') * 1000000 AS integer) THEN 'running'
        WHEN r.attempt IS NOT NULL THEN 'orphaned'
        WHEN t.turn_id IS NULL OR t.state = 'deleted' OR t.code = 'turn_deleted' AND t.attempt = a.attempt THEN 'deleted'
        ELSE 'ended'
    END AS state,
    ifnull(r.attempt, t.attempt) AS attempt,
    ifnull(r.stop, false) AS stop,
    min(p.from_content) AS content_at, min(p.from_thinking) AS thinking_at, min(p.from_calls) AS calls_at,
    group_concat(p.content, '' ORDER BY p.from_content) AS content,
    group_concat(p.thinking, '' ORDER BY p.from_thinking) AS thinking,
    group_concat(p.calls, ',' ORDER BY p.from_calls) AS calls
FROM asked AS a
LEFT JOIN chatts_turns AS t ON t.owner = a.owner AND t.appid = a.appid AND t.turn_id = a.turn_id
LEFT JOIN chatts_runs AS r ON r.owner = a.owner AND r.appid = a.appid AND r.turn_id = a.turn_id
LEFT JOIN chatts_parts AS p ON p.owner = a.owner AND p.appid = a.appid AND p.turn_id = a.turn_id AND p.attempt = r.attempt
    -- From the last one on that begins at or before what is known; it may have nothing new.
    AND (p.from_content, p.from_thinking, p.from_calls) >= (
        SELECT * FROM (
            SELECT from_content, from_thinking, from_calls
            FROM chatts_parts
            WHERE owner = a.owner AND appid = a.appid AND turn_id = a.turn_id AND attempt = a.attempt
                AND from_content <= a.content AND from_thinking <= a.thinking AND from_calls <= a.calls
            ORDER BY from_content DESC, from_thinking DESC, from_calls DESC LIMIT 1
        )
        UNION ALL SELECT 0, 0, 0
        LIMIT 1
    )
    AND (r.attempt <> a.attempt
        OR p.from_content + ifnull(octet_length(p.content), 0) > a.content
        OR p.from_thinking + ifnull(octet_length(p.thinking), 0) > a.thinking
        OR p.from_calls + (p.calls IS NOT NULL) > a.calls OR p.calls IS NOT NULL AND r.calls > a.calls)
GROUP BY a.number
ORDER BY a.number
