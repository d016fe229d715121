-- Deleting. A turn whose attempt runs is locked by way of its row in `chatts_runs`, so that a commit comes either before
-- the deletion, and is deleted with it, or finds its attempt gone. What a repeated prompt is refused by stays for 24
-- hours: the turn's id and its key.
DO $migration$
BEGIN
    SET LOCAL lock_timeout = '300ms';
    PERFORM pg_advisory_xact_lock(hashtext('llmchat migration'));

    -- Marks turns as deleted, and ends their attempts.
    CREATE OR REPLACE FUNCTION llmchat_mark_deleted_1(of_owner text, of_appid text, turns uuid[])
    RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    BEGIN
        DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns);
        UPDATE chatts_turns
        SET state = 'deleted', expires = clock_timestamp() + interval '24 hours', body_hash = NULL, model = NULL,
            stream = NULL, request = NULL, reply_id = NULL, attempt = NULL, committed = NULL, ended = NULL, final = NULL,
            code = NULL, error = NULL, usage = NULL, sent_bytes = NULL
        WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns) AND state <> 'deleted';
        -- Whoever had a turn locked may have begun an attempt.
        DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns);
        DELETE FROM chatts_parts WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns);
    END
    $function$;

    -- Of turns that are marked and have no rows any more only what refuses their keys stays, and that for its time.
    CREATE OR REPLACE FUNCTION llmchat_forget_1(of_owner text, of_appid text, turns uuid[])
    RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    BEGIN
        DELETE FROM chatts_turns
        WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns) AND state = 'deleted' AND key IS NULL;
        UPDATE chatts_turns SET started = NULL
        WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns) AND state = 'deleted'
            AND started IS NOT NULL;
        DELETE FROM chatts_turns
        WHERE owner = of_owner AND appid = of_appid AND expires <= now()
            AND started IS NULL;
    END
    $function$;

    -- Deletes a turn, its last rows first, `most` at once. Returns whether some are left: call it again.
    CREATE OR REPLACE FUNCTION llmchat_delete_turn_1(of_owner text, of_appid text, own uuid, most bigint)
    RETURNS boolean LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        at timestamptz;
        from_seq bigint;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        PERFORM llmchat_adopt_1(of_owner, of_appid, own, own);
        PERFORM llmchat_mark_deleted_1(of_owner, of_appid, ARRAY[own]);
        SELECT started INTO at FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        SELECT seq INTO from_seq FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = at
            AND (turn_id = own OR turn_id IS NULL AND id = own)
        ORDER BY seq DESC OFFSET most LIMIT 1;
        DELETE FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = at
            AND (turn_id = own OR turn_id IS NULL AND id = own) AND seq > coalesce(from_seq, 0);
        IF from_seq IS NOT NULL THEN
            RETURN true;
        END IF;
        PERFORM llmchat_forget_1(of_owner, of_appid, ARRAY[own]);
        RETURN false;
    END
    $function$;

    -- Deletes the reply of a turn, and ends its attempt. The prompt stays; the turn is `failed`, `turn_deleted`.
    CREATE OR REPLACE FUNCTION llmchat_delete_reply_1(of_owner text, of_appid text, own uuid)
    RETURNS void LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        ended_attempt uuid;
        turn record;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        PERFORM llmchat_adopt_1(of_owner, of_appid, own, own);
        DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own
        RETURNING attempt INTO ended_attempt;
        SELECT started, reply_id INTO turn FROM chatts_turns
        WHERE owner = of_owner AND appid = of_appid AND turn_id = own AND state <> 'deleted' FOR UPDATE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        IF ended_attempt IS NULL THEN
            -- Whoever had the turn locked may have begun one.
            DELETE FROM chatts_runs WHERE owner = of_owner AND appid = of_appid AND turn_id = own
            RETURNING attempt INTO ended_attempt;
        END IF;
        -- `attempt` tells its commit that it was deleted.
        UPDATE chatts_turns
        SET state = 'failed', code = 'turn_deleted', attempt = coalesce(ended_attempt, attempt), committed = NULL,
            ended = clock_timestamp(), final = NULL, error = NULL, usage = NULL,
            -- A reply of an older server is a turn of its own.
            is_bare = is_bare OR reply_id = own
        WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        DELETE FROM chatts_parts WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        DELETE FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = turn.started
            AND id = turn.reply_id AND name = 'assistant';
    END
    $function$;

    -- Deletes the `most` newest rows of a conversation from a place on, and marks their turns. Returns whether some are
    -- left; when none is, turns without rows are gone, too.
    --   from_at, from_turn, from_seq  the place of the first row that goes, or before it
    --   until                         turns that began later stay
    CREATE OR REPLACE FUNCTION llmchat_delete_rows_1(
        of_owner text, of_appid text, from_at timestamptz, from_turn uuid, from_seq bigint, until timestamptz, most bigint
    ) RETURNS boolean LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        running uuid[];
        turns uuid[];
        asked uuid[];
        stays record;
        has_left boolean;
    BEGIN
        PERFORM set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true),
            set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        -- All attempts at once: none goes on while its conversation is being deleted.
        running := ARRAY(
            SELECT turn_id FROM chatts_runs JOIN chatts_turns USING (owner, appid, turn_id)
            WHERE owner = of_owner AND appid = of_appid AND (started, turn_id) >= (from_at, from_turn) AND started <= until
        );
        PERFORM llmchat_mark_deleted_1(of_owner, of_appid, running);
        -- The newest row that stays for now.
        SELECT coalesce(turn_start, time, '-infinity') AS at,
            coalesce(turn_id, '00000000-0000-0000-0000-000000000000') AS turn_id, seq
        INTO stays
        FROM chatts
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') <= until
            AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq)
                >= (from_at, from_turn, from_seq)
        ORDER BY coalesce(turn_start, time, '-infinity') DESC,
            coalesce(turn_id, '00000000-0000-0000-0000-000000000000') DESC, seq DESC
        OFFSET most LIMIT 1;
        has_left := FOUND;
        IF has_left THEN
            from_at := stays.at; from_turn := stays.turn_id; from_seq := stays.seq + 1;
        END IF;
        turns := ARRAY(
            SELECT DISTINCT coalesce(turn_id, id) FROM chatts
            WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') <= until
                AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq)
                    >= (from_at, from_turn, from_seq)
        ) || ARRAY(
            SELECT turn_id FROM chatts_turns
            WHERE owner = of_owner AND appid = of_appid AND is_bare AND started <= until AND started >= from_at
                AND (started, turn_id) >= (from_at, from_turn)
        );
        PERFORM llmchat_mark_deleted_1(of_owner, of_appid, turns);
        -- A turn that came meanwhile is not among those that are marked, and keeps its rows.
        PERFORM set_config('enable_nestloop', 'off', true);
        DELETE FROM chatts USING unnest(turns) AS marked (turn)
        WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') <= until
            AND (coalesce(turn_start, time, '-infinity'), coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq)
                >= (from_at, from_turn, from_seq)
            AND coalesce(turn_id, id) = marked.turn;
        PERFORM set_config('enable_nestloop', 'on', true);
        -- Turns of older releases that were asked again meanwhile: they have got their rows, and maybe a reply.
        asked := ARRAY(
            SELECT turn_id FROM chatts_turns
            WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (turns) AND state <> 'deleted'
        );
        IF asked <> '{}' THEN
            PERFORM llmchat_mark_deleted_1(of_owner, of_appid, asked);
            DELETE FROM chatts WHERE owner = of_owner AND appid = of_appid AND turn_id = ANY (asked);
        END IF;
        PERFORM llmchat_forget_1(of_owner, of_appid,
            CASE WHEN has_left THEN array_remove(turns, stays.turn_id) ELSE turns || running END);
        RETURN has_left;
    END
    $function$;

    -- The end of what is being deleted: what stands when this is first called with NULL, in microseconds since the Unix
    -- epoch; the largest number where rows of an older server stand at the end of time.
    CREATE OR REPLACE FUNCTION llmchat_until_1(of_owner text, of_appid text, of_until bigint)
    RETURNS bigint LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        newest timestamptz;
    BEGIN
        IF of_until IS NOT NULL THEN
            RETURN of_until;
        END IF;
        SELECT coalesce(turn_start, time, '-infinity') INTO newest FROM chatts
        WHERE owner = of_owner AND appid = of_appid
        ORDER BY coalesce(turn_start, time, '-infinity') DESC,
            coalesce(turn_id, '00000000-0000-0000-0000-000000000000') DESC, seq DESC LIMIT 1;
        RETURN CASE WHEN newest = 'infinity' THEN 9223372036854775807
            ELSE (extract(epoch FROM greatest(nullif(newest, '-infinity'), clock_timestamp())) * 1000000)::bigint END;
    END
    $function$;

    -- Deletes a turn and all later ones, the newest rows first, `most` at once.
    --   of_until  NULL, then `until`: what begins later than the first call stays
    --   is_left   whether some are left: call it again
    CREATE OR REPLACE FUNCTION llmchat_delete_from_1(
        of_owner text, of_appid text, own uuid, of_until bigint, most bigint, OUT is_left boolean, OUT until bigint
    ) LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    DECLARE
        from_at timestamptz;
        legacy bigint;
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        is_left := false;
        until := llmchat_until_1(of_owner, of_appid, of_until);
        SELECT started INTO from_at FROM chatts_turns WHERE owner = of_owner AND appid = of_appid AND turn_id = own;
        IF FOUND THEN
            SELECT seq INTO legacy FROM chatts
            WHERE owner = of_owner AND appid = of_appid AND coalesce(turn_start, time, '-infinity') = from_at
                AND turn_id IS NULL AND id = own
            ORDER BY seq LIMIT 1;
        ELSE
            -- Of an older release: its first row. An id may be there twice.
            SELECT coalesce(turn_start, time, '-infinity'), CASE WHEN turn_id IS NULL THEN seq END INTO from_at, legacy
            FROM chatts
            WHERE owner = of_owner AND appid = of_appid AND (turn_id = own OR turn_id IS NULL AND id = own)
            ORDER BY coalesce(turn_start, time, '-infinity'), coalesce(turn_id, '00000000-0000-0000-0000-000000000000'), seq
            LIMIT 1;
        END IF;
        IF from_at IS NOT NULL THEN
            is_left := llmchat_delete_rows_1(of_owner, of_appid, from_at,
                CASE WHEN legacy IS NULL THEN own ELSE '00000000-0000-0000-0000-000000000000' END, coalesce(legacy, 0),
                CASE WHEN until = 9223372036854775807 THEN 'infinity'
                    ELSE 'epoch'::timestamptz + until * interval '1 microsecond' END, most);
        END IF;
    END
    $function$;

    -- Deletes a conversation; parameters and columns as of `llmchat_delete_from_1`.
    CREATE OR REPLACE FUNCTION llmchat_delete_conversation_1(
        of_owner text, of_appid text, of_until bigint, most bigint, OUT is_left boolean, OUT until bigint
    ) LANGUAGE plpgsql AS $function$
    #variable_conflict use_column
    BEGIN
        until := llmchat_until_1(of_owner, of_appid, of_until);
        is_left := llmchat_delete_rows_1(of_owner, of_appid, '-infinity', '00000000-0000-0000-0000-000000000000', 0,
            CASE WHEN until = 9223372036854775807 THEN 'infinity'
                ELSE 'epoch'::timestamptz + until * interval '1 microsecond' END, most);
    END
    $function$;
END
$migration$;
