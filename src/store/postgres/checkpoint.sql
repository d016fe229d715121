-- Stores what attempts generated since the last time, and renews their leases.
-- A value for each attempt: $1 owners, $2 appids, $3 turn_ids, $4 attempts, what is believed to be stored: $5 bytes of
-- content, $6 bytes of thinking, $7 number of calls, what comes after that: $8 contents, $9 thinkings, $10 calls, and
-- $11 the number of calls with it. Then $12 lease in microseconds
SELECT number, outcome, content, thinking, calls
FROM llmchat_checkpoint_1($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint)
