-- When a turn began whose prompt is stored.
-- ?1 id of its first message, ?2 turn_id
SELECT turn_start FROM chatts WHERE id = ?1 AND turn_id = ?2
