-- Reading turns and conversations. These functions write nothing; STABLE, so that all their statements see the tables
-- as they were at one moment.
DO $migration$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- A turn as it stands; no row where there is none.
    --
    --   is_stored                     false: a turn of an older release, whose model and request are not known
    --   state                         'running', 'complete', 'stopped', 'partial', 'failed'
    --   attempt                       that is there, or else whose outcome is stored; NULL where none is known
    --   started, ended                microseconds since the Unix epoch; NULL where it has none
    --   code, error, final, usage     of that outcome
    --   model, stream, request        what that attempt was asked with
    --   reply_id, status              of the reply's row; `status` is NULL where that does not stand, or is not the attempt's
    --   message, raw, thinking, calls what that attempt generated, so far where it is there; `raw` is NULL where it is the
    --                                 message
    --   has_older                     whether an attempt is there beside the reply of an older one, which stands
    CREATE OR REPLACE FUNCTION llmchat_turn_1(of_owner text, of_appid text, own uuid)
    RETURNS TABLE (is_stored boolean, state text, attempt uuid, started bigint, ended bigint, code text, error text,
        final text, usage text, model text, stream boolean, request text, reply_id uuid, status text, message text,
        raw text, thinking text, calls text, has_older boolean)
    LANGUAGE plpgsql STABLE AS $function$
    #variable_conflict use_column
    DECLARE
        run record;
        turn record;
        reply record;
        parts record;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        SELECT * INTO turn FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        IF NOT FOUND THEN
            RETURN QUERY
            SELECT false,
                CASE WHEN name = 'assistant' AND status = 'partial' THEN 'partial'
                    WHEN name = 'assistant' OR turn_id IS NULL THEN 'complete' ELSE 'failed' END,
                NULL::uuid, CASE WHEN isfinite(at) THEN (extract(epoch FROM at) * 1000000)::bigint END,
                NULL::bigint, NULL, NULL, NULL, NULL, NULL, NULL::boolean, NULL,
                CASE WHEN name = 'assistant' THEN id END, CASE WHEN name = 'assistant' THEN status::text END,
                CASE WHEN name = 'assistant' THEN message::text END, raw, thinking, calls, false
            FROM (
                SELECT *, coalesce(turn_start, time, '-infinity') AS at FROM chatts
                WHERE owner = of_owner AND appid = of_appid AND (turn_id = own OR turn_id IS NULL AND id = own)
                    AND name IS NOT NULL AND message IS NOT NULL
                ORDER BY coalesce(turn_start, time, '-infinity') DESC,
                    coalesce(turn_id, '00000000-0000-0000-0000-000000000000') DESC, seq DESC
                LIMIT 1
            ) AS newest;
            RETURN;
        ELSIF turn.state = 'deleted' THEN
            RETURN;
        END IF;
        SELECT * INTO run FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        SELECT * INTO reply FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = turn.started
            AND id = turn.reply_id;
        is_stored := true;
        IF isfinite(turn.started) THEN
            started := (extract(epoch FROM turn.started) * 1000000)::bigint;
        END IF;
        reply_id := turn.reply_id;
        IF run.attempt IS NULL THEN
            state := turn.state; attempt := turn.attempt;
            ended := (extract(epoch FROM turn.ended) * 1000000)::bigint;
            code := turn.code; error := turn.error; final := turn.final; usage := turn.usage;
            model := turn.model; stream := turn.stream; request := turn.request;
            status := reply.status; message := reply.message; raw := reply.raw; thinking := reply.thinking;
            calls := reply.calls; has_older := false;
        ELSE
            SELECT * INTO parts FROM llmchat_generated_1(of_owner, of_appid, own);
            state := CASE WHEN run.expires > clock_timestamp() THEN 'running' WHEN run.stop THEN 'stopped'
                WHEN parts.content IS NOT NULL THEN 'partial' ELSE 'failed' END;
            attempt := run.attempt;
            code := CASE WHEN state IN ('partial', 'failed') THEN 'turn_orphaned' END;
            model := coalesce(run.model, turn.model); stream := coalesce(run.stream, turn.stream);
            request := coalesce(run.request, turn.request);
            message := parts.content; thinking := parts.thinking; calls := parts.calls;
            has_older := reply.id IS NOT NULL AND turn.attempt IS DISTINCT FROM run.attempt;
        END IF;
        RETURN NEXT;
    END
    $function$;

    -- What attempts generated since the last time, for those who follow them. The arrays have a value for each.
    --   known_contents, known_thinkings, known_calls  what is known of the attempt: bytes, bytes and number
    --
    --   number                             its place in the arrays, from 1
    --   state                              running
    --                                      orphaned  its lease has run out
    --                                      ended     `llmchat_turn_1` tells how
    --                                      deleted   the turn was, or its reply
    --   attempt                            that is there now, or whose outcome is stored; texts of another one than was
    --                                      given are from its beginning
    --   stop                               whether it is to end
    --   content_at, thinking_at, calls_at  where the texts begin, which is never after what is known
    --   content, thinking, calls           the texts; NULL where nothing is new
    CREATE OR REPLACE FUNCTION llmchat_follow_1(
        owners text[], appids text[], turns text[], attempts text[], known_contents text[], known_thinkings text[],
        known_calls text[]
    ) RETURNS TABLE (number bigint, state text, attempt uuid, stop boolean, content_at bigint, thinking_at bigint,
        calls_at bigint, content text, thinking text, calls text)
    LANGUAGE plpgsql STABLE AS $function$
    #variable_conflict use_column
    BEGIN
        -- By the indexes, with a plan that is kept: planning takes longer than running.
        PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
            set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
            set_config('plan_cache_mode', 'force_generic_plan', true);
        RETURN QUERY
        WITH given AS (
            SELECT g.number, g.owner, g.appid, g.turn::uuid AS turn_id, g.attempt::uuid AS attempt,
                g.content::bigint AS content, g.thinking::bigint AS thinking, g.calls::bigint AS calls
            FROM unnest(owners, appids, turns, attempts, known_contents, known_thinkings, known_calls)
                WITH ORDINALITY AS g (owner, appid, turn, attempt, content, thinking, calls, number)
        )
        SELECT g.number,
            CASE WHEN r.expires > clock_timestamp() THEN 'running' WHEN r.owner IS NOT NULL THEN 'orphaned'
                WHEN t.owner IS NULL OR t.state = 'deleted' OR t.code = 'turn_deleted' AND t.attempt = g.attempt
                    THEN 'deleted'
                ELSE 'ended' END,
            coalesce(r.attempt, t.attempt), coalesce(r.stop, false), p.content_at, p.thinking_at, p.calls_at,
            p.content, p.thinking, p.calls
        FROM given AS g
        LEFT JOIN chatts_turns AS t USING (owner, appid, turn_id)
        LEFT JOIN chatts_runs AS r USING (owner, appid, turn_id)
        LEFT JOIN LATERAL (
            -- The part that has what is known within it, or just before it.
            SELECT from_content, from_thinking, from_calls FROM chatts_parts AS first
            WHERE first.owner = r.owner AND first.appid = r.appid AND first.turn_id = r.turn_id AND r.attempt = g.attempt
                AND (from_content, from_thinking, from_calls) <= (g.content, g.thinking, g.calls)
            ORDER BY from_content DESC, from_thinking DESC, from_calls DESC LIMIT 1
        ) AS first ON true
        CROSS JOIN LATERAL (
            SELECT min(from_content) AS content_at, min(from_thinking) AS thinking_at, min(from_calls) AS calls_at,
                nullif(string_agg(content, ''), '') AS content, nullif(string_agg(thinking, ''), '') AS thinking,
                string_agg(nullif(calls, ''), ',') AS calls
            FROM (
                SELECT part.* FROM chatts_parts AS part
                WHERE part.owner = r.owner AND part.appid = r.appid AND part.turn_id = r.turn_id
                    AND (r.attempt <> g.attempt OR (r.content, r.thinking, r.calls) > (g.content, g.thinking, g.calls))
                    AND (part.from_content, part.from_thinking, part.from_calls) >= (coalesce(first.from_content, 0),
                        coalesce(first.from_thinking, 0), coalesce(first.from_calls, 0))
                ORDER BY part.from_content, part.from_thinking, part.from_calls
            ) AS parts
        ) AS p;
    END
    $function$;

    -- A page of a conversation, its newest message first.
    --   before     the id of the message that the page ends before, or NULL
    --   most       messages
    --   max_bytes  of their texts, but for the first message
    --
    -- Returns the messages, with NULL in the last three columns, and then always a row that has NULL in the others.
    --   id, turn, role, content     as it was generated
    --   at                          microseconds since the Unix epoch, or NULL
    --   status                      'complete', 'partial', 'stopped'
    --   thinking, calls, usage      or NULL
    --   is_gone                     whether there is no message `before`
    --   running                     the newest turn that runs, or NULL
    --   more                        whether older messages are there
    CREATE OR REPLACE FUNCTION llmchat_page_1(
        of_owner text, of_appid text, before uuid, most bigint, max_bytes bigint
    ) RETURNS TABLE (id uuid, turn uuid, role text, content text, at bigint, status text, thinking text, calls text,
        usage text, is_gone boolean, running uuid, more boolean)
    LANGUAGE plpgsql STABLE AS $function$
    #variable_conflict use_column
    DECLARE
        last CONSTANT bigint := 9223372036854775807;
        before_at timestamptz := 'infinity';
        before_turn uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
        before_seq bigint := last;
        lines refcursor;
        orphans refcursor;
        line record;
        orphan record;
        messages bigint := 0;
        bytes bigint := 0;
        is_orphan boolean;
    BEGIN
        -- As in `llmchat_past_1`. What is to be sorted all the same seems so expensive then that it would be compiled.
        PERFORM set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true),
            set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        IF before IS NOT NULL THEN
            SELECT coalesce(turn_start, time, '-infinity'), turn_id, seq INTO before_at, before_turn, before_seq
            FROM chatts AS c
            WHERE owner = of_owner AND appid = of_appid AND turn_id IS NOT NULL AND c.id = before;
            IF NOT FOUND THEN
                SELECT t.started, t.turn_id, last INTO before_at, before_turn, before_seq
                FROM chatts_runs AS r JOIN chatts_turns AS t USING (owner, appid, turn_id)
                WHERE r.owner = of_owner AND r.appid = of_appid AND r.expires <= clock_timestamp() AND reply_id = before;
            END IF;
            IF NOT FOUND THEN
                -- Of an older server: no index has its id, and it may be there twice.
                SELECT coalesce(turn_start, time, '-infinity'), '00000000-0000-0000-0000-000000000000', seq
                INTO before_at, before_turn, before_seq
                FROM chatts AS c
                WHERE owner = of_owner AND appid = of_appid AND turn_id IS NULL AND c.id = before
                ORDER BY coalesce(turn_start, time, '-infinity'), coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq
                LIMIT 1;
            END IF;
            IF NOT FOUND THEN
                is_gone := true;
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
        OPEN lines FOR
            SELECT c.id, turn_id, name, coalesce(c.raw, c.message) AS content, time, c.status, c.thinking, c.calls,
                coalesce(turn_start, time, '-infinity') AS at,
                octet_length(coalesce(c.raw, c.message)) + coalesce(octet_length(c.thinking), 0)
                    + coalesce(octet_length(c.calls), 0) AS size
            FROM chatts AS c
            WHERE owner = of_owner AND appid = of_appid AND name IS NOT NULL AND c.message IS NOT NULL
                AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq)
                    < (before_at, before_turn, before_seq)
            ORDER BY coalesce(turn_start, time, '-infinity') DESC,
                coalesce(turn_id, '00000000-0000-0000-0000-000000000000') DESC, seq DESC;
        OPEN orphans FOR
            SELECT t.started AS at, t.turn_id, t.reply_id, r.stop, r.content + r.thinking + r.calls AS size
            FROM chatts_runs AS r JOIN chatts_turns AS t USING (owner, appid, turn_id)
            WHERE r.owner = of_owner AND r.appid = of_appid AND r.expires <= clock_timestamp()
                AND r.content + r.thinking + r.calls > 0
                AND (t.started, t.turn_id, last) < (before_at, before_turn, before_seq)
                AND NOT EXISTS (
                    SELECT FROM chatts AS c
                    WHERE c.owner = of_owner AND c.appid = of_appid
                        AND coalesce(c.turn_start, c.time, '-infinity') = t.started AND c.id = t.reply_id
                )
            ORDER BY t.started DESC, t.turn_id DESC;
        FETCH lines INTO line;
        FETCH orphans INTO orphan;
        more := false;
        LOOP
            is_orphan := orphan.at IS NOT NULL AND (line.at IS NULL
                OR (orphan.at, orphan.turn_id)
                    >= (line.at, coalesce(line.turn_id, '00000000-0000-0000-0000-000000000000')));
            EXIT WHEN NOT is_orphan AND line.at IS NULL;
            bytes := bytes + CASE WHEN is_orphan THEN orphan.size ELSE line.size END;
            IF messages = most OR messages > 0 AND bytes > max_bytes THEN
                more := true;
                EXIT;
            END IF;
            messages := messages + 1;
            IF is_orphan THEN
                RETURN QUERY SELECT orphan.reply_id, orphan.turn_id, 'assistant', p.content,
                    (extract(epoch FROM orphan.at) * 1000000)::bigint,
                    CASE WHEN orphan.stop THEN 'stopped' ELSE 'partial' END, p.thinking, p.calls, NULL, NULL::boolean,
                    NULL::uuid, NULL::boolean
                FROM llmchat_generated_1(of_owner, of_appid, orphan.turn_id) AS p;
                FETCH orphans INTO orphan;
            ELSE
                RETURN QUERY SELECT line.id, coalesce(line.turn_id, line.id), line.name::text, line.content::text,
                    CASE WHEN isfinite(line.time) THEN (extract(epoch FROM line.time) * 1000000)::bigint END,
                    line.status::text, line.thinking, line.calls,
                    (SELECT t.usage FROM chatts_turns AS t
                     WHERE t.owner = of_owner AND t.appid = of_appid AND t.turn_id = line.turn_id AND t.reply_id = line.id),
                    NULL::boolean, NULL::uuid, NULL::boolean;
                FETCH lines INTO line;
            END IF;
        END LOOP;
        is_gone := false;
        SELECT r.turn_id INTO running
        FROM chatts_runs AS r JOIN chatts_turns AS t USING (owner, appid, turn_id)
        WHERE r.owner = of_owner AND r.appid = of_appid AND r.expires > clock_timestamp()
        ORDER BY t.started DESC, t.turn_id DESC LIMIT 1;
        RETURN NEXT;
    END
    $function$;
END
$migration$;
