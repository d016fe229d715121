-- Gives a turn of an older release its row, before `context.sql` looks for it. May be made again.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 reply_id, for the reply where none stands
INSERT INTO chatts_adopt_1 (owner, appid, turn_id, reply_id) VALUES (?1, ?2, ?3, ?4)
