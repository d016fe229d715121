-- A turn as it stands; no row where there is none.
-- $1 owner, $2 appid, $3 turn_id
SELECT is_stored, state, attempt, started, ended, code, error, final, usage, model, stream, request, reply_id, status,
    message, raw, thinking, calls, has_older
FROM llmchat_turn_1($1::text, $2::text, $3::uuid)
