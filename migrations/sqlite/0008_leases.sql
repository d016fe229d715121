-- Who is speaking: the turns that run now, one a conversation, for `on_busy = reject`. A lease that
-- nobody renews runs out, so that a host that crashed holds none for long.
CREATE TABLE IF NOT EXISTS chatts_leases (
    appid   varchar(155) PRIMARY KEY,
    turn_id text         NOT NULL,
    expires integer      NOT NULL                  -- microseconds since the Unix epoch
);
