-- Deletes a turn and all that belongs to it. Made again until it returns 0.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 rows at once
INSERT INTO chatts_delete_turn_1 (owner, appid, turn_id, most) VALUES (?1, ?2, ?3, ?4)
RETURNING EXISTS (
    SELECT 1 FROM chatts_turns WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3 AND started IS NOT NULL
)
