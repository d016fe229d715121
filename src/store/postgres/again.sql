-- Begins another attempt of a turn.
-- $1 owner, $2 appid, $3 turn_id, $4 attempt, $5 reply_id, for a turn that has none, $6 model, $7 stream, $8 the other
-- fields of the request (each null: the turn's), $9 bytes in all, $10 messages at most, $11 bytes of the past that are
-- returned at once, $12 lease in microseconds, $13 whether no other exclusive attempt may run, $14 whether white space
-- is collapsed, $15 attempts that the owner may begin in a minute, $16 and may run; 0: any number
SELECT outcome, turn, attempt, reply_id, start, turns, bytes, older, past, prompt, retry_after, model, stream, request
FROM llmchat_again_1($1::text, $2::text, $3::uuid, $4::uuid, $5::uuid, $6::text, $7::boolean, $8::text, $9::bigint,
    $10::bigint, $11::bigint, $12::bigint, $13::boolean, $14::boolean, $15::bigint, $16::bigint)
