-- Begins an attempt of a turn, unless another one of it runs or, where it is to be exclusive, another exclusive
-- one of the conversation. Ends those whose lease has run out.
--   is_counted  whether the operator limits how many an owner begins in a minute
--   limited     what keeps the owner from beginning another one, as begin.sql says; null: nothing
CREATE VIEW IF NOT EXISTS chatts_attempt_2 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS attempt, NULL AS model, NULL AS stream, NULL AS request,
    NULL AS sent_bytes, NULL AS lease, NULL AS exclusive, NULL AS collapses, NULL AS is_counted, NULL AS limited
WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_attempt_2_insert INSTEAD OF INSERT ON chatts_attempt_2
WHEN NOT EXISTS (
    SELECT 1 FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND attempt <> NEW.attempt
        AND (turn_id = NEW.turn_id OR NEW.exclusive AND exclusive)
        AND expires > CAST(unixepoch('subsec') * 1000000 AS integer)
) AND (NEW.limited IS NULL OR EXISTS (
    -- An earlier try has begun it, its answer lost.
    SELECT 1 FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt
))
BEGIN
    INSERT INTO chatts_attempts (owner, number, at)
    SELECT NEW.owner, ifnull((SELECT max(number) FROM chatts_attempts WHERE owner = NEW.owner), 0) + 1,
        CAST(unixepoch('subsec') * 1000000 AS integer)
    WHERE NEW.is_counted AND NOT EXISTS (
        SELECT 1 FROM chatts_runs
        WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id AND attempt = NEW.attempt
    );
    -- Those that count no more.
    DELETE FROM chatts_attempts
    WHERE NEW.is_counted AND owner = NEW.owner AND number < (
        SELECT number FROM chatts_attempts
        WHERE owner = NEW.owner AND abs(at - CAST(unixepoch('subsec') * 1000000 AS integer)) < 60000000
        ORDER BY number LIMIT 1
    );
    INSERT INTO chatts_settle_1 (owner, appid, turn_id)
    SELECT owner, appid, turn_id FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND attempt <> NEW.attempt AND NOT settled
        AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer);
    DELETE FROM chatts_parts
    WHERE owner = NEW.owner AND appid = NEW.appid AND (turn_id, attempt) IN (
        SELECT turn_id, attempt FROM chatts_runs
        WHERE owner = NEW.owner AND appid = NEW.appid AND attempt <> NEW.attempt
            AND (turn_id = NEW.turn_id OR NEW.exclusive AND exclusive)
    );
    DELETE FROM chatts_runs
    WHERE owner = NEW.owner AND appid = NEW.appid AND attempt <> NEW.attempt
        AND (turn_id = NEW.turn_id OR NEW.exclusive AND exclusive);
    INSERT INTO chatts_runs (owner, appid, turn_id, attempt, expires, exclusive, collapses, model, stream, request,
        sent_bytes)
    VALUES (NEW.owner, NEW.appid, NEW.turn_id, NEW.attempt,
        CAST(unixepoch('subsec') * 1000000 AS integer) + NEW.lease, NEW.exclusive,
        NEW.collapses, NEW.model, NEW.stream, NEW.request, NEW.sent_bytes)
    ON CONFLICT (owner, appid, turn_id) DO UPDATE SET expires = excluded.expires;
END;
-- next
-- Begins a turn, or a new attempt of the turn that its key is known from; src/store/sqlite/begin.sql calls it.
CREATE VIEW IF NOT EXISTS chatts_begin_2 AS
SELECT NULL AS owner, NULL AS appid, NULL AS turn_id, NULL AS attempt, NULL AS reply_id, NULL AS key, NULL AS body_hash,
    NULL AS model, NULL AS stream, NULL AS request, NULL AS prompt, NULL AS sent_bytes, NULL AS lease, NULL AS exclusive,
    NULL AS collapses, NULL AS is_counted, NULL AS limited WHERE false;
-- next
CREATE TRIGGER IF NOT EXISTS chatts_begin_2_insert INSTEAD OF INSERT ON chatts_begin_2 BEGIN
    DELETE FROM chatts_turns
    WHERE owner = NEW.owner AND appid = NEW.appid AND state = 'deleted'
        AND expires <= CAST(unixepoch('subsec') * 1000000 AS integer) AND (started IS NULL OR key IS NOT NULL);
    -- The start of a turn is later than that of every turn before.
    INSERT INTO chatts_turns (owner, appid, turn_id, started, key, body_hash, model, stream, request, reply_id)
    SELECT NEW.owner, NEW.appid, NEW.turn_id,
        max(CAST(unixepoch('subsec') * 1000000 AS integer), ifnull((
            SELECT at + 1 FROM chatts_lines_1
            WHERE owner = NEW.owner AND appid = NEW.appid
            ORDER BY at DESC LIMIT 1
        ), 0)),
        NEW.key, NEW.body_hash, NEW.model, NEW.stream, NEW.request, NEW.reply_id
    WHERE NEW.limited IS NULL AND NOT EXISTS (
            SELECT 1 FROM chatts_turns WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id
        ) AND NOT EXISTS (
            SELECT 1 FROM chatts_turns WHERE owner = NEW.owner AND appid = NEW.appid AND key = NEW.key
        ) AND NOT (NEW.exclusive AND EXISTS (
            SELECT 1 FROM chatts_runs
            WHERE owner = NEW.owner AND appid = NEW.appid AND exclusive
                AND expires > CAST(unixepoch('subsec') * 1000000 AS integer)
        ));
    -- Only where that has inserted it.
    INSERT INTO chatts (owner, appid, name, message, id, time, turn_id, turn_start)
    SELECT NEW.owner, NEW.appid, value ->> 0, value ->> 1, value ->> 2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), NEW.turn_id,
        (SELECT started FROM chatts_turns WHERE owner = NEW.owner AND appid = NEW.appid AND turn_id = NEW.turn_id)
    FROM json_each(NEW.prompt) AS message
    WHERE changes() = 1
    ORDER BY message.key;
    -- Nobody who repeats a prompt asks what was to stop.
    INSERT INTO chatts_stop_1 (owner, appid, turn_id)
    SELECT owner, appid, turn_id FROM chatts_standing_1
    WHERE owner = NEW.owner AND appid = NEW.appid AND key = NEW.key AND stop AND NOT is_running AND run <> NEW.attempt;
    INSERT INTO chatts_attempt_2
        (owner, appid, turn_id, attempt, sent_bytes, lease, exclusive, collapses, is_counted, limited)
    SELECT owner, appid, turn_id, NEW.attempt, NEW.sent_bytes, NEW.lease, NEW.exclusive, NEW.collapses, NEW.is_counted,
        NEW.limited
    FROM chatts_standing_1
    WHERE owner = NEW.owner AND appid = NEW.appid
        AND turn_id = ifnull((
            SELECT turn_id FROM chatts_turns WHERE owner = NEW.owner AND appid = NEW.appid AND key = NEW.key
        ), NEW.turn_id)
        AND body_hash IS NEW.body_hash
        AND (run = NEW.attempt OR standing IS NULL AND attempt IS NOT NEW.attempt AND committed IS NOT NEW.attempt);
END;
