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
        WHEN s.is_running THEN 'running'
        WHEN s.run IS NOT NULL THEN 'orphaned'
        WHEN s.turn_id IS NULL OR s.state = 'deleted' OR s.code = 'turn_deleted' AND s.attempt = a.attempt THEN 'deleted'
        ELSE 'ended'
    END AS state,
    ifnull(s.run, s.attempt) AS attempt,
    ifnull(s.stop, false) AS stop,
    min(p.from_content) AS content_at, min(p.from_thinking) AS thinking_at, min(p.from_calls) AS calls_at,
    group_concat(p.content, '' ORDER BY p.from_content) AS content,
    group_concat(p.thinking, '' ORDER BY p.from_thinking) AS thinking,
    group_concat(p.calls, ',' ORDER BY p.from_calls) AS calls
FROM asked AS a
LEFT JOIN chatts_standing_1 AS s ON s.owner = a.owner AND s.appid = a.appid AND s.turn_id = a.turn_id
LEFT JOIN chatts_parts AS p ON p.owner = s.owner AND p.appid = s.appid AND p.turn_id = s.turn_id AND p.attempt = s.run
    AND (s.run <> a.attempt
        OR p.from_content + octet_length(p.content) > a.content
        OR p.from_thinking + octet_length(p.thinking) > a.thinking
        OR p.calls IS NOT NULL AND p.from_calls >= a.calls)
GROUP BY a.number
ORDER BY a.number
