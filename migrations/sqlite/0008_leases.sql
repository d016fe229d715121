-- The running turns, at most one per conversation, for `on_busy = reject`. A lease that is not
-- renewed expires, so that a crashed host does not keep one for long.
CREATE TABLE IF NOT EXISTS chatts_leases (
    appid   varchar(155) PRIMARY KEY,
    turn_id text         NOT NULL,
    expires integer      NOT NULL                  -- microseconds since the Unix epoch
);
