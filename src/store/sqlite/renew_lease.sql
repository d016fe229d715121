-- Holds a conversation for longer.
-- ?1 appid, ?2 turn_id, ?3 microseconds
UPDATE chatts_leases SET expires = CAST(unixepoch('subsec') * 1000000 AS integer) + ?3
WHERE appid = ?1 AND turn_id = ?2
