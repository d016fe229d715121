-- What the model is sent of a conversation: the newest whole turns that fit into a number of bytes.
--
-- On a large table build the index first, with nothing stopped meanwhile:
--     ALTER TABLE chatts ADD COLUMN IF NOT EXISTS owner text NOT NULL DEFAULT '';
--     CREATE INDEX CONCURRENTLY IF NOT EXISTS chatts_context ON chatts (owner, appid,
--         coalesce(turn_start, time, '-infinity'),
--         coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq);
DO $migration$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- Whose conversation it is; '' where the server does not tell its clients apart.
    ALTER TABLE chatts ADD COLUMN IF NOT EXISTS owner text NOT NULL DEFAULT '';

    -- The order of a conversation. The index `chatts_conversation` of the release before stays where it
    -- is, since that release may still run.
    CREATE INDEX IF NOT EXISTS chatts_context ON chatts (owner, appid,
        coalesce(turn_start, time, '-infinity'),
        coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq);

    -- The past of a conversation that fits, with the prompt, into `budget` bytes and `messages_max`
    -- messages. It is cut before a turn (a row of an older server is a turn of its own) that begins with
    -- neither a reply nor a tool's result. Of what follows the last such turn nothing may be left out.
    --
    --   prompt_bytes, is_cut    the prompt, and whether the past may be cut before it
    --   before                  only turns that began before this (microseconds since the Unix epoch) count;
    --                           NULL: all
    --   own                     the turn that the prompt belongs to
    --   at_once                 `past` is NULL where it has more bytes
    --
    --   newest                  when the newest turn began
    --   turns, bytes            what is sent, the prompt included; NULL if it does not fit
    --   older                   whether something was left out
    --   past                    JSON objects with commas in between
    --
    -- STABLE, so that both of its statements see the table as it was when it was called.
    CREATE OR REPLACE FUNCTION llmchat_past_1(
        of_owner text, of_appid text, own uuid, before bigint, prompt_bytes bigint, is_cut boolean,
        budget bigint, messages_max bigint, at_once bigint,
        OUT newest timestamptz, OUT turns bigint, OUT bytes bigint, OUT older boolean, OUT past text
    ) LANGUAGE plpgsql STABLE AS $function$
    #variable_conflict use_column
    DECLARE
        nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
        bound CONSTANT timestamptz := coalesce(
            'epoch'::timestamptz + before * interval '1 microsecond', 'infinity');
        message record;
        later record;
        total bigint := prompt_bytes;
        total_turns bigint := 1;
        messages bigint := 0;
        from_at timestamptz;
        from_turn uuid;
        from_seq bigint;
    BEGIN
        -- By the index alone, whatever the statistics say of an average conversation: sorting reads
        -- all of it.
        PERFORM set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true);
        older := false;
        turns := 1;
        bytes := CASE WHEN is_cut THEN prompt_bytes END;
        FOR message IN
            SELECT coalesce(turn_start, time, '-infinity') AS at, turn_id, seq, name, octet_length(message) AS size
            FROM chatts
            WHERE owner = of_owner AND appid = of_appid
                AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, nobody)) < (bound, own)
                AND turn_id IS DISTINCT FROM own AND name IS NOT NULL AND message IS NOT NULL
            ORDER BY coalesce(turn_start, time, '-infinity') DESC, coalesce(turn_id, nobody) DESC, seq DESC
        LOOP
            IF messages = 0 THEN
                newest := message.at;
                total_turns := 2;
            ELSIF message.turn_id IS NULL OR message.turn_id IS DISTINCT FROM later.turn_id THEN
                IF later.name NOT IN ('assistant', 'tool') THEN
                    from_at := later.at; from_turn := later.turn_id; from_seq := later.seq;
                    turns := total_turns; bytes := total;
                END IF;
                total_turns := total_turns + 1;
            END IF;
            messages := messages + 1;
            total := total + message.size;
            IF total > budget OR messages > messages_max THEN
                older := true;
                EXIT;
            END IF;
            later := message;
        END LOOP;
        IF NOT older THEN
            turns := total_turns;
            bytes := total;
            IF messages > 0 THEN
                from_at := later.at; from_turn := later.turn_id; from_seq := later.seq;
            END IF;
        END IF;
        IF from_at IS NULL OR bytes - prompt_bytes > at_once THEN
            RETURN;
        END IF;
        SELECT string_agg(json, ',') INTO past
        FROM (
            SELECT '{"role":' || to_json(name) || ',"content":' || to_json(message) || '}' AS json
            FROM chatts
            WHERE owner = of_owner AND appid = of_appid
                AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, nobody), seq)
                    >= (from_at, coalesce(from_turn, nobody), from_seq)
                AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, nobody)) < (bound, own)
                AND turn_id IS DISTINCT FROM own AND name IS NOT NULL AND message IS NOT NULL
            ORDER BY coalesce(turn_start, time, '-infinity'), coalesce(turn_id, nobody), seq
        ) AS sent;
    END
    $function$;

    -- Begins a turn: stores its prompt, unless `bytes` is NULL since the model cannot be sent it, and
    -- returns what precedes it. `start` is later than that of every turn before.
    CREATE OR REPLACE FUNCTION llmchat_begin_1(
        of_owner text, of_appid text, own uuid, roles text[], contents text[], ids text[],
        prompt_bytes bigint, is_cut boolean, budget bigint, messages_max bigint, at_once bigint,
        OUT start bigint, OUT turns bigint, OUT bytes bigint, OUT older boolean, OUT past text
    ) LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        at timestamptz;
        stored bigint := 0;
        at_start bigint;
    BEGIN
        SELECT greatest(now(), nullif(newest, 'infinity') + interval '1 microsecond'),
            p.turns, p.bytes, p.older, p.past
        INTO at, turns, bytes, older, past
        FROM llmchat_past_1(of_owner, of_appid, own, NULL, prompt_bytes, is_cut, budget, messages_max, at_once) AS p;
        IF bytes IS NOT NULL THEN
            INSERT INTO chatts (owner, name, message, id, time, appid, turn_id, turn_start)
            SELECT of_owner, p.name, p.message, p.id::uuid, now(), of_appid, own, at
            FROM unnest(roles, contents, ids) WITH ORDINALITY AS p (name, message, id, position)
            ORDER BY p.position
            ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING;
            GET DIAGNOSTICS stored = ROW_COUNT;
        END IF;
        start := (extract(epoch FROM at) * 1000000)::bigint;
        IF stored < cardinality(ids) THEN
            -- An earlier try may have stored it, its answer lost: what began since is not its past.
            SELECT (extract(epoch FROM turn_start) * 1000000)::bigint INTO at_start
            FROM chatts WHERE id = ids[1]::uuid AND turn_id = own;
            IF FOUND THEN
                start := at_start;
                SELECT p.turns, p.bytes, p.older, p.past INTO turns, bytes, older, past
                FROM llmchat_past_1(of_owner, of_appid, own, start, prompt_bytes, is_cut, budget, messages_max, at_once) AS p;
            END IF;
        END IF;
    END
    $function$;
END
$migration$;
