-- Ends an attempt, and stores what it came to.
-- $1 owner, $2 appid, $3 turn_id, $4 attempt, $5 state, $6 the final line, $7 code and $8 text of the error, $9 Ollama's
-- metrics, a JSON object (these four or null), $10 whether there is a reply; of it $11 message, $12 status, $13 what was
-- generated where it differs from the message, $14 thinking, $15 calls, JSON objects with commas in between (or null)
SELECT llmchat_commit_1($1::text, $2::text, $3::uuid, $4::uuid, $5::text, $6::text, $7::text, $8::text, $9::text,
    $10::boolean, $11::text, $12::text, $13::text, $14::text, $15::text)
