-- Deletes a conversation, newest turns first; made again while `is_left`.
-- $1 owner, $2 appid, $3 null, then `until`, $4 rows at once
SELECT is_left, until FROM llmchat_delete_conversation_1($1::text, $2::text, $3::bigint, $4::bigint)
