-- Takes the lease on a conversation; no row is affected if another turn has it.
-- $1 appid, $2 turn_id, $3 microseconds
INSERT INTO chatts_leases AS held (appid, turn_id, expires)
VALUES ($1, $2::uuid, now() + $3::bigint * interval '1 microsecond')
ON CONFLICT (appid) DO UPDATE SET turn_id = excluded.turn_id, expires = excluded.expires
WHERE held.expires < now() OR held.turn_id = excluded.turn_id
