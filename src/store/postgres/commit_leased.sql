-- Stores a reply and ends the turn's lease.
-- $1 role, $2 content, $3 id, $4 appid, $5 turn_id, $6 turn_start, $7 status
WITH ended AS (DELETE FROM chatts_leases WHERE appid = $4 AND turn_id = $5::uuid)
INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start, status)
VALUES ($1::text, $2::text, $3::uuid, now(), $4::text, $5::uuid, 'epoch'::timestamptz + $6::bigint * interval '1 microsecond', $7::text)
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
