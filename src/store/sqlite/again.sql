-- Begins a new attempt of a turn, however it stands. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 attempt, ?5 reply_id, for a turn that has none, ?6 model, ?7 stream, ?8 the other
-- fields of the request, JSON (each null: the turn's), ?9 bytes that the model is sent, ?10 lease in microseconds,
-- ?11 whether no other attempt of the conversation that is exclusive may run, ?12 whether white space is
-- collapsed, should the attempt be left
--
-- Returns a JSON array: outcome, turn_id, attempt, reply_id, start.
--   started   by this attempt
--   follow    `attempt` is running
--   replay    this attempt has ended
--   busy      another exclusive attempt runs
--   no_model  none is known, and none was given
--   unknown   there is no such turn
INSERT INTO chatts_again_1
    (owner, appid, turn_id, attempt, reply_id, model, stream, request, sent_bytes, lease, exclusive, collapses)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
RETURNING ifnull((
    SELECT json_array(
        CASE
            WHEN run = ?4 THEN 'started'
            WHEN is_running THEN 'follow'
            WHEN ?4 IN (attempt, committed) THEN 'replay'
            WHEN coalesce(?6, model) IS NULL THEN 'no_model'
            ELSE 'busy'
        END, turn_id, ifnull(run, attempt), reply_id, started)
    FROM chatts_standing_1
    WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3 AND state <> 'deleted'
), '["unknown"]')
