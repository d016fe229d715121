-- Deletes the reply of a turn, and ends its attempt.
-- $1 owner, $2 appid, $3 turn_id
SELECT 1 FROM llmchat_delete_reply_1($1::text, $2::text, $3::uuid)
