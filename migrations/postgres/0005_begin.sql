-- Beginning a turn, or another attempt of one.
DO $migration$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- What the attempt of a turn generated so far.
    CREATE OR REPLACE FUNCTION llmchat_generated_1(
        of_owner text, of_appid text, own uuid, OUT content text, OUT thinking text, OUT calls text
    ) LANGUAGE plpgsql STABLE AS $function$
    #variable_conflict use_column
    BEGIN
        SELECT string_agg(content, ''), nullif(string_agg(thinking, ''), ''), string_agg(nullif(calls, ''), ',')
        INTO content, thinking, calls
        FROM (
            SELECT content, thinking, calls FROM chatts_parts
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own
            ORDER BY from_content, from_thinking, from_calls
        ) AS parts;
    END
    $function$;

    -- Takes the text of an orphan into the conversation, where no older reply stands. It becomes the outcome of the
    -- turn. The caller holds the lock on the orphan's row.
    --   is_ended    whether that ends the attempt; otherwise, should it commit after all, its reply replaces that
    --   is_stopped  whether its turn is `stopped` then; so it is where the attempt was to stop
    CREATE OR REPLACE FUNCTION llmchat_settle_1(
        of_owner text, of_appid text, own uuid, is_ended boolean, is_stopped boolean
    ) RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        -- Unicode's white space, in bytes for the sake of a database without an encoding.
        white_space CONSTANT text := E'(?:[ \\t-\\r]|\xC2\x85|\xC2\xA0|\xE1\x9A\x80|\xE2\x80\x80|\xE2\x80\x81|\xE2\x80\x82'
            '|\xE2\x80\x83|\xE2\x80\x84|\xE2\x80\x85|\xE2\x80\x86|\xE2\x80\x87|\xE2\x80\x88|\xE2\x80\x89|\xE2\x80\x8A'
            '|\xE2\x80\xA8|\xE2\x80\xA9|\xE2\x80\xAF|\xE2\x81\x9F|\xE3\x80\x80)+';
        run record;
        turn record;
        parts record;
        has_text boolean;
        new_message text;
        new_status text;
    BEGIN
        SELECT * INTO run FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own FOR UPDATE;
        SELECT * INTO turn FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own FOR UPDATE;
        has_text := run.content + run.thinking + run.calls > 0;
        is_stopped := is_stopped OR run.stop;
        IF turn.attempt IS NOT DISTINCT FROM run.attempt OR NOT EXISTS (
            SELECT FROM chatts
            WHERE owner = of_owner AND appid = of_appid
                AND coalesce(turn_start, time, '-infinity') = turn.started AND id = turn.reply_id
        ) THEN
            UPDATE chatts_turns
            SET attempt = run.attempt,
                state = CASE WHEN is_stopped THEN 'stopped' WHEN has_text THEN 'partial' ELSE 'failed' END,
                code = CASE WHEN NOT is_stopped THEN 'turn_orphaned' END,
                ended = clock_timestamp(), final = NULL, error = NULL, usage = NULL,
                model = coalesce(run.model, model), stream = coalesce(run.stream, stream),
                request = coalesce(run.request, request), sent_bytes = coalesce(run.sent_bytes, sent_bytes)
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
            IF has_text THEN
                SELECT * INTO parts FROM llmchat_generated_1(of_owner, of_appid, own);
                new_message := CASE WHEN run.collapses
                    THEN regexp_replace(parts.content, white_space, ' ', 'g') ELSE parts.content END;
                new_status := CASE WHEN is_stopped THEN 'stopped' ELSE 'partial' END;
                UPDATE chatts
                SET message = new_message, raw = nullif(parts.content, new_message), thinking = parts.thinking,
                    calls = parts.calls, status = new_status, time = now(), turn_start = turn.started
                WHERE owner = of_owner AND appid = of_appid
                    AND coalesce(turn_start, time, '-infinity') = turn.started AND id = turn.reply_id;
                IF NOT FOUND THEN
                    INSERT INTO chatts (owner, appid, name, message, id, time, turn_id, turn_start, status, raw,
                        thinking, calls)
                    VALUES (of_owner, of_appid, 'assistant', new_message, turn.reply_id, now(), own, turn.started,
                        new_status, nullif(parts.content, new_message), parts.thinking, parts.calls);
                END IF;
            END IF;
        END IF;
        IF is_ended THEN
            DELETE FROM chatts_parts WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
            DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        ELSE
            UPDATE chatts_runs SET settled = true WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        END IF;
    END
    $function$;

    -- Settles the orphans of the other turns of a conversation, but for those that somebody else has locked.
    CREATE OR REPLACE FUNCTION llmchat_settle_others_1(of_owner text, of_appid text, own uuid)
    RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        orphan record;
    BEGIN
        FOR orphan IN
            SELECT turn_id FROM chatts_runs
            WHERE owner = of_owner AND appid = of_appid AND turn_id <> own AND NOT settled AND expires <= clock_timestamp()
            FOR UPDATE SKIP LOCKED
        LOOP
            PERFORM llmchat_settle_1(of_owner, of_appid, orphan.turn_id, false, false);
        END LOOP;
    END
    $function$;

    -- Whether another turn of the conversation has an exclusive attempt. One that is an orphan is ended.
    CREATE OR REPLACE FUNCTION llmchat_is_busy_1(of_owner text, of_appid text, own uuid)
    RETURNS boolean LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        held record;
    BEGIN
        SELECT turn_id, expires > clock_timestamp() AS is_live INTO held FROM chatts_runs
        WHERE owner = of_owner AND appid = of_appid AND exclusive AND turn_id <> own;
        IF NOT FOUND OR held.is_live THEN
            RETURN FOUND;
        END IF;
        SELECT turn_id INTO held FROM chatts_runs
        WHERE owner = of_owner AND appid = of_appid AND turn_id = held.turn_id AND expires <= clock_timestamp() FOR UPDATE;
        IF NOT FOUND THEN
            RETURN EXISTS (
                SELECT FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND exclusive AND turn_id <> own);
        END IF;
        PERFORM llmchat_settle_1(of_owner, of_appid, held.turn_id, true, false);
        RETURN false;
    END
    $function$;

    -- What the model is sent for a turn that is stored: what precedes it (as of `llmchat_past_1`, which has the meaning
    -- of the other parameters and columns), and its own prompt.
    --   prompt  JSON objects with commas in between; NULL where there are none
    CREATE OR REPLACE FUNCTION llmchat_past_2(
        of_owner text, of_appid text, own uuid, budget bigint, messages_max bigint, at_once bigint,
        OUT start bigint, OUT turns bigint, OUT bytes bigint, OUT older boolean, OUT past text, OUT prompt text
    ) LANGUAGE plpgsql STABLE AS $function$
    #variable_conflict use_column
    DECLARE
        turn record;
        own_prompt record;
    BEGIN
        SELECT started, reply_id INTO turn FROM chatts_turns
        WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        SELECT coalesce(sum(octet_length(message)), 0) AS bytes, bool_and(turn_id IS NOT NULL) AS has_turn,
            coalesce((array_agg(name ORDER BY seq))[1] NOT IN ('assistant', 'tool'), false) AS is_cut,
            string_agg('{"role":' || to_json(name) || ',"content":' || to_json(message) || '}', ',' ORDER BY seq) AS json
        INTO own_prompt
        FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = turn.started
            AND (turn_id = own OR turn_id IS NULL AND id = own) AND id <> turn.reply_id
            AND name IS NOT NULL AND message IS NOT NULL;
        prompt := own_prompt.json;
        IF NOT isfinite(turn.started) THEN
            -- Of an older server: nothing tells what precedes a row without a time.
            SELECT 1, own_prompt.bytes, true INTO turns, bytes, older;
            RETURN;
        END IF;
        start := (extract(epoch FROM turn.started) * 1000000)::bigint;
        -- Of an older server's rows those count that have another time.
        SELECT p.turns, p.bytes, p.older, p.past INTO turns, bytes, older, past
        FROM llmchat_past_1(of_owner, of_appid,
            CASE WHEN own_prompt.has_turn OR own_prompt.json IS NULL AND own <> turn.reply_id THEN own
                ELSE '00000000-0000-0000-0000-000000000000' END,
            start, own_prompt.bytes, own_prompt.is_cut, budget, messages_max, at_once) AS p;
    END
    $function$;

    -- Makes an owner's attempts begin one after the other, so that each counts those before it. Comes before any lock of
    -- a row: whoever holds one does not wait here.
    CREATE OR REPLACE FUNCTION llmchat_queue_1(of_owner text) RETURNS void LANGUAGE plpgsql AS $function$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtext('llmchat attempts'), hashtext(of_owner));
    END
    $function$;

    -- Whether a limit keeps an owner from beginning an attempt: seconds until one may begin, 0 for as soon as another one
    -- has ended, or NULL. That none keeps it is certain only for a caller who has been through `llmchat_queue_1`.
    --   per_minute, max_running  attempts that may begin in a minute, and that may run; 0: any number
    CREATE OR REPLACE FUNCTION llmchat_limit_1(of_owner text, per_minute bigint, max_running bigint)
    RETURNS bigint LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        seconds bigint;
    BEGIN
        -- The one that must be a minute old, `per_minute` before the next. A clock that was set back keeps nobody out
        -- for longer than another minute.
        SELECT greatest(1, ceil(extract(epoch FROM at + interval '1 minute' - clock_timestamp()))) INTO seconds
        FROM chatts_attempts
        WHERE owner = of_owner
            AND number = (SELECT max(number) + 1 - per_minute FROM chatts_attempts WHERE owner = of_owner)
            AND at > clock_timestamp() - interval '1 minute' AND at < clock_timestamp() + interval '1 minute';
        IF NOT FOUND AND max_running > 0 THEN
            SELECT 0 INTO seconds FROM chatts_runs
            WHERE owner = of_owner AND expires > clock_timestamp()
            LIMIT 1 OFFSET max_running - 1;
        END IF;
        RETURN seconds;
    END
    $function$;

    -- Counts an attempt that has begun, and deletes those that count no more. They are looked for from the oldest on: the
    -- index may still have all that were deleted before.
    CREATE OR REPLACE FUNCTION llmchat_count_1(of_owner text, per_minute bigint)
    RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        newest record;
        kept bigint;
    BEGIN
        IF per_minute = 0 THEN
            RETURN;
        END IF;
        SELECT number, oldest INTO newest FROM chatts_attempts WHERE owner = of_owner ORDER BY number DESC LIMIT 1;
        SELECT number INTO kept FROM chatts_attempts
        WHERE owner = of_owner AND number >= newest.oldest
            AND at > clock_timestamp() - interval '1 minute' AND at < clock_timestamp() + interval '1 minute'
        ORDER BY number LIMIT 1;
        kept := coalesce(kept, newest.number + 1, 1);
        INSERT INTO chatts_attempts (owner, number, at, oldest)
        VALUES (of_owner, coalesce(newest.number + 1, 1), clock_timestamp(), kept);
        DELETE FROM chatts_attempts WHERE owner = of_owner AND number >= newest.oldest AND number < kept;
    END
    $function$;

    -- Begins another attempt of a turn that has a row in `chatts_turns`; parameters and columns as of `llmchat_begin_2`
    -- and `llmchat_again_1`.
    --   by_key   whether a turn that has ended well is not asked again
    --   outcome  NULL: there is no such turn
    CREATE OR REPLACE FUNCTION llmchat_attempt_1(
        of_owner text, of_appid text, own uuid, new_attempt uuid, new_model text, new_stream boolean, new_request text,
        budget bigint, messages_max bigint, at_once bigint, lease bigint, is_exclusive boolean, new_collapses boolean,
        per_minute bigint, max_running bigint, by_key boolean,
        OUT outcome text, OUT turn uuid, OUT attempt uuid, OUT reply_id uuid, OUT start bigint, OUT turns bigint,
        OUT bytes bigint, OUT older boolean, OUT past text, OUT prompt text, OUT retry_after bigint, OUT model text,
        OUT stream boolean, OUT request text
    ) LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        run record;
        known record;
    BEGIN
        turn := own;
        FOR try IN 1..10 LOOP
            SELECT * INTO run FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own FOR UPDATE;
            SELECT * INTO known FROM chatts_turns
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own FOR UPDATE;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            IF run.attempt IS NULL THEN
                -- Whoever had the turn locked may have begun one. Its commit, which has it locked, may wait for the turn.
                SELECT * INTO run FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
                IF run.expires <= clock_timestamp() THEN
                    PERFORM FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own FOR UPDATE;
                END IF;
            END IF;
            reply_id := known.reply_id;
            attempt := coalesce(run.attempt, known.attempt);
            IF known.state = 'deleted' THEN
                outcome := 'deleted';
                RETURN;
            ELSIF run.attempt = new_attempt THEN
                -- An earlier try has begun it, its answer lost.
                UPDATE chatts_runs SET expires = clock_timestamp() + lease * interval '1 microsecond'
                WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
                outcome := 'started';
            ELSIF run.expires > clock_timestamp() THEN
                outcome := 'follow';
                RETURN;
            ELSIF new_attempt IN (known.attempt, known.committed) THEN
                outcome := 'replay';
                RETURN;
            ELSE
                IF by_key AND run.stop THEN
                    -- Nobody who repeats a prompt asks what was to stop.
                    PERFORM llmchat_settle_1(of_owner, of_appid, own, true, true);
                    CONTINUE;
                END IF;
                IF by_key AND run.attempt IS NULL AND (known.state IN ('complete', 'stopped')
                    OR known.state = 'partial' AND known.code IN ('completion_too_long', 'turn_timeout')) THEN
                    outcome := 'replay';
                    RETURN;
                END IF;
                IF coalesce(new_model, known.model) IS NULL THEN
                    outcome := 'no_model';
                    RETURN;
                END IF;
                IF per_minute > 0 OR max_running > 0 THEN
                    retry_after := llmchat_limit_1(of_owner, per_minute, max_running);
                    IF retry_after IS NOT NULL THEN
                        outcome := 'limited';
                        RETURN;
                    END IF;
                END IF;
                IF is_exclusive AND llmchat_is_busy_1(of_owner, of_appid, own) THEN
                    outcome := 'busy';
                    RETURN;
                END IF;
                IF run.attempt IS NOT NULL THEN
                    PERFORM llmchat_settle_1(of_owner, of_appid, own, true, false);
                END IF;
                PERFORM llmchat_settle_others_1(of_owner, of_appid, own);
                INSERT INTO chatts_runs (owner, appid, turn_id, attempt, expires, exclusive, collapses, model, stream, request)
                VALUES (of_owner, of_appid, own, new_attempt, clock_timestamp() + lease * interval '1 microsecond',
                    is_exclusive, new_collapses, new_model, new_stream, new_request)
                ON CONFLICT DO NOTHING;
                CONTINUE WHEN NOT FOUND;
                outcome := 'started';
            END IF;
            SELECT p.start, p.turns, p.bytes, p.older, p.past, p.prompt INTO start, turns, bytes, older, past, prompt
            FROM llmchat_past_2(of_owner, of_appid, own, budget, messages_max, at_once) AS p;
            IF bytes IS NULL OR turns = 1 AND prompt IS NULL THEN
                outcome := CASE WHEN bytes IS NULL THEN 'too_large' ELSE 'empty' END;
                DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
                RETURN;
            END IF;
            UPDATE chatts_runs SET sent_bytes = bytes
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own
            RETURNING attempt, coalesce(model, known.model), coalesce(stream, known.stream),
                coalesce(request, known.request)
            INTO attempt, model, stream, request;
            IF run.attempt IS DISTINCT FROM new_attempt THEN
                PERFORM llmchat_count_1(of_owner, per_minute);
            END IF;
            RETURN;
        END LOOP;
        RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'Other attempts of the conversation began and ended meanwhile.';
    END
    $function$;

    -- Begins a turn, or another attempt of the turn that its key is known from.
    --   new_turn, new_attempt, new_reply  chosen before the first try: the turn, the attempt, the row of its reply
    --   of_key, of_body             SHA-256 of the Idempotency-Key and of the body; NULL without a key
    --   new_model, new_stream, new_request  what the model is asked with; the other fields as a JSON object
    --   roles, contents, ids        the prompt
    --   prompt_bytes, is_cut, budget, messages_max, at_once  as of `llmchat_past_1`
    --   lease                       microseconds
    --   is_exclusive                whether no other exclusive attempt of the conversation may run
    --   new_collapses               whether white space is collapsed, should the attempt be an orphan
    --   per_minute, max_running     as of `llmchat_limit_1`
    --
    --   outcome  started    by this attempt
    --            follow     `attempt` of the turn runs
    --            replay     the turn has ended
    --            reused     its key came with another body
    --            deleted    it was, less than 24 hours ago
    --            limited    the owner is at a limit; nothing is stored
    --            busy       another exclusive attempt runs; nothing is stored
    --            too_large  what may not be left out does not fit; nothing is stored, nor is where the outcome is
    --            empty      there is nothing to send
    --   turn, attempt, reply_id     of the turn that is stored
    --   start                       microseconds since the Unix epoch, later than that of every turn before
    --   turns, bytes, older, past   as of `llmchat_past_1`
    --   prompt                      of a turn that is stored: what it is, as JSON objects. NULL: as given
    --   retry_after                 where it is limited: what `llmchat_limit_1` returned
    CREATE OR REPLACE FUNCTION llmchat_begin_2(
        of_owner text, of_appid text, new_turn uuid, new_attempt uuid, new_reply uuid, of_key text, of_body text,
        new_model text, new_stream boolean, new_request text, roles text[], contents text[], ids text[],
        prompt_bytes bigint, is_cut boolean, budget bigint, messages_max bigint, at_once bigint, lease bigint,
        is_exclusive boolean, new_collapses boolean, per_minute bigint, max_running bigint,
        OUT outcome text, OUT turn uuid, OUT attempt uuid, OUT reply_id uuid, OUT start bigint, OUT turns bigint,
        OUT bytes bigint, OUT older boolean, OUT past text, OUT prompt text, OUT retry_after bigint
    ) LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        known uuid;
        known_body text;
        known_state text;
        is_limited CONSTANT boolean := per_minute > 0 OR max_running > 0;
        has_expired boolean;
        has_runs boolean;
        at timestamptz;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        IF is_limited THEN
            -- Whoever is at a limit need not queue to be told so.
            retry_after := llmchat_limit_1(of_owner, per_minute, max_running);
            IF retry_after IS NOT NULL AND NOT EXISTS (
                SELECT FROM chatts_turns
                WHERE owner = of_owner AND appid = of_appid AND (turn_id = new_turn OR key = of_key)
            ) THEN
                turn := new_turn;
                outcome := 'limited';
                RETURN;
            END IF;
            PERFORM llmchat_queue_1(of_owner);
        END IF;
        -- One look for what most conversations have none of.
        SELECT EXISTS (SELECT FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND expires <= now()),
            EXISTS (SELECT FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id <> new_turn)
        INTO has_expired, has_runs;
        IF has_expired THEN
            DELETE FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND expires <= now();
        END IF;
        FOR try IN 1..10 LOOP
            known := NULL;
            IF of_key IS NOT NULL THEN
                SELECT turn_id, body_hash, state INTO known, known_body, known_state FROM chatts_turns
                WHERE owner = of_owner AND appid = of_appid AND key = of_key;
            END IF;
            -- What an earlier try has begun is not refused because it counts.
            IF known IS NULL AND (try > 1 OR is_limited) THEN
                SELECT turn_id, body_hash, state INTO known, known_body, known_state FROM chatts_turns
                WHERE owner = of_owner AND appid = of_appid AND turn_id = new_turn;
            END IF;
            IF known IS NOT NULL THEN
                turn := known;
                IF known_state <> 'deleted' AND known_body IS DISTINCT FROM of_body THEN
                    outcome := 'reused';
                    RETURN;
                END IF;
                SELECT a.outcome, a.attempt, a.reply_id, a.start, a.turns, a.bytes, a.older, a.past, a.prompt,
                    a.retry_after
                INTO outcome, attempt, reply_id, start, turns, bytes, older, past, prompt, retry_after
                FROM llmchat_attempt_1(of_owner, of_appid, known, new_attempt, new_model, new_stream, new_request,
                    budget, messages_max, at_once, lease, is_exclusive, new_collapses, per_minute, max_running,
                    true) AS a;
                CONTINUE WHEN outcome IS NULL;
                RETURN;
            END IF;

            turn := new_turn;
            attempt := new_attempt;
            reply_id := new_reply;
            IF is_limited THEN
                retry_after := llmchat_limit_1(of_owner, per_minute, max_running);
                IF retry_after IS NOT NULL THEN
                    outcome := 'limited';
                    RETURN;
                END IF;
            END IF;
            IF has_runs OR try > 1 THEN
                PERFORM llmchat_settle_others_1(of_owner, of_appid, new_turn);
            END IF;
            INSERT INTO chatts_runs (owner, appid, turn_id, attempt, expires, exclusive, collapses)
            VALUES (of_owner, of_appid, new_turn, new_attempt, clock_timestamp() + lease * interval '1 microsecond',
                is_exclusive, new_collapses)
            ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
                -- Whoever follows or replays is never told that another turn runs.
                IF NOT EXISTS (
                    SELECT FROM chatts_turns
                    WHERE owner = of_owner AND appid = of_appid AND (turn_id = new_turn OR key = of_key)
                ) AND llmchat_is_busy_1(of_owner, of_appid, new_turn) THEN
                    outcome := 'busy';
                    RETURN;
                END IF;
                CONTINUE;
            END IF;
            SELECT greatest(now(), nullif(newest, 'infinity') + interval '1 microsecond'),
                p.turns, p.bytes, p.older, p.past
            INTO at, turns, bytes, older, past
            FROM llmchat_past_1(of_owner, of_appid, new_turn, NULL, prompt_bytes, is_cut, budget, messages_max, at_once) AS p;
            IF bytes IS NULL OR turns = 1 AND cardinality(ids) = 0 THEN
                outcome := CASE WHEN bytes IS NULL THEN 'too_large' ELSE 'empty' END;
                DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = new_turn;
                RETURN;
            END IF;
            INSERT INTO chatts_turns (owner, appid, turn_id, started, key, body_hash, model, stream, request, reply_id,
                sent_bytes, is_bare)
            VALUES (of_owner, of_appid, new_turn, at, of_key, of_body, new_model, new_stream, new_request, new_reply, bytes,
                cardinality(ids) = 0)
            ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
                DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = new_turn;
                CONTINUE;
            END IF;
            INSERT INTO chatts (owner, name, message, id, time, appid, turn_id, turn_start)
            SELECT of_owner, p.name, p.message, p.id::uuid, now(), of_appid, new_turn, at
            FROM unnest(roles, contents, ids) WITH ORDINALITY AS p (name, message, id, position)
            ORDER BY p.position;
            IF is_limited THEN
                PERFORM llmchat_count_1(of_owner, per_minute);
            END IF;
            outcome := 'started';
            start := (extract(epoch FROM at) * 1000000)::bigint;
            RETURN;
        END LOOP;
        RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'Other turns of the conversation began and ended meanwhile.';
    END
    $function$;

    -- Gives a turn of an older release its row. Where a row has no `turn_id`, its own id is that of its turn.
    --   new_reply  the id of its reply, where none stands
    CREATE OR REPLACE FUNCTION llmchat_adopt_1(of_owner text, of_appid text, own uuid, new_reply uuid)
    RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        at timestamptz;
    BEGIN
        IF EXISTS (SELECT FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own) THEN
            RETURN;
        END IF;
        INSERT INTO chatts_turns (owner, appid, turn_id, started, reply_id, state)
        SELECT of_owner, of_appid, own, coalesce(turn_start, time, '-infinity'),
            CASE WHEN name = 'assistant' THEN id ELSE new_reply END,
            CASE WHEN name = 'assistant' AND status = 'partial' THEN 'partial'
                WHEN name = 'assistant' OR turn_id IS NULL THEN 'complete' ELSE 'failed' END
        FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND (turn_id = own OR turn_id IS NULL AND id = own)
            AND name IS NOT NULL AND message IS NOT NULL
        ORDER BY coalesce(turn_start, time, '-infinity') DESC,
            coalesce(turn_id, '00000000-0000-0000-0000-000000000000') DESC, seq DESC
        LIMIT 1
        ON CONFLICT DO NOTHING
        RETURNING started INTO at;
        -- Whoever deletes them did not see this turn. Until its row can be seen they stay; if they are gone, so is it.
        PERFORM FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = at
            AND (turn_id = own OR turn_id IS NULL AND id = own)
        FOR KEY SHARE;
        IF NOT FOUND AND at IS NOT NULL THEN
            DELETE FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        END IF;
    END
    $function$;

    -- Begins another attempt of a turn, however it has ended.
    --   new_reply                           the row of its reply, where an older release left none
    --   new_model, new_stream, new_request  instead of the turn's; NULL: the turn's. They are the turn's from then on
    --                                       if the attempt's outcome is
    --   the others as of `llmchat_begin_2`
    --
    --   outcome  started, follow, limited, busy, too_large, empty as of `llmchat_begin_2`
    --            replay    this attempt has ended
    --            no_model  none is known, and none was given
    --            unknown   there is no such turn
    --   model, stream, request              what the model is to be asked with
    --   the others as of `llmchat_begin_2`
    CREATE OR REPLACE FUNCTION llmchat_again_1(
        of_owner text, of_appid text, own uuid, new_attempt uuid, new_reply uuid, new_model text, new_stream boolean,
        new_request text, budget bigint, messages_max bigint, at_once bigint, lease bigint, is_exclusive boolean,
        new_collapses boolean, per_minute bigint, max_running bigint,
        OUT outcome text, OUT turn uuid, OUT attempt uuid, OUT reply_id uuid, OUT start bigint, OUT turns bigint,
        OUT bytes bigint, OUT older boolean, OUT past text, OUT prompt text, OUT retry_after bigint, OUT model text,
        OUT stream boolean, OUT request text
    ) LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        IF per_minute > 0 OR max_running > 0 THEN
            PERFORM llmchat_queue_1(of_owner);
        END IF;
        PERFORM llmchat_adopt_1(of_owner, of_appid, own, new_reply);
        SELECT CASE WHEN a.outcome IS NULL OR a.outcome = 'deleted' THEN 'unknown' ELSE a.outcome END,
            a.turn, a.attempt, a.reply_id, a.start, a.turns, a.bytes, a.older, a.past, a.prompt, a.retry_after, a.model,
            a.stream, a.request
        INTO outcome, turn, attempt, reply_id, start, turns, bytes, older, past, prompt, retry_after, model, stream,
            request
        FROM llmchat_attempt_1(of_owner, of_appid, own, new_attempt, new_model, new_stream, new_request, budget,
            messages_max, at_once, lease, is_exclusive, new_collapses, per_minute, max_running, false) AS a;
    END
    $function$;
END
$migration$;
