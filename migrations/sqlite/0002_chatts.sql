-- The conversations; the columns are those of PostgreSQL's table. One statement per file, since Spin
-- runs one statement per call.
CREATE TABLE IF NOT EXISTS chatts (
    name       text NOT NULL,                      -- the role
    message    text NOT NULL,
    id         text NOT NULL,                      -- a UUID, chosen before the first attempt to insert the row
    time       text NOT NULL,                      -- ISO 8601, UTC
    appid      varchar(155) NOT NULL,              -- the conversation
    turn_id    text,                               -- a UUID; the same for all rows of a turn
    turn_start integer,                            -- microseconds since the Unix epoch; also the same
    status     text NOT NULL DEFAULT 'complete'    -- 'partial' marks an incomplete reply
);
