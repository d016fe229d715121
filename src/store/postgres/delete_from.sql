-- Deletes a turn and all later ones, newest first; made again while `is_left`.
-- $1 owner, $2 appid, $3 turn_id, $4 null, then `until`, $5 rows at once
SELECT is_left, until FROM llmchat_delete_from_1($1::text, $2::text, $3::uuid, $4::bigint, $5::bigint)
