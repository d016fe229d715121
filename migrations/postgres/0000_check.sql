-- Refuses a table of others that cannot work, before anything is changed: otherwise prompts would be stored
-- and their replies lost. Says what is wrong, and which statements mend it. Changes nothing.
DO $$
DECLARE
    encoding text := current_setting('server_encoding');
    kind     text;
    faults   text;
    cures    text;
BEGIN
    IF encoding NOT IN ('UTF8', 'SQL_ASCII') THEN
        RAISE EXCEPTION USING ERRCODE = 'LLM01', MESSAGE = format(
            'The encoding of the database is %s, which cannot hold every character. Create another database: '
            'CREATE DATABASE llmchat ENCODING ''UTF8'' LOCALE ''C'' TEMPLATE template0;', encoding);
    END IF;

    SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' END
    INTO kind FROM pg_class WHERE oid = to_regclass('chatts');
    IF kind IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'LLM01', MESSAGE = format(
            'The relation `chatts` is a %s, not a table. Run: ALTER %s chatts RENAME TO chatts_old;',
            kind, upper(kind));
    END IF;

    WITH present AS (
        SELECT column_name::text AS name, udt_name::text AS type, character_maximum_length AS width,
            udt_name || coalesce('(' || character_maximum_length || ')', '') AS shown,
            is_identity = 'YES' AS is_identity, is_generated = 'ALWAYS' AS is_generated,
            column_default IS NOT NULL AS has_default, is_nullable = 'NO' AS is_required
        FROM information_schema.columns
        WHERE (table_schema, table_name) = (
            SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE pg_class.oid = to_regclass('chatts')
        )
    ), wanted (position, name, type, also_called) AS (
        VALUES (1, 'name', 'text', ARRAY['username', 'role']), (2, 'message', 'text', ARRAY['content']),
            (3, 'id', 'uuid', ARRAY['uuid']), (4, 'time', 'timestamptz', ARRAY['timestamp', 'created_at']),
            (5, 'appid', 'varchar(155)', ARRAY['app_id'])
    ), added (name, types) AS (
        VALUES ('turn_id', ARRAY['uuid']), ('turn_start', ARRAY['timestamptz']), ('seq', ARRAY['int8']),
            ('status', ARRAY['text', 'varchar']), ('owner', ARRAY['text', 'varchar']),
            ('raw', ARRAY['text']), ('thinking', ARRAY['text']), ('calls', ARRAY['text'])
    ), found (fault, cure) AS (
        -- A column is missing.
        SELECT format('it has no column `%s`', wanted.name),
            coalesce(
                (SELECT format('RENAME COLUMN %I TO %I', present.name, wanted.name)
                 FROM present WHERE present.name = ANY (also_called) LIMIT 1),
                format('ADD COLUMN %I %s', wanted.name, wanted.type))
        FROM wanted WHERE NOT EXISTS (SELECT FROM present WHERE present.name = wanted.name)
            AND EXISTS (SELECT FROM present)
        UNION ALL
        -- A text has another type, or replies would not fit.
        SELECT format('its column `%s` is %s', name, shown),
            format('ALTER COLUMN %1$I TYPE text USING %2$s', name, CASE type
                WHEN 'bytea' THEN format('convert_from(%I, ''UTF8'')', name) ELSE format('%I::text', name) END)
        FROM present
        WHERE name = 'name' AND (type NOT IN ('text', 'varchar', 'citext') OR width < 9)
            OR name = 'message' AND (type NOT IN ('text', 'varchar', 'citext') OR width IS NOT NULL)
        UNION ALL
        SELECT format('its column `appid` is %s', shown),
            'ALTER COLUMN appid TYPE varchar(155) USING appid::varchar(155)'
        FROM present WHERE name = 'appid' AND type NOT IN ('text', 'varchar')
        UNION ALL
        SELECT format('its column `id` is %s', shown),
            CASE WHEN is_identity THEN 'ALTER COLUMN id DROP IDENTITY; ALTER TABLE chatts '
                WHEN has_default THEN 'ALTER COLUMN id DROP DEFAULT, ' ELSE '' END
            || 'ALTER COLUMN id TYPE uuid USING '
            || CASE WHEN type IN ('text', 'varchar', 'bpchar') THEN 'id::uuid' ELSE 'md5(id::text)::uuid' END
        FROM present WHERE name = 'id' AND type <> 'uuid'
        UNION ALL
        SELECT format('its column `time` is %s', shown),
            CASE WHEN has_default THEN 'ALTER COLUMN time DROP DEFAULT, ' ELSE '' END
            || 'ALTER COLUMN time TYPE timestamptz USING '
            || CASE WHEN type = 'timestamp' THEN 'time AT TIME ZONE ''UTC'''
                WHEN type IN ('int4', 'int8', 'float8', 'numeric') THEN 'to_timestamp(time)'
                ELSE 'time::timestamptz' END
        FROM present WHERE name = 'time' AND type <> 'timestamptz'
        UNION ALL
        -- A column of others has the name of one that is to be added.
        SELECT format('its column `%s` is %s', name, shown), format('RENAME COLUMN %I TO %I', name, name || '_old')
        FROM present JOIN added USING (name) WHERE type <> ALL (types)
        UNION ALL
        SELECT format('its column `%s` is generated', name), format('ALTER COLUMN %I DROP EXPRESSION', name)
        FROM present WHERE is_generated AND name IN (SELECT name FROM wanted UNION SELECT name FROM added)
        UNION ALL
        -- A column of others must have a value, and gets none.
        SELECT format('its column `%s` must have a value', name),
            coalesce(
                (SELECT format('DROP CONSTRAINT %I, ', conname)
                 FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = ANY (conkey)
                 WHERE conrelid = to_regclass('chatts') AND contype = 'p' AND attname = name), '')
            || format('ALTER COLUMN %I DROP NOT NULL', name)
        FROM present
        WHERE is_required AND NOT (has_default OR is_identity OR is_generated)
            AND name NOT IN (SELECT name FROM wanted UNION SELECT name FROM added)
    )
    SELECT string_agg(fault, ', '), string_agg('ALTER TABLE chatts ' || cure, '; ') INTO faults, cures FROM found;
    IF faults IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'LLM01',
            MESSAGE = format('The table `chatts` cannot be used as it is: %s. Run: %s;', faults, cures);
    END IF;
END
$$;
