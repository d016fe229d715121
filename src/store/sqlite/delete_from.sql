-- Deletes a turn and all later ones, newest first. Made again until it returns 0 or no row.
-- ?1 owner, ?2 appid, ?3 turn_id, ?4 where turns that began later stay: microseconds since the Unix epoch, or null:
-- those that begin after this statement, ?5 rows at once
--
-- Returns whether rows are left, and ?4 for the next time.
INSERT INTO chatts_delete_1 (owner, appid, first_at, first_turn, first_line, last_at, most)
SELECT ?1, ?2, at, turn, line,
    coalesce(?4, max(
        ifnull((SELECT at FROM chatts_lines_1 WHERE owner = ?1 AND appid = ?2 ORDER BY at DESC LIMIT 1), 0),
        ifnull((SELECT max(started) FROM chatts_turns WHERE owner = ?1 AND appid = ?2), 0)
    )), ?5
FROM (
    SELECT started AS at, turn_id AS turn, 0 AS line FROM chatts_turns
    WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3 AND started IS NOT NULL
    UNION ALL
    SELECT l.at, l.turn, l.line
    FROM chatts_turns AS t JOIN chatts_lines_1 AS l ON l.owner = t.owner AND l.appid = t.appid AND l.at = +t.started
    WHERE t.owner = ?1 AND t.appid = ?2 AND t.turn_id = ?3 AND l.turn = '' AND l.id = ?3
    UNION ALL
    SELECT at, turn, line
    FROM (
        SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM chatts_turns WHERE owner = ?1 AND appid = ?2 AND turn_id = ?3)
    ) CROSS JOIN chatts_lines_1
    WHERE owner = ?1 AND appid = ?2 AND (turn = ?3 OR turn = '' AND id = ?3)
    ORDER BY at, turn, line LIMIT 1
)
RETURNING EXISTS (
    SELECT 1 FROM chatts_lines_1 AS l
    WHERE l.owner = chatts_delete_1.owner AND l.appid = chatts_delete_1.appid
        AND l.at BETWEEN chatts_delete_1.first_at AND chatts_delete_1.last_at
        AND (l.at > chatts_delete_1.first_at OR l.turn > chatts_delete_1.first_turn
            OR l.turn = chatts_delete_1.first_turn AND l.line >= chatts_delete_1.first_line)
), last_at
