-- The order of a conversation; old rows, which have no turn, are ordered by their time, and first where they
-- have none. The index `chatts_conversation` of the release before stays where it is, since that release may
-- still run.
CREATE INDEX IF NOT EXISTS chatts_context ON chatts (
    owner,
    appid,
    coalesce(turn_start, CAST((julianday(time) - 2440587.5) * 86400000 AS integer) * 1000, -9223372036854775808),
    coalesce(turn_id, '')
);
