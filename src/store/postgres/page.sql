-- A page of a conversation, newest message first, and a last row with the last three columns alone.
-- $1 owner, $2 appid, $3 id of the message that it ends before, or null, $4 messages, $5 bytes of their texts
SELECT id, turn, role, content, at, status, thinking, calls, usage, is_gone, running, more
FROM llmchat_page_1($1::text, $2::text, $3::uuid, $4::bigint, $5::bigint)
