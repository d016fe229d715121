-- Asks the attempt of a turn to end; one whose lease has run out ends at once, as stopped. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id
--
-- Returns 'running' (it is to end: `checkpoint.sql` tells its host), 'ended', or 'unknown'.
INSERT INTO chatts_stop_1 (owner, appid, turn_id) VALUES (?1, ?2, ?3)
RETURNING coalesce((
    SELECT CASE WHEN run IS NOT NULL THEN 'running' WHEN state = 'deleted' THEN 'unknown' ELSE 'ended' END
    FROM chatts_standing_1 WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3
), (
    SELECT 'ended' FROM chatts_lines_1
    WHERE owner = ?1 AND appid = ?2 AND (turn = ?3 OR turn = '' AND id = ?3) LIMIT 1
), 'unknown')
