-- Stores what an attempt generated since the last time, and renews its lease;
-- src/store/sqlite/checkpoint.sql calls it.
--   from_content, from_thinking, from_calls  what stands before that; what is already there is not stored twice
CREATE VIEW IF NOT EXISTS chatts_checkpoint_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS attempt, NULL AS from_content, NULL AS from_thinking,
    NULL AS from_calls, NULL AS content, NULL AS thinking, NULL AS calls, NULL AS to_calls, NULL AS lease WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_checkpoint_1_insert INSTEAD OF INSERT ON chatts_checkpoint_1 BEGIN
    INSERT INTO chatts_parts
        (owner, appid, turn_id, attempt, from_content, from_thinking, from_calls, content, thinking, calls)
    SELECT owner, appid, turn_id, attempt, content, thinking, calls,
        nullif(NEW.content, ''), nullif(NEW.thinking, ''), nullif(NEW.calls, '')
    FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt
        AND (content, thinking, calls) = (NEW.from_content, NEW.from_thinking, NEW.from_calls)
        AND (NEW.content <> '' OR NEW.thinking <> '' OR NEW.calls <> '');
    UPDATE chatts_runs
    SET content = content + octet_length(ifnull(NEW.content, '')),
        thinking = thinking + octet_length(ifnull(NEW.thinking, '')),
        calls = NEW.to_calls,
        settled = false
    WHERE changes() = 1
        AND owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt;
    UPDATE chatts_runs SET expires = CAST(unixepoch('subsec') * 1000000 AS integer) + NEW.lease
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt;
END;
