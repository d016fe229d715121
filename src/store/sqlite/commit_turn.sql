-- Ends an attempt, and stores what it came to. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 attempt, ?5 state: 'complete', 'stopped', 'partial', 'failed', ?6 the final line
-- or null, ?7 code of the error or null, ?8 its text or null, ?9 Ollama's metrics as a JSON object or null,
-- ?10 whether there is a reply; of it ?11 message, ?12 status: 'complete', 'stopped', 'partial', ?13 what was generated
-- where it differs from the message, ?14 thinking or null, ?15 calls as JSON objects with commas in between, or null
--
-- Returns the outcome.
--   stored      it is the turn's
--   kept        an older reply stands: the turn is what it was
--   superseded  another attempt has taken the turn over
--   deleted     the turn was, or its reply
--   to_stop     nothing is stored: it broke off, but a stop had been asked for. To be made again with 'stopped'
INSERT INTO chatts_commit_1
    (owner, appid, turn_id, attempt, state, final, code, error, usage, has_reply, message, status, raw, thinking, calls)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
RETURNING ifnull((
    SELECT CASE
        WHEN committed = ?4 THEN iif(attempt = ?4, 'stored', 'kept')
        WHEN EXISTS (
            SELECT 1 FROM chatts_runs WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3 AND attempt = ?4
        ) THEN 'to_stop'
        WHEN state = 'deleted' OR code = 'turn_deleted' AND attempt = ?4 THEN 'deleted'
        ELSE 'superseded'
    END
    FROM chatts_turns WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3
), 'deleted')
