-- Begins a turn, or another attempt of the turn that its key is known from.
-- $1 owner, $2 appid, $3 turn_id, $4 attempt, $5 reply_id, $6 key or null, $7 body_hash or null, $8 model, $9 stream,
-- $10 the other fields of the request, a JSON object, $11 roles, $12 contents, $13 ids, $14 bytes of the prompt,
-- $15 whether the past may be cut before it, $16 bytes in all, $17 messages at most, $18 bytes of the past that are
-- returned at once, $19 lease in microseconds, $20 whether no other exclusive attempt may run, $21 whether white space
-- is collapsed, $22 attempts that the owner may begin in a minute, $23 and may run; 0: any number
SELECT outcome, turn, attempt, reply_id, start, turns, bytes, older, past, prompt, retry_after
FROM llmchat_begin_2($1::text, $2::text, $3::uuid, $4::uuid, $5::uuid, $6::text, $7::text, $8::text, $9::boolean,
    $10::text, $11::text[], $12::text[], $13::text[], $14::bigint, $15::boolean, $16::bigint, $17::bigint, $18::bigint,
    $19::bigint, $20::boolean, $21::boolean, $22::bigint, $23::bigint)
