-- Asks the attempt of a turn to end.
-- $1 owner, $2 appid, $3 turn_id
SELECT llmchat_stop_1($1::text, $2::text, $3::uuid)
