-- The conversations; the columns are those of PostgreSQL's table. One statement a file, since Spin
-- runs one statement a call.
CREATE TABLE IF NOT EXISTS chatts (
    name       text NOT NULL,                      -- the role
    message    text NOT NULL,
    id         text NOT NULL,                      -- a UUID, chosen before the first try to insert the row
    time       text NOT NULL,                      -- ISO 8601, UTC
    appid      varchar(155) NOT NULL,              -- the conversation
    turn_id    text,                               -- a UUID; all rows of a turn carry it
    turn_start integer,                            -- microseconds since the Unix epoch; likewise
    status     text NOT NULL DEFAULT 'complete'    -- 'partial' marks a reply that broke off
);
