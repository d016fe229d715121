-- Deletes a turn; made again while it returns true.
-- $1 owner, $2 appid, $3 turn_id, $4 rows at once
SELECT llmchat_delete_turn_1($1::text, $2::text, $3::uuid, $4::bigint)
