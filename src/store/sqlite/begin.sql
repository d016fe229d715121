-- Begins a turn, or a new attempt of the turn that the key is known from. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 attempt, ?5 reply_id, ?6 key or null, ?7 body_hash or null, ?8 model, ?9 stream,
-- ?10 the other fields of the request, JSON, ?11 prompt: [[role, content, id], …], ?12 bytes that the model is sent,
-- ?13 lease in microseconds, ?14 whether no other attempt of the conversation that is exclusive may run,
-- ?15 whether white space is collapsed, should the attempt be left
--
-- Returns a JSON array: outcome, turn_id, attempt, reply_id, start. The last four are those of the turn that is
-- stored; they are lacking where the outcome is 'busy' and the turn new.
--   started  by this attempt
--   follow   `attempt` of the turn is running
--   replay   the turn has ended
--   reused   its key came with another body
--   deleted  the turn was
--   busy     another exclusive attempt runs; nothing was stored
INSERT INTO chatts_begin_1
    (owner, appid, turn_id, attempt, reply_id, key, body_hash, model, stream, request, prompt, sent_bytes, lease, exclusive,
        collapses)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
RETURNING ifnull((
    SELECT json_array(
        CASE
            WHEN standing = 'deleted' THEN 'deleted'
            WHEN body_hash IS NOT ?7 THEN 'reused'
            WHEN run = ?4 THEN 'started'
            WHEN ?4 IN (attempt, committed) THEN 'replay'
            ELSE ifnull(standing, 'busy')
        END, turn_id, ifnull(run, attempt), reply_id, started)
    FROM chatts_standing_1
    WHERE owner = ?1 AND appid = ?2
        AND turn_id = ifnull((SELECT turn_id FROM chatts_turns WHERE owner = ?1 AND appid = ?2 AND key = ?6), ?3)
), '["busy"]')
