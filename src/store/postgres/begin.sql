-- Begins a turn with a prompt of several messages.
-- $1 appid, $2 turn_id, $3 roles, $4 contents, $5 ids
WITH prompt AS (
    INSERT INTO chatts (name, message, id, time, appid, turn_id, turn_start)
    SELECT p.name, p.message, p.id, now(), $1::text, $2::uuid, greatest(now(), (
        SELECT coalesce(turn_start, time) + interval '1 microsecond' FROM chatts
        WHERE appid = $1 AND coalesce(turn_start, time) IS NOT NULL
        ORDER BY coalesce(turn_start, time) DESC LIMIT 1
    ))
    FROM unnest($3::text[], $4::text[], $5::text[]::uuid[])
        WITH ORDINALITY AS p (name, message, id, position)
    ORDER BY p.position
    ON CONFLICT (id) WHERE turn_id IS NOT NULL DO NOTHING
    RETURNING turn_start
)
SELECT count(*), (extract(epoch FROM max(turn_start)) * 1000000)::bigint, (
    SELECT string_agg(
        '{"role":' || to_json(name) || ',"content":' || to_json(message) || '}', ','
        ORDER BY coalesce(turn_start, time), turn_id, seq
    )
    FROM chatts WHERE appid = $1
)
FROM prompt
