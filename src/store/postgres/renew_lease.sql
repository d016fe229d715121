-- Holds a conversation for longer.
-- $1 appid, $2 turn_id, $3 microseconds
UPDATE chatts_leases SET expires = now() + $3::bigint * interval '1 microsecond'
WHERE appid = $1 AND turn_id = $2::uuid
