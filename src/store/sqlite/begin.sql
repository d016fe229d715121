-- Begins a turn, or a new attempt of the turn that the key is known from. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 attempt, ?5 reply_id, ?6 key or null, ?7 body_hash or null, ?8 model, ?9 stream,
-- ?10 the other fields of the request, JSON, ?11 prompt: [[role, content, id], …], ?12 bytes that the model is sent,
-- ?13 lease in microseconds, ?14 whether no other attempt of the conversation that is exclusive may run,
-- ?15 whether white space is collapsed, should the attempt be left, ?16 attempts that the owner may begin in a minute,
-- ?17 and may run; 0: any number
--
-- Returns a JSON array: outcome, turn_id, attempt, reply_id, start, limited. The four in between are those of the turn
-- that is stored; they are null where the outcome is 'limited' or 'busy' and the turn new.
--   started  by this attempt
--   follow   `attempt` of the turn is running
--   replay   the turn has ended
--   reused   its key came with another body
--   deleted  the turn was
--   limited  the owner is at a limit; nothing was stored. `limited`: seconds until an attempt may begin, or 0: as soon
--            as another one has ended
--   busy     another exclusive attempt runs; nothing was stored
INSERT INTO chatts_begin_2
    (owner, appid, turn_id, attempt, reply_id, key, body_hash, model, stream, request, prompt, sent_bytes, lease, exclusive,
        collapses, is_counted, limited)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16 > 0, coalesce((
    -- The attempt that must be a minute old, ?16 before the next. A clock that was set back keeps nobody out for longer
    -- than another minute.
    SELECT max(1, (at - CAST(unixepoch('subsec') * 1000000 AS integer) + 60999999) / 1000000)
    FROM chatts_attempts
    WHERE owner = ?1 AND number = (SELECT max(number) + 1 - ?16 FROM chatts_attempts WHERE owner = ?1 AND ?16 > 0)
        AND abs(at - CAST(unixepoch('subsec') * 1000000 AS integer)) < 60000000
), (
    SELECT 0 FROM chatts_runs
    WHERE owner = ?1 AND ?17 > 0 AND expires > CAST(unixepoch('subsec') * 1000000 AS integer)
    LIMIT 1 OFFSET ?17 - 1
)))
RETURNING ifnull((
    SELECT json_array(
        CASE
            WHEN standing = 'deleted' THEN 'deleted'
            WHEN body_hash IS NOT ?7 THEN 'reused'
            WHEN run = ?4 THEN 'started'
            WHEN ?4 IN (attempt, committed) THEN 'replay'
            ELSE coalesce(standing, iif(limited IS NULL, 'busy', 'limited'))
        END, turn_id, ifnull(run, attempt), reply_id, started, limited)
    FROM chatts_standing_1
    WHERE owner = ?1 AND appid = ?2
        AND turn_id = ifnull((SELECT turn_id FROM chatts_turns WHERE owner = ?1 AND appid = ?2 AND key = ?6), ?3)
), json_array(iif(limited IS NULL, 'busy', 'limited'), NULL, NULL, NULL, NULL, limited))
