-- Stores a reply.
-- ?1 role, ?2 content, ?3 id, ?4 appid, ?5 turn_id, ?6 turn_start, ?7 status
INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start, status)
VALUES (?1, ?2, ?3, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?4, ?5, ?6, ?7)
ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
