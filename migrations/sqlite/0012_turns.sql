-- The turns, with the outcome that is stored of each. A turn of an older release has no row until it is asked
-- again or deleted.
CREATE TABLE IF NOT EXISTS chatts_turns (
    owner      text NOT NULL,
    appid      text NOT NULL,
    turn_id    text NOT NULL,
    started    integer,                            -- microseconds since the Unix epoch: `turn_start` of its rows;
                                                   -- null once it is deleted with them
    key        text,                               -- SHA-256 of the Idempotency-Key, in hexadecimal
    body_hash  text,                               -- of the body that came with the key
    model      text,                               -- this one and the next two ask the model again
    stream     integer,
    request    text,                               -- the other fields of the request, a JSON object
    reply_id   text,                               -- of the row in `chatts` that the reply is or will be
    attempt    text,                               -- whose outcome this is; null while there is none
    committed  text,                               -- the last attempt that ended by its own commit, which may be
                                                   -- made again
    state      text NOT NULL DEFAULT '',           -- '', 'complete', 'stopped', 'partial', 'failed', 'deleted'
    ended      integer,
    final      text,                               -- the final line as it was sent
    code       text,                               -- the error that ended it
    error      text,
    usage      text,                               -- Ollama's metrics, a JSON object
    sent_bytes integer,                            -- what the model was sent for that usage
    expires    integer,                            -- of a deleted turn: how long its key is remembered, 0 without one
    PRIMARY KEY (owner, appid, turn_id)
);
-- next
CREATE UNIQUE INDEX IF NOT EXISTS chatts_turns_key ON chatts_turns (owner, appid, key) WHERE key IS NOT NULL;
-- next
CREATE INDEX IF NOT EXISTS chatts_turns_deleted ON chatts_turns (owner, appid, expires) WHERE state = 'deleted';
-- next
-- The attempts that run. One whose lease has run out may have died, or may come back.
CREATE TABLE IF NOT EXISTS chatts_runs (
    owner      text NOT NULL,
    appid      text NOT NULL,
    turn_id    text NOT NULL,
    attempt    text NOT NULL,
    expires    integer NOT NULL,                   -- microseconds since the Unix epoch
    exclusive  integer NOT NULL DEFAULT false,     -- no other exclusive attempt may run in its conversation
    stop       integer NOT NULL DEFAULT false,     -- it is to end
    content    integer NOT NULL DEFAULT 0,         -- bytes, bytes and number of what is in `chatts_parts`
    thinking   integer NOT NULL DEFAULT 0,
    calls      integer NOT NULL DEFAULT 0,
    settled    integer NOT NULL DEFAULT false,     -- since its lease ran out all of it was taken into the conversation
    collapses  integer NOT NULL,                   -- its `message` has one space for each run of white space
    model      text,                               -- the next three where they are not the turn's
    stream     integer,
    request    text,
    sent_bytes integer,
    PRIMARY KEY (owner, appid, turn_id)
) WITHOUT ROWID;
-- next
CREATE UNIQUE INDEX IF NOT EXISTS chatts_runs_exclusive ON chatts_runs (owner, appid) WHERE exclusive;
-- next
-- What attempts generated so far; a row a checkpoint, gone when the attempt ends.
CREATE TABLE IF NOT EXISTS chatts_parts (
    owner         text NOT NULL,
    appid         text NOT NULL,
    turn_id       text NOT NULL,
    attempt       text NOT NULL,
    from_content  integer NOT NULL,                -- bytes, bytes and number of what stands before it
    from_thinking integer NOT NULL,
    from_calls    integer NOT NULL,
    content       text,                            -- null where there is none
    thinking      text,
    calls         text,                            -- JSON objects with commas in between
    PRIMARY KEY (owner, appid, turn_id, attempt, from_content, from_thinking, from_calls)
) WITHOUT ROWID;
-- next
-- When an owner's attempts of the last minute began, where the operator limits their number.
CREATE TABLE IF NOT EXISTS chatts_attempts (
    owner  text NOT NULL,
    number integer NOT NULL,                       -- one more than that of the attempt before
    at     integer NOT NULL,                       -- microseconds since the Unix epoch
    PRIMARY KEY (owner, number)
) WITHOUT ROWID;
-- next
-- The rows of the conversations; they are in order by (at, turn, line).
CREATE VIEW IF NOT EXISTS chatts_lines_1 AS
SELECT owner, appid,
    coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000, -9223372036854775808) AS at,
    coalesce(turn_id, '') AS turn,
    rowid AS line,
    id, turn_id, name, message, time, status, raw, thinking, calls
FROM chatts INDEXED BY chatts_context;
-- next
-- The turns as they stand, each with its run.
CREATE VIEW IF NOT EXISTS chatts_standing_1 AS
SELECT t.*,
    r.attempt AS run,                              -- null where none is there
    r.expires > CAST(unixepoch('subsec') * 1000000 AS integer) AS is_running,
    r.stop, r.content, r.thinking, r.calls, r.settled, r.collapses,
    ifnull(r.model, t.model) AS asked_model,
    ifnull(r.stream, t.stream) AS asked_stream,
    ifnull(r.request, t.request) AS asked_request,
    EXISTS (
        SELECT 1 FROM chatts_lines_1 AS l
        WHERE l.owner = t.owner AND l.appid = t.appid AND l.at = +t.started AND l.id = t.reply_id
    ) AS has_reply,
    -- What becomes of a prompt that comes again with the turn's key. Null: a new attempt.
    CASE
        WHEN t.state = 'deleted' THEN 'deleted'
        WHEN r.expires > CAST(unixepoch('subsec') * 1000000 AS integer) THEN 'follow'
        WHEN r.attempt IS NULL AND (t.state IN ('complete', 'stopped')
            OR t.state = 'partial' AND t.code IN ('completion_too_long', 'turn_timeout')) THEN 'replay'
    END AS standing
FROM chatts_turns AS t LEFT JOIN chatts_runs AS r USING (owner, appid, turn_id);
