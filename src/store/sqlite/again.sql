-- Begins a new attempt of a turn, however it stands. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 attempt, ?5 reply_id, for a turn that has none, ?6 model, ?7 stream, ?8 the other
-- fields of the request, JSON (each null: the turn's), ?9 bytes that the model is sent, ?10 lease in microseconds,
-- ?11 whether no other attempt of the conversation that is exclusive may run, ?12 whether white space is
-- collapsed, should the attempt be left, ?13 attempts that the owner may begin in a minute, ?14 and may run; 0: any
-- number
--
-- Returns a JSON array: outcome, turn_id, attempt, reply_id, start, limited.
--   started   by this attempt
--   follow    `attempt` is running
--   replay    this attempt has ended
--   limited   the owner is at a limit; `limited` as of `begin.sql`
--   busy      another exclusive attempt runs
--   no_model  none is known, and none was given
--   unknown   there is no such turn
INSERT INTO chatts_again_2
    (owner, appid, turn_id, attempt, reply_id, model, stream, request, sent_bytes, lease, exclusive, collapses, is_counted,
        limited)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13 > 0, coalesce((
    -- The attempt that must be a minute old, ?13 before the next. A clock that was set back keeps nobody out for longer
    -- than another minute.
    SELECT max(1, (at - CAST(unixepoch('subsec') * 1000000 AS integer) + 60999999) / 1000000)
    FROM chatts_attempts
    WHERE owner = ?1 AND number = (SELECT max(number) + 1 - ?13 FROM chatts_attempts WHERE owner = ?1 AND ?13 > 0)
        AND abs(at - CAST(unixepoch('subsec') * 1000000 AS integer)) < 60000000
), (
    SELECT 0 FROM chatts_runs
    WHERE owner = ?1 AND ?14 > 0 AND expires > CAST(unixepoch('subsec') * 1000000 AS integer)
    LIMIT 1 OFFSET ?14 - 1
)))
RETURNING ifnull((
    SELECT json_array(
        CASE
            WHEN run = ?4 THEN 'started'
            WHEN is_running THEN 'follow'
            WHEN ?4 IN (attempt, committed) THEN 'replay'
            WHEN coalesce(?6, model) IS NULL THEN 'no_model'
            WHEN limited IS NOT NULL THEN 'limited'
            ELSE 'busy'
        END, turn_id, ifnull(run, attempt), reply_id, started, limited)
    FROM chatts_standing_1
    WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3 AND state <> 'deleted'
), '["unknown"]')
