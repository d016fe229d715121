-- Old rows, which have no turn, are ordered by their time.
CREATE INDEX IF NOT EXISTS chatts_conversation ON chatts (
    appid,
    coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000),
    turn_id
);
