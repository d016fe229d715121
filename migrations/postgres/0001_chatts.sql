-- The conversations. One statement, so that one call applies it atomically. It is idempotent, safe
-- to run concurrently, and can be applied with `psql -f`.
--
-- A table made by an older server (name, message, id, time, appid) keeps its rows. The new columns
-- are nullable or have defaults, so that such a server can go on using the table.
DO $$
BEGIN
    -- Whoever waits for the table lets nobody else have it: for a moment only, and then again.
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- Only where there is none in the whole search path: `IF NOT EXISTS` looks into its first schema alone.
    IF to_regclass('chatts') IS NULL THEN
        CREATE TABLE IF NOT EXISTS chatts (
            name    text         NOT NULL,               -- the role
            message text         NOT NULL,
            id      uuid         PRIMARY KEY,            -- chosen before the first attempt to insert the row
            time    timestamptz  NOT NULL DEFAULT now(),
            appid   varchar(155) NOT NULL                -- the conversation
        );
    END IF;

    -- All rows of a turn have its id and its start. Old rows have neither and are ordered by `time`.
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS turn_id    uuid;
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS turn_start timestamptz;
    -- The order of the rows within a turn. The explicit check is for PostgreSQL before 13, where
    -- `IF NOT EXISTS` adds a second sequence to an existing identity column, and every INSERT fails.
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'chatts'::regclass AND attname = 'seq' AND NOT attisdropped
    ) THEN
        ALTER TABLE chatts ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY;
    END IF;
    -- 'partial' marks an incomplete reply.
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS status     text NOT NULL DEFAULT 'complete';

    -- A write is repeated when its answer was lost; the unique id makes that safe. An old table may
    -- contain duplicate ids, so where it has no unique index, this one covers new rows only.
    IF NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
        WHERE indrelid = 'chatts'::regclass AND indisunique AND indpred IS NULL
          AND indnkeyatts = 1 AND indkey[0] = attnum
    ) THEN
        CREATE UNIQUE INDEX IF NOT EXISTS chatts_row ON chatts (id) WHERE turn_id IS NOT NULL;
    END IF;
END
$$;
