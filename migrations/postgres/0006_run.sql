-- Running attempts: how they go on, stop and end.
DO $migration$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- Ends an attempt, and stores what it came to: where no reply stands, in any case; over a reply, if it is complete or
    -- was stopped with a reply; over one that broke off, also if it broke off with one.
    --   new_state    of the turn: 'complete', 'stopped', 'partial', 'failed'
    --   new_final    the final line, or NULL
    --   new_code, new_error  of the error that ended it, or NULL
    --   new_usage    Ollama's metrics as a JSON object, or NULL
    --   has_reply    whether a message is to be stored; then:
    --   new_message  what the model is shown again
    --   new_status   'complete', 'partial' or 'stopped'
    --   new_raw      what was generated, where the message differs, or NULL
    --   new_thinking, new_calls  or NULL; calls are JSON objects with commas in between
    --
    -- Returns the outcome, the same one if it is called again.
    --   stored      it is the turn's
    --   kept        an older reply stands: the turn is what it was
    --   superseded  the attempt had been ended for another one, or as an orphan
    --   deleted     the turn was, or its reply
    --   to_stop     nothing is stored: it broke off, but a stop had been asked for. Call it again with 'stopped'
    CREATE OR REPLACE FUNCTION llmchat_commit_1(
        of_owner text, of_appid text, own uuid, of_attempt uuid, new_state text, new_final text, new_code text,
        new_error text, new_usage text, has_reply boolean, new_message text, new_status text, new_raw text,
        new_thinking text, new_calls text
    ) RETURNS text LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        run record;
        turn record;
        is_first boolean;
        stands boolean;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        IF new_state IN ('partial', 'failed') THEN
            SELECT stop INTO run FROM chatts_runs
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own AND attempt = of_attempt FOR UPDATE;
            IF run.stop THEN
                RETURN 'to_stop';
            END IF;
        END IF;
        DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own AND attempt = of_attempt
        RETURNING model, stream, request, sent_bytes, content + thinking + calls AS size INTO run;
        IF NOT FOUND THEN
            RETURN coalesce((
                SELECT CASE
                    WHEN committed = of_attempt THEN CASE WHEN attempt = of_attempt THEN 'stored' ELSE 'kept' END
                    WHEN state = 'deleted' OR code = 'turn_deleted' AND attempt = of_attempt THEN 'deleted'
                    ELSE 'superseded' END
                FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own
            ), 'deleted');
        END IF;
        UPDATE chatts_turns
        SET attempt = of_attempt, committed = of_attempt, state = new_state, ended = clock_timestamp(), final = new_final,
            code = new_code, error = new_error, usage = new_usage
        WHERE owner = of_owner AND appid = of_appid AND turn_id = own AND state = ''
        RETURNING started, reply_id INTO turn;
        is_first := FOUND;
        IF run.size > 0 THEN
            DELETE FROM chatts_parts WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        END IF;
        IF NOT is_first THEN
            UPDATE chatts_turns SET committed = of_attempt
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own
            RETURNING started, reply_id, attempt, state INTO turn;
            stands := EXISTS (
                SELECT FROM chatts
                WHERE owner = of_owner AND appid = of_appid
                    AND coalesce(turn_start, time, '-infinity') = turn.started AND id = turn.reply_id
            );
            IF stands AND NOT (new_state = 'complete' OR turn.attempt IS NOT DISTINCT FROM of_attempt
                OR has_reply AND (new_state = 'stopped' OR turn.state NOT IN ('complete', 'stopped')))
            THEN
                RETURN 'kept';
            END IF;
            UPDATE chatts_turns
            SET attempt = of_attempt, state = new_state, ended = clock_timestamp(), final = new_final, code = new_code,
                error = new_error, usage = new_usage, model = coalesce(run.model, model),
                stream = coalesce(run.stream, stream), request = coalesce(run.request, request),
                sent_bytes = coalesce(run.sent_bytes, sent_bytes)
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
            IF stands AND has_reply THEN
                UPDATE chatts
                SET message = new_message, raw = new_raw, thinking = new_thinking, calls = new_calls, status = new_status,
                    -- A row of an older server has its place by its time.
                    time = now(), turn_start = turn.started
                WHERE owner = of_owner AND appid = of_appid
                    AND coalesce(turn_start, time, '-infinity') = turn.started AND id = turn.reply_id;
                RETURN 'stored';
            ELSIF stands THEN
                DELETE FROM chatts
                WHERE owner = of_owner AND appid = of_appid
                    AND coalesce(turn_start, time, '-infinity') = turn.started AND id = turn.reply_id;
            END IF;
        END IF;
        IF has_reply THEN
            INSERT INTO chatts (owner, appid, name, message, id, time, turn_id, turn_start, status, raw, thinking, calls)
            VALUES (of_owner, of_appid, 'assistant', new_message, turn.reply_id, now(), own, turn.started, new_status,
                new_raw, new_thinking, new_calls);
        END IF;
        RETURN 'stored';
    END
    $function$;

    -- Stores what attempts generated since the last time, and renews their leases. The arrays have a value for each
    -- attempt. What is there already, from an earlier try, is not stored twice.
    --   from_contents, from_thinkings, from_calls  what the caller believes to be stored: bytes, bytes and number
    --   new_contents, new_thinkings, new_calls     what comes after that; '' or NULL where nothing does
    --   to_calls                                   the number of calls with it
    --   lease                                      microseconds
    --
    -- Returns a row for each attempt but those that somebody else has locked.
    --   number                     its place in the arrays, from 1
    --   outcome                    ok    the attempt is the turn's
    --                              stop  so it is, and is to end
    --                              gone  it is not: `llmchat_commit_1` tells why
    --   content, thinking, calls   what is stored now; where that is not all that was given, a crash of the database took
    --                              some, or an earlier try had less: the next checkpoint begins there
    CREATE OR REPLACE FUNCTION llmchat_checkpoint_1(
        owners text[], appids text[], turns text[], attempts text[], from_contents text[], from_thinkings text[],
        from_calls text[], new_contents text[], new_thinkings text[], new_calls text[], to_calls text[], lease bigint
    ) RETURNS TABLE (number bigint, outcome text, content bigint, thinking bigint, calls bigint)
    LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    BEGIN
        -- A crash of the database may take the last second of an attempt, as that of its host does.
        PERFORM set_config('synchronous_commit', 'off', true);
        -- By the indexes, with a plan that is kept: planning takes longer than running.
        PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
            set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
            set_config('plan_cache_mode', 'force_generic_plan', true);
        RETURN QUERY
        WITH given AS (
            SELECT g.number, g.owner, g.appid, g.turn::uuid AS turn_id, g.attempt::uuid AS attempt,
                g.from_content::bigint AS from_content, g.from_thinking::bigint AS from_thinking,
                g.from_call::bigint AS from_calls, coalesce(g.content, '') AS content,
                coalesce(g.thinking, '') AS thinking, coalesce(g.calls, '') AS calls, g.to_call::bigint AS to_calls
            FROM unnest(owners, appids, turns, attempts, from_contents, from_thinkings, from_calls, new_contents,
                    new_thinkings, new_calls, to_calls)
                WITH ORDINALITY AS g (owner, appid, turn, attempt, from_content, from_thinking, from_call, content,
                    thinking, calls, to_call, number)
        ), locked AS (
            -- One by one, by the primary key, however few attempts the planner believes there are.
            SELECT g.*, r.place,
                (r.content, r.thinking, r.calls) = (g.from_content, g.from_thinking, g.from_calls)
                    AND (g.content <> '' OR g.thinking <> '' OR g.calls <> '') AS is_new
            FROM given AS g CROSS JOIN LATERAL (
                SELECT ctid AS place, content, thinking, calls FROM chatts_runs AS r
                WHERE r.owner = g.owner AND r.appid = g.appid AND r.turn_id = g.turn_id AND r.attempt = g.attempt
                FOR UPDATE SKIP LOCKED
            ) AS r
        ), renewed AS (
            -- Not one that was changed since this statement began: it is as if somebody else had it locked.
            UPDATE chatts_runs AS r
            SET expires = clock_timestamp() + lease * interval '1 microsecond',
                content = CASE WHEN is_new THEN r.content + octet_length(l.content) ELSE r.content END,
                thinking = CASE WHEN is_new THEN r.thinking + octet_length(l.thinking) ELSE r.thinking END,
                calls = CASE WHEN is_new THEN l.to_calls ELSE r.calls END,
                settled = settled AND NOT is_new
            FROM locked AS l
            WHERE r.ctid = l.place
            RETURNING l.*, r.stop, r.content AS now_content, r.thinking AS now_thinking, r.calls AS now_calls
        ), stored AS (
            INSERT INTO chatts_parts (owner, appid, turn_id, attempt, from_content, from_thinking, from_calls, content,
                thinking, calls)
            SELECT owner, appid, turn_id, attempt, from_content, from_thinking, from_calls, content, thinking, calls
            FROM renewed WHERE is_new
        )
        SELECT number, CASE WHEN stop THEN 'stop' ELSE 'ok' END, now_content, now_thinking, now_calls FROM renewed
        UNION ALL
        SELECT g.number, 'gone', 0, 0, 0
        FROM given AS g LEFT JOIN chatts_runs AS r USING (owner, appid, turn_id, attempt)
        WHERE r.owner IS NULL;
    END
    $function$;

    -- Asks the attempt of a turn to end; an orphan is ended at once, as stopped.
    --
    -- Returns 'running' (it is to end: `llmchat_checkpoint_1` tells its host), 'ended', or 'unknown'.
    CREATE OR REPLACE FUNCTION llmchat_stop_1(of_owner text, of_appid text, own uuid)
    RETURNS text LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        run record;
        known_state text;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        SELECT expires > clock_timestamp() AS is_live INTO run FROM chatts_runs
        WHERE owner = of_owner AND appid = of_appid AND turn_id = own FOR UPDATE;
        IF run.is_live THEN
            UPDATE chatts_runs SET stop = true
            WHERE owner = of_owner AND appid = of_appid AND turn_id = own AND NOT stop;
            RETURN 'running';
        ELSIF NOT run.is_live THEN
            PERFORM llmchat_settle_1(of_owner, of_appid, own, true, true);
            RETURN 'ended';
        END IF;
        SELECT state INTO known_state FROM chatts_turns
        WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        IF FOUND THEN
            RETURN CASE WHEN known_state = 'deleted' THEN 'unknown' ELSE 'ended' END;
        END IF;
        RETURN CASE WHEN EXISTS (
            SELECT FROM chatts
            WHERE owner = of_owner AND appid = of_appid AND (turn_id = own OR turn_id IS NULL AND id = own)
        ) THEN 'ended' ELSE 'unknown' END;
    END
    $function$;
END
$migration$;
