-- Asks an attempt to end, or ends it where its lease has run out; src/store/sqlite/stop.sql calls it.
CREATE VIEW IF NOT EXISTS chatts_stop_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_stop_1_insert INSTEAD OF INSERT ON chatts_stop_1 BEGIN
    UPDATE chatts_runs SET stop = true
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
    INSERT INTO chatts_settle_1 (owner, appid, turn_id)
    SELECT owner, appid, turn_id FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
        AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer);
    DELETE FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
        AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer);
    DELETE FROM chatts_parts
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
        AND NOT EXISTS (
            SELECT 1 FROM chatts_runs WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
        );
END;
