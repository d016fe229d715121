-- Who is speaking: the turns that run now, one a conversation, for `on_busy = reject`. A lease that
-- nobody renews runs out, so that a host that crashed holds none for long.
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    CREATE TABLE IF NOT EXISTS chatts_leases (
        appid   varchar(155) PRIMARY KEY,
        turn_id uuid         NOT NULL,
        expires timestamptz  NOT NULL
    );
END
$$;
