-- Turns that survive: what became of each, the attempts that run, and what those generated so far. The functions
-- of the next files lock or delete rows of `chatts_runs`, then of `chatts_turns`, and only then touch `chatts`, each in
-- a statement of its own, which sees what was committed while the one before waited.
DO $migration$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- What a reply has besides the text that the model is shown again.
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS raw      text;  -- as it was generated, where `message` differs
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS thinking text;
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS calls    text;  -- JSON objects with commas in between

    -- The turns, each with the outcome that is stored. No index has a column that a commit changes, and pages have room,
    -- so that it updates a row where it is. A turn of an older release gets its row when it is asked again
    -- or deleted.
    IF to_regclass('chatts_turns') IS NULL THEN
        CREATE TABLE IF NOT EXISTS chatts_turns (
            owner      text NOT NULL,
            appid      text NOT NULL,
            turn_id    uuid NOT NULL,
            started    timestamptz,            -- `turn_start` of its rows; null once it is deleted with them
            key        text,                   -- SHA-256 of the Idempotency-Key, in hexadecimal
            body_hash  text,                   -- of the body that came with the key
            model      text,                   -- this one and the next two ask the model again
            stream     boolean,
            request    text,                   -- the other fields of the request, a JSON object
            reply_id   uuid,                   -- of the row in `chatts` that the reply is or will be
            attempt    uuid,                   -- whose outcome this is; null while there is none
            committed  uuid,                   -- the last attempt that ended by its own commit, which may be repeated
            state      text NOT NULL DEFAULT '',  -- '', 'complete', 'stopped', 'partial', 'failed', 'deleted'
            ended      timestamptz,
            final      text,                   -- the final line as it was sent
            code       text,                   -- of the error that ended it
            error      text,
            usage      text,                   -- Ollama's metrics, a JSON object
            sent_bytes bigint,                 -- what the model was sent for that usage
            is_bare    boolean NOT NULL DEFAULT false,  -- it has no prompt in `chatts`
            expires    timestamptz,            -- of a deleted turn: how long its key is remembered
            PRIMARY KEY (owner, appid, turn_id)
        ) WITH (fillfactor = 80);
    END IF;
    CREATE UNIQUE INDEX IF NOT EXISTS chatts_turns_key ON chatts_turns (owner, appid, key) WHERE key IS NOT NULL;
    CREATE INDEX IF NOT EXISTS chatts_turns_deleted ON chatts_turns (owner, appid, expires) WHERE expires IS NOT NULL;
    CREATE INDEX IF NOT EXISTS chatts_turns_bare ON chatts_turns (owner, appid, started) WHERE is_bare;

    -- The attempts that run. One whose lease has run out (an orphan) may have died, or may come back. Room in the
    -- pages lets checkpoints update a row where it is.
    IF to_regclass('chatts_runs') IS NULL THEN
        CREATE TABLE IF NOT EXISTS chatts_runs (
            owner      text        NOT NULL,
            appid      text        NOT NULL,
            turn_id    uuid        NOT NULL,
            attempt    uuid        NOT NULL,
            expires    timestamptz NOT NULL,
            exclusive  boolean     NOT NULL,                -- no other exclusive one may run in its conversation
            stop       boolean     NOT NULL DEFAULT false,  -- it is to end
            content    bigint      NOT NULL DEFAULT 0,      -- bytes, bytes and number of what is in `chatts_parts`
            thinking   bigint      NOT NULL DEFAULT 0,
            calls      bigint      NOT NULL DEFAULT 0,
            settled    boolean     NOT NULL DEFAULT false,  -- an orphan of which all was taken into `chatts`
            collapses  boolean     NOT NULL,                -- its `message` has one space for each run of white space
            model      text,                                -- the next three where they are not the turn's
            stream     boolean,
            request    text,
            sent_bytes bigint,
            PRIMARY KEY (owner, appid, turn_id)
        ) WITH (fillfactor = 50);
    END IF;
    CREATE UNIQUE INDEX IF NOT EXISTS chatts_runs_exclusive ON chatts_runs (owner, appid) WHERE exclusive;

    -- What attempts generated so far: a row a checkpoint, since appending to one value would write all of it again.
    -- Only the attempt in `chatts_runs` has any.
    IF to_regclass('chatts_parts') IS NULL THEN
        CREATE TABLE IF NOT EXISTS chatts_parts (
            owner         text   NOT NULL,
            appid         text   NOT NULL,
            turn_id       uuid   NOT NULL,
            attempt       uuid   NOT NULL,
            from_content  bigint NOT NULL,     -- bytes, bytes and number of what stands before it
            from_thinking bigint NOT NULL,
            from_calls    bigint NOT NULL,
            content       text   NOT NULL,
            thinking      text   NOT NULL,
            calls         text   NOT NULL,     -- JSON objects with commas in between
            PRIMARY KEY (owner, appid, turn_id, from_content, from_thinking, from_calls)
        );
    END IF;

    -- When an owner's attempts of the last minute began, where the operator limits their number.
    IF to_regclass('chatts_attempts') IS NULL THEN
        CREATE TABLE IF NOT EXISTS chatts_attempts (
            owner  text        NOT NULL,
            number bigint      NOT NULL,       -- one more than that of the attempt before
            at     timestamptz NOT NULL,
            oldest bigint      NOT NULL,       -- the first one that was kept then
            PRIMARY KEY (owner, number)
        );
    END IF;
END
$migration$;
