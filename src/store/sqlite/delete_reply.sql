-- Deletes the reply of a turn, and ends the attempt that is there. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id
INSERT INTO chatts_delete_reply_1 (owner, appid, turn_id) VALUES (?1, ?2, ?3)
