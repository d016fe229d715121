-- Stores what running attempts generated since the last time, and renews their leases. May be made again.
-- ?1 JSON: [[owner, appid, turn_id, attempt, from_content, from_thinking, from_calls, content, thinking, calls,
-- to_calls], …]: what stands before that (bytes, bytes, number), the texts (calls: JSON objects with commas in between),
-- and the number of calls with it; ?2 lease in microseconds
--
-- Returns for each owner, appid, turn_id and a JSON array: outcome, and what is stored now (bytes, bytes, number).
--   ok    the attempt is the turn's
--   stop  so it is, and is to end
--   gone  it is not; `commit_turn.sql` tells why
INSERT INTO chatts_checkpoint_1
    (owner, appid, turn_id, attempt, from_content, from_thinking, from_calls, content, thinking, calls, to_calls, lease)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8,
    value ->> 9, value ->> 10, ?2
FROM json_each(?1)
RETURNING owner, appid, turn_id, ifnull((
    SELECT json_array(iif(r.stop, 'stop', 'ok'), r.content, r.thinking, r.calls) FROM chatts_runs AS r
    WHERE r.owner = chatts_checkpoint_1.owner AND r.appid = chatts_checkpoint_1.appid
        AND r.turn_id = chatts_checkpoint_1.turn_id AND r.attempt = chatts_checkpoint_1.attempt
), '["gone"]')
