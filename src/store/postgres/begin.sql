-- Begins a turn: stores its prompt, and returns its start and what precedes it.
-- $1 appid, $2 turn_id, $3 roles, $4 contents, $5 ids, $6 bytes of the prompt, $7 whether the past may be cut
-- before it, $8 bytes in all, $9 messages at most, $10 bytes of the past that are returned at once
SELECT start, turns, bytes, older, past
FROM llmchat_begin_1('', $1::text, $2::uuid, $3::text[], $4::text[], $5::text[], $6::bigint, $7::boolean,
    $8::bigint, $9::bigint, $10::bigint)
