-- Marks a turn as deleted, and ends its attempt. Of one with a key what refuses the key stays for 24 hours.
CREATE VIEW IF NOT EXISTS chatts_mark_deleted_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_mark_deleted_1_insert INSTEAD OF INSERT ON chatts_mark_deleted_1 BEGIN
    DELETE FROM chatts_runs WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
    DELETE FROM chatts_parts WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
    UPDATE chatts_turns
    SET state = 'deleted', expires = iif(key IS NULL, 0, CAST(unixepoch('subsec') * 1000000 AS integer) + 86400000000),
        body_hash = NULL, model = NULL, stream = NULL, request = NULL, reply_id = NULL, attempt = NULL, committed = NULL,
        ended = NULL, final = NULL, code = NULL, error = NULL, usage = NULL, sent_bytes = NULL
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND state <> 'deleted';
END;
-- next
-- Deletes a turn, its last rows first; src/store/sqlite/delete_turn.sql calls it.
--   most  rows at once; some are left while the turn has a row with a start
CREATE VIEW IF NOT EXISTS chatts_delete_turn_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS most WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_delete_turn_1_insert INSTEAD OF INSERT ON chatts_delete_turn_1 BEGIN
    INSERT INTO chatts_adopt_1 (owner, appid, turn_id, reply_id) VALUES (NEW.owner, NEW.appid, NEW.turn_id, NULL);
    INSERT INTO chatts_mark_deleted_1 (owner, appid, turn_id) VALUES (NEW.owner, NEW.appid, NEW.turn_id);
    DELETE FROM chatts WHERE rowid IN (
        SELECT l.line
        FROM chatts_turns AS t JOIN chatts_lines_1 AS l ON l.owner = t.owner AND l.appid = t.appid AND l.at = +t.started
        WHERE t.owner = NEW.owner AND t.appid = NEW.appid AND t.turn_id = NEW.turn_id
            AND (l.turn = t.turn_id OR l.turn = '' AND l.id = t.turn_id)
        ORDER BY l.turn DESC, l.line DESC LIMIT NEW.most
    );
    UPDATE chatts_turns SET started = NULL
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND NOT EXISTS (
        SELECT 1 FROM chatts_lines_1 AS l
        WHERE l.owner = NEW.owner AND l.appid = NEW.appid AND l.at = +started
            AND (l.turn = NEW.turn_id OR l.turn = '' AND l.id = NEW.turn_id)
    );
    DELETE FROM chatts_turns
    WHERE owner = NEW.owner AND appid = NEW.appid AND state = 'deleted' AND started IS NULL
        AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer);
END;
-- next
-- Deletes the reply of a turn; src/store/sqlite/delete_reply.sql calls it.
CREATE VIEW IF NOT EXISTS chatts_delete_reply_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_delete_reply_1_insert INSTEAD OF INSERT ON chatts_delete_reply_1 BEGIN
    INSERT INTO chatts_adopt_1 (owner, appid, turn_id, reply_id) VALUES (NEW.owner, NEW.appid, NEW.turn_id, NEW.turn_id);
    DELETE FROM chatts WHERE rowid IN (
        SELECT l.line
        FROM chatts_turns AS t JOIN chatts_lines_1 AS l
            ON l.owner = t.owner AND l.appid = t.appid AND l.at = +t.started AND l.id = t.reply_id
        WHERE t.owner = NEW.owner AND t.appid = NEW.appid AND t.turn_id = NEW.turn_id AND t.state <> 'deleted'
            AND l.name = 'assistant'
    );
    UPDATE chatts_turns
    SET state = 'failed', code = 'turn_deleted', committed = NULL, final = NULL, error = NULL, usage = NULL,
        ended = CAST(unixepoch('subsec') * 1000000 AS integer),
        attempt = ifnull((
            SELECT attempt FROM chatts_runs WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
        ), attempt)
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND state <> 'deleted';
    DELETE FROM chatts_runs WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
    DELETE FROM chatts_parts WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
END;
-- next
-- Deletes what stands between two places of a conversation, newest first; src/store/sqlite/delete_from.sql and
-- delete_conversation.sql call it.
--   first_at, first_turn, first_line  the first row that goes, or a place before it
--   last_at                           turns that began later stay
--   most                              rows at once; when none is left, the turns without rows go, too
CREATE VIEW IF NOT EXISTS chatts_delete_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS first_at, NULL AS first_turn, NULL AS first_line, NULL AS last_at,
    NULL AS most WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_delete_1_insert INSTEAD OF INSERT ON chatts_delete_1 BEGIN
    -- All attempts at once, then a piece.
    INSERT INTO chatts_mark_deleted_1 (owner, appid, turn_id)
    SELECT owner, appid, turn_id FROM chatts_runs CROSS JOIN chatts_turns USING (owner, appid, turn_id)
    WHERE owner = NEW.owner AND appid = NEW.appid
        AND (started, turn_id) >= (NEW.first_at, NEW.first_turn) AND started <= NEW.last_at;
    INSERT INTO chatts_mark_deleted_1 (owner, appid, turn_id)
    SELECT DISTINCT NEW.owner, NEW.appid, iif(turn = '', id, turn) FROM (
        SELECT turn, id FROM chatts_lines_1
        WHERE owner = NEW.owner AND appid = NEW.appid AND at BETWEEN NEW.first_at AND NEW.last_at
            AND (at, turn, line) >= (NEW.first_at, NEW.first_turn, NEW.first_line)
        ORDER BY at DESC, turn DESC, line DESC LIMIT NEW.most
    );
    DELETE FROM chatts WHERE rowid IN (
        SELECT line FROM chatts_lines_1
        WHERE owner = NEW.owner AND appid = NEW.appid AND at BETWEEN NEW.first_at AND NEW.last_at
            AND (at, turn, line) >= (NEW.first_at, NEW.first_turn, NEW.first_line)
        ORDER BY at DESC, turn DESC, line DESC LIMIT NEW.most
    );
    -- Only when no row is left; a comparison with null reads nothing.
    INSERT INTO chatts_mark_deleted_1 (owner, appid, turn_id)
    SELECT owner, appid, turn_id FROM chatts_turns
    WHERE owner = (
            SELECT NEW.owner WHERE NOT EXISTS (
                SELECT 1 FROM chatts_lines_1
                WHERE owner = NEW.owner AND appid = NEW.appid AND at BETWEEN NEW.first_at AND NEW.last_at
                    AND (at, turn, line) >= (NEW.first_at, NEW.first_turn, NEW.first_line)
            )
        ) AND appid = NEW.appid
        AND (started, turn_id) >= (NEW.first_at, NEW.first_turn) AND started <= NEW.last_at AND state <> 'deleted';
    UPDATE chatts_turns SET started = NULL
    WHERE owner = (
            SELECT NEW.owner WHERE NOT EXISTS (
                SELECT 1 FROM chatts_lines_1
                WHERE owner = NEW.owner AND appid = NEW.appid AND at BETWEEN NEW.first_at AND NEW.last_at
                    AND (at, turn, line) >= (NEW.first_at, NEW.first_turn, NEW.first_line)
            )
        ) AND appid = NEW.appid
        AND (started, turn_id) >= (NEW.first_at, NEW.first_turn) AND started <= NEW.last_at AND state = 'deleted';
    DELETE FROM chatts_turns
    WHERE owner = NEW.owner AND appid = NEW.appid AND state = 'deleted' AND started IS NULL
        AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer);
END;
