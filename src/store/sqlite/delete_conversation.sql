-- Deletes a conversation, newest turns first. Made again until it returns 0.
-- ?1 owner, ?2 appid, ?3 where turns that began later stay: microseconds since the Unix epoch, or null:
-- those that begin after this statement, ?4 rows at once
--
-- Returns whether rows are left, and ?3 for the next time.
INSERT INTO chatts_delete_1 (owner, appid, first_at, first_turn, first_line, last_at, most)
VALUES (?1, ?2, -9223372036854775808, '', -9223372036854775808,
    coalesce(?3, max(
        ifnull((SELECT at FROM chatts_lines_1 WHERE owner = ?1 AND appid = ?2 ORDER BY at DESC LIMIT 1), 0),
        ifnull((SELECT max(started) FROM chatts_turns WHERE owner = ?1 AND appid = ?2), 0)
    )), ?4)
RETURNING EXISTS (
    SELECT 1 FROM chatts_lines_1 AS l
    WHERE l.owner = chatts_delete_1.owner AND l.appid = chatts_delete_1.appid AND l.at <= chatts_delete_1.last_at
), last_at
