-- What is wrong with a table of others, and the statements that mend it: a row each, none for a good table
-- or where there is none. Changes nothing.
WITH present AS (
    SELECT name, upper(type) AS type, "notnull" AS is_required, dflt_value IS NOT NULL AS has_default,
        pk > 0 AS is_key, hidden > 1 AS is_generated
    FROM pragma_table_xinfo('chatts')
), wanted (name, type, also_called) AS (
    VALUES ('name', 'text', '["username","role"]'), ('message', 'text', '["content"]'), ('id', 'text', '["uuid"]'),
        ('time', 'text', '["timestamp","created_at"]'), ('appid', 'varchar(155)', '["app_id"]')
)
SELECT 'it is a view. Run: DROP VIEW chatts;'
FROM sqlite_schema WHERE name = 'chatts' AND type = 'view'
UNION ALL
SELECT 'it has no column `' || name || '`. Run: ALTER TABLE chatts ' || ifnull(
    (SELECT 'RENAME COLUMN ' || present.name || ' TO ' || wanted.name FROM present
     WHERE present.name IN (SELECT value FROM json_each(also_called)) LIMIT 1),
    'ADD COLUMN ' || name || ' ' || type) || ';'
FROM wanted
WHERE name NOT IN (SELECT name FROM present)
    AND EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'chatts' AND type = 'table')
UNION ALL
SELECT 'its column `' || name || '` ' || iif(is_generated, 'is generated', 'is a number')
    || '. Run: ALTER TABLE chatts RENAME COLUMN ' || name || ' TO old_' || name
    || '; ALTER TABLE chatts ADD COLUMN ' || name || ' text;'
FROM present
WHERE name IN (SELECT name FROM wanted) AND (is_generated OR name = 'id' AND is_key AND type = 'INTEGER')
UNION ALL
SELECT 'its column `' || name || '` must have a value: let another table be made, and copy the rows into it (INSERT INTO '
    || 'chatts (name, message, id, time, appid) SELECT name, message, id, time, appid FROM chatts_old). '
    || 'Run: ALTER TABLE chatts RENAME TO chatts_old;'
FROM present
WHERE is_required AND NOT has_default AND NOT (is_key AND type = 'INTEGER') AND NOT is_generated
    AND name NOT IN (SELECT name FROM wanted);
