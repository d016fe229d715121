-- Takes what an attempt left whose lease has run out into the conversation, where no older reply stands. It becomes the
-- outcome of the turn. The attempt itself is left alone: should it end after all, its reply replaces that.
CREATE VIEW IF NOT EXISTS chatts_settle_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_settle_1_insert INSTEAD OF INSERT ON chatts_settle_1 BEGIN
    -- `attempt` tells from now on whether the outcome is this attempt's.
    UPDATE chatts_turns
    SET attempt = r.attempt,
        state = CASE WHEN r.stop THEN 'stopped' WHEN r.content + r.thinking + r.calls > 0 THEN 'partial' ELSE 'failed' END,
        code = iif(r.stop, NULL, 'turn_orphaned'),
        ended = CAST(unixepoch('subsec') * 1000000 AS integer),
        final = NULL, error = NULL, usage = NULL,
        model = ifnull(r.model, chatts_turns.model),
        stream = ifnull(r.stream, chatts_turns.stream),
        request = ifnull(r.request, chatts_turns.request),
        sent_bytes = r.sent_bytes
    FROM chatts_runs AS r
    WHERE chatts_turns.owner = NEW.owner AND chatts_turns.appid = NEW.appid AND chatts_turns.turn_id = NEW.turn_id
        AND r.owner = NEW.owner AND r.appid = NEW.appid AND r.turn_id = NEW.turn_id
        AND (chatts_turns.attempt = r.attempt OR NOT EXISTS (
            SELECT 1 FROM chatts_lines_1 AS l
            WHERE l.owner = NEW.owner AND l.appid = NEW.appid
                AND l.at = +chatts_turns.started AND l.id = chatts_turns.reply_id
        ));
    DELETE FROM chatts WHERE rowid IN (
        SELECT l.line
        FROM chatts_standing_1 AS s JOIN chatts_lines_1 AS l
            ON l.owner = s.owner AND l.appid = s.appid AND l.at = +s.started AND l.id = s.reply_id
        WHERE s.owner = NEW.owner AND s.appid = NEW.appid AND s.turn_id = NEW.turn_id AND s.attempt = s.run
    );
    INSERT INTO chatts (owner, appid, name, message, id, time, turn_id, turn_start, status, raw, thinking, calls)
    SELECT owner, appid, 'assistant', message, reply_id, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), turn_id, started,
        iif(state = 'stopped', state, 'partial'), nullif(content, message), thinking, calls
    FROM (
        SELECT *, iif(collapses, (
            -- Unicode's white space, each character of it a space, then each two spaces one.
            WITH RECURSIVE collapsed (text, others) AS (
                SELECT content, char(9, 10, 11, 12, 13, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199,
                    8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288)
                UNION ALL
                SELECT replace(text, iif(others = '', '  ', substr(others, 1, 1)), ' '), substr(others, 2)
                FROM collapsed WHERE others <> '' OR instr(text, '  ')
            )
            SELECT text FROM collapsed WHERE others = '' AND NOT instr(text, '  ')
        ), content) AS message
        FROM (
            SELECT s.owner, s.appid, s.turn_id, s.started, s.reply_id, s.state, s.collapses,
                ifnull(group_concat(p.content, '' ORDER BY from_content), '') AS content,
                group_concat(p.thinking, '' ORDER BY from_thinking) AS thinking,
                group_concat(p.calls, ',' ORDER BY from_calls) AS calls
            FROM chatts_standing_1 AS s JOIN chatts_parts AS p
                ON p.owner = s.owner AND p.appid = s.appid AND p.turn_id = s.turn_id AND p.attempt = s.run
            WHERE s.owner = NEW.owner AND s.appid = NEW.appid AND s.turn_id = NEW.turn_id AND s.attempt = s.run
            GROUP BY s.turn_id
        )
    );
    UPDATE chatts_runs SET settled = true
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
END;
