-- What precedes a turn that has begun.
-- $1 owner, $2 appid, $3 turn_id, $4 bytes in all, $5 messages at most
SELECT past FROM llmchat_past_2($1::text, $2::text, $3::uuid, $4::bigint, $5::bigint, $4::bigint)
