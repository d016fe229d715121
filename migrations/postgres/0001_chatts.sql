-- The conversations. One statement, so that one call applies it and no one sees half of it; it can
-- be applied again and again, by many at once, and with `psql -f`.
--
-- A table made by an older server (name, message, id, time, appid) keeps its rows. What is added
-- has defaults, so that such a server can go on using it.
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    CREATE TABLE IF NOT EXISTS chatts (
        name    text         NOT NULL,               -- the role
        message text         NOT NULL,
        id      uuid         PRIMARY KEY,            -- chosen before the first try to insert the row
        time    timestamptz  NOT NULL DEFAULT now(),
        appid   varchar(155) NOT NULL                -- the conversation
    );

    -- All rows of a turn carry its id and its start; old rows, which have neither, count by `time`.
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS turn_id    uuid;
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS turn_start timestamptz;
    -- The order of the rows within a turn. Asked for by hand: before PostgreSQL 13, `IF NOT EXISTS`
    -- adds another sequence to an identity column that exists, and the table refuses every row.
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'chatts'::regclass AND attname = 'seq' AND NOT attisdropped
    ) THEN
        ALTER TABLE chatts ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY;
    END IF;
    -- 'partial' marks a reply that broke off.
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS status     text NOT NULL DEFAULT 'complete';

    -- Writes are made again when their answer was lost: a row's id is what makes that safe. An old
    -- table may hold an id twice, so where it has no such index, only new rows are held to it.
    IF NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
        WHERE indrelid = 'chatts'::regclass AND indisunique AND indpred IS NULL
          AND indnkeyatts = 1 AND indkey[0] = attnum
    ) THEN
        CREATE UNIQUE INDEX IF NOT EXISTS chatts_row ON chatts (id) WHERE turn_id IS NOT NULL;
    END IF;

    CREATE INDEX IF NOT EXISTS chatts_conversation
        ON chatts (appid, coalesce(turn_start, time), turn_id, seq);
END
$$;
