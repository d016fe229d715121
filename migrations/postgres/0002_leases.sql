-- The running turns, at most one per conversation, for `on_busy = reject`. A lease that is not
-- renewed expires, so that a crashed host does not keep one for long.
DO $$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    IF to_regclass('chatts_leases') IS NULL THEN
        CREATE TABLE IF NOT EXISTS chatts_leases (
            appid   varchar(155) PRIMARY KEY,
            turn_id uuid         NOT NULL,
            expires timestamptz  NOT NULL
        );
    END IF;
END
$$;
