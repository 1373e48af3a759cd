-- Segments: the partitions of the log.

-- name: see_segments
-- Reads the catalog; the bounds are null for the default segment.
SELECT
    child.relname,
    (bounds.of)[1]::bigint,
    (bounds.of)[2]::bigint,
    GREATEST(child.reltuples::bigint, pg_stat_get_live_tuples(child.oid), 0),
    pg_total_relation_size(child.oid),
    EXISTS (
        SELECT
        FROM pg_trigger
        WHERE tgrelid = child.oid
          AND tgname = 'outbox_segment_guard'
          AND tgenabled IN ('O', 'A')
    )
FROM pg_inherits
JOIN pg_class AS child ON child.oid = inhrelid
CROSS JOIN LATERAL (
    SELECT regexp_match(
        pg_get_expr(child.relpartbound, child.oid), 'FROM \(''(\d+)''\) TO \(''(\d+)''\)'
    ) AS of
) AS bounds
WHERE inhparent = to_regclass('outbox_message')
ORDER BY 2 NULLS LAST

-- name: has_strays
-- Looks for one row in the default segment.
SELECT EXISTS (SELECT FROM outbox_message_default)

-- name: limit_lock_wait
-- For this transaction.
SELECT set_config('lock_timeout', %(timeout)s, true)

-- name: create_segment
-- Locks the log against everybody for a moment.
SELECT outbox_create_segment(%(lower)s, %(upper)s)
