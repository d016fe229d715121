-- Gives a turn of an older release its row. Where a row has no `turn_id`, its own id is that of its turn.
--   reply_id  for the reply, where none stands
CREATE VIEW IF NOT EXISTS chatts_adopt_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS reply_id WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_adopt_1_insert INSTEAD OF INSERT ON chatts_adopt_1
WHEN NOT EXISTS (
    SELECT 1 FROM chatts_turns WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
)
BEGIN
    INSERT INTO chatts_turns (owner, appid, turn_id, started, reply_id, state)
    SELECT owner, appid, NEW.turn_id, at, iif(name = 'assistant', id, NEW.reply_id),
        CASE
            WHEN name = 'assistant' THEN iif(status = 'partial', 'partial', 'complete')
            WHEN turn = '' THEN 'complete'
            ELSE 'failed'
        END
    FROM chatts_lines_1
    WHERE owner = NEW.owner AND appid = NEW.appid AND (turn = NEW.turn_id OR turn = '' AND id = NEW.turn_id)
    ORDER BY at DESC, turn DESC, line DESC LIMIT 1;
END;
-- next
-- Begins a new attempt of a turn, however it stands; src/store/sqlite/again.sql calls it.
CREATE VIEW IF NOT EXISTS chatts_again_2 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS attempt, NULL AS reply_id, NULL AS model, NULL AS stream,
    NULL AS request, NULL AS sent_bytes, NULL AS lease, NULL AS exclusive, NULL AS collapses, NULL AS is_counted,
    NULL AS limited WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_again_2_insert INSTEAD OF INSERT ON chatts_again_2 BEGIN
    INSERT INTO chatts_adopt_1 (owner, appid, turn_id, reply_id)
    VALUES (NEW.owner, NEW.appid, NEW.turn_id, NEW.reply_id);
    INSERT INTO chatts_attempt_2
        (owner, appid, turn_id, attempt, model, stream, request, sent_bytes, lease, exclusive, collapses, is_counted,
            limited)
    SELECT owner, appid, turn_id, NEW.attempt, NEW.model, NEW.stream, NEW.request, NEW.sent_bytes, NEW.lease,
        NEW.exclusive, NEW.collapses, NEW.is_counted, NEW.limited
    FROM chatts_turns
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND state <> 'deleted'
        AND coalesce(NEW.model, model) IS NOT NULL AND attempt IS NOT NEW.attempt AND committed IS NOT NEW.attempt;
END;
