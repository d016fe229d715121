-- Ends an attempt; src/store/sqlite/commit_turn.sql calls it.
CREATE VIEW IF NOT EXISTS chatts_commit_1 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS attempt, NULL AS state, NULL AS final, NULL AS code,
    NULL AS error, NULL AS usage, NULL AS has_reply, NULL AS message, NULL AS status, NULL AS raw, NULL AS thinking,
    NULL AS calls WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_commit_1_insert INSTEAD OF INSERT ON chatts_commit_1
WHEN EXISTS (
    SELECT 1 FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt
        -- What broke off, but was to stop, is to come as stopped.
        AND NOT (stop AND NEW.state IN ('partial', 'failed'))
)
BEGIN
    UPDATE chatts_turns SET committed = NEW.attempt
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
    -- What a later attempt comes to replaces an outcome that has no reply. A reply is replaced by one that is
    -- complete or was stopped, and one that broke off by another one, too.
    UPDATE chatts_turns
    SET attempt = NEW.attempt, state = NEW.state, ended = CAST(unixepoch('subsec') * 1000000 AS integer),
        final = NEW.final, code = NEW.code, error = NEW.error, usage = NEW.usage,
        model = ifnull(r.model, chatts_turns.model),
        stream = ifnull(r.stream, chatts_turns.stream),
        request = ifnull(r.request, chatts_turns.request),
        sent_bytes = r.sent_bytes
    FROM chatts_runs AS r
    WHERE chatts_turns.owner = NEW.owner AND chatts_turns.appid = NEW.appid AND chatts_turns.turn_id = NEW.turn_id
        AND r.owner = NEW.owner AND r.appid = NEW.appid AND r.turn_id = NEW.turn_id
        AND (NEW.state = 'complete'
            OR NEW.has_reply AND (NEW.state = 'stopped' OR chatts_turns.state NOT IN ('complete', 'stopped'))
            OR chatts_turns.attempt = NEW.attempt
            OR NOT EXISTS (
                SELECT 1 FROM chatts_lines_1 AS l
                WHERE l.owner = NEW.owner AND l.appid = NEW.appid
                    AND l.at = +chatts_turns.started AND l.id = chatts_turns.reply_id
            ));
    DELETE FROM chatts WHERE rowid IN (
        SELECT l.line
        FROM chatts_turns AS t JOIN chatts_lines_1 AS l
            ON l.owner = t.owner AND l.appid = t.appid AND l.at = +t.started AND l.id = t.reply_id
        WHERE t.owner = NEW.owner AND t.appid = NEW.appid AND t.turn_id = NEW.turn_id AND t.attempt = NEW.attempt
    );
    INSERT INTO chatts (owner, appid, name, message, id, time, turn_id, turn_start, status, raw, thinking, calls)
    SELECT owner, appid, 'assistant', NEW.message, reply_id, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), turn_id, started,
        NEW.status, NEW.raw, NEW.thinking, NEW.calls
    FROM chatts_turns
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt AND NEW.has_reply;
    DELETE FROM chatts_parts
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt;
    DELETE FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id;
END;
