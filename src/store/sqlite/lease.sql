-- Takes the lease on a conversation; a row comes back if the turn has it.
-- ?1 appid, ?2 turn_id, ?3 microseconds
INSERT INTO chatts_leases AS held (appid, turn_id, expires)
VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000000 AS integer) + ?3)
ON CONFLICT (appid) DO UPDATE SET turn_id = excluded.turn_id, expires = excluded.expires
WHERE held.expires < CAST(unixepoch('subsec') * 1000000 AS integer) OR held.turn_id = excluded.turn_id
RETURNING 1
