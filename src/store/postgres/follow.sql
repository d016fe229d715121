-- What attempts generated since the last time.
-- A value for each attempt: $1 owners, $2 appids, $3 turn_ids, $4 attempts, what is known: $5 bytes of content, $6 bytes
-- of thinking, $7 number of calls
SELECT number, state, attempt, stop, content_at, thinking_at, calls_at, content, thinking, calls
FROM llmchat_follow_1($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
