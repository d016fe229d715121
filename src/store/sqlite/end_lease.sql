-- Ends the lease of a turn.
-- ?1 appid, ?2 turn_id
DELETE FROM chatts_leases WHERE appid = ?1 AND turn_id = ?2
