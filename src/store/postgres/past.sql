-- What precedes a turn.
-- $1 appid, $2 turn_id, $3 its start, $4 bytes of the prompt, $5 whether the past may be cut before it, $6 bytes
-- in all, $7 messages at most
SELECT past FROM llmchat_past_1('', $1::text, $2::uuid, $3::bigint, $4::bigint, $5::boolean, $6::bigint, $7::bigint, $6::bigint)
