-- Takes what attempts left whose lease has run out into the conversation. May be made again.
-- ?1 owner, ?2 appid
INSERT INTO chatts_settle_1 (owner, appid, turn_id)
SELECT owner, appid, turn_id FROM chatts_runs
WHERE owner = ?1 AND appid = ?2 AND NOT settled AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer)
