-- Segments: the partitions of the log.

-- name: see_segments
-- Reads the catalog; the bounds are null for the default segment.
SELECT
    child.relname,
    (bounds.of)[1]::bigint,
    (bounds.of)[2]::bigint,
    GREATEST(child.reltuples::bigint, pg_stat_get_live_tuples(child.oid), 0),
    pg_total_relation_size(child.oid),
    2 = (
        SELECT count(*)
        FROM pg_trigger
        WHERE tgrelid = child.oid
          AND (tgname, tgenabled) IN (('outbox_segment_guard', 'O'), ('outbox_segment_floor', 'R'))
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

-- name: see_default_segment
-- Reads the catalog: whether this role may read the default segment, which a new one replaces once it
-- has rows, and whether its file has pages; an empty one may have those of a transaction rolled back.
SELECT
    has_table_privilege('outbox_message_default', 'SELECT'),
    pg_relation_size('outbox_message_default') > 0

-- name: default_has_rows
-- Looks for one row in the default segment.
SELECT EXISTS (SELECT FROM outbox_message_default)

-- name: limit_lock_wait
-- For this transaction.
SELECT set_config('lock_timeout', %(timeout)s, true)

-- name: try_maintenance_lock
-- A session lock: one maintenance at a time in this log.
SELECT pg_try_advisory_lock(outbox_lock_key(20295, 'maintenance'))

-- name: take_maintenance_lock
-- The same, waiting for another maintenance to end.
SELECT true FROM (SELECT pg_advisory_lock(outbox_lock_key(20295, 'maintenance'))) AS taken

-- name: stand_aside
-- Until commit: waits for open batches to end and holds new claims off.
SELECT pg_advisory_xact_lock(20294, outbox_claim_number(0))

-- name: release_maintenance_lock
-- Releases what try_maintenance_lock took.
SELECT pg_advisory_unlock(outbox_lock_key(20295, 'maintenance'))

-- name: lock_log
-- Waits for every transaction that reads or writes the log, and holds them off until commit.
LOCK TABLE outbox_message IN ACCESS EXCLUSIVE MODE

-- name: see_log_users
-- Reads the lock table: the sessions that hold a lock of the log, the oldest transaction first.
SELECT
    COALESCE(activity.pid::text, 'prepared'), COALESCE(activity.application_name, ''),
    COALESCE(activity.usename, ''), COALESCE(activity.state, ''),
    COALESCE(extract(epoch FROM clock_timestamp() - activity.xact_start), 0)::float8
FROM pg_locks
LEFT JOIN pg_stat_activity AS activity USING (pid)
WHERE locktype = 'relation'
  AND relation = to_regclass('outbox_message')
  AND granted
  AND pid IS DISTINCT FROM pg_backend_pid()
ORDER BY activity.xact_start

-- name: make_table
-- Creates a table beside the log; locks nothing of the log but its definition.
SELECT outbox_make_table_v1(%(name)s)

-- name: promise_range
-- Adds a constraint that is not checked for the rows that are there; locks the table for a moment.
SELECT outbox_promise_range_v1(%(name)s, %(lower)s, %(upper)s)

-- name: validate_range
-- Scans a table; publishers and readers go on.
SELECT outbox_validate_range_v1(%(name)s)

-- name: drop_promise
-- Locks the table for a moment.
SELECT outbox_drop_promise_v1(%(name)s)

-- name: see_promise
-- Reads the catalog: the range that the default segment is promised to have, if any.
SELECT
    (bounds.of)[1]::bigint,
    (bounds.of)[2]::bigint,
    convalidated
FROM pg_constraint
CROSS JOIN LATERAL (
    SELECT regexp_match(
        pg_get_constraintdef(pg_constraint.oid), 'position >= .?(\d+).*position < .?(\d+)'
    ) AS of
) AS bounds
WHERE conrelid = to_regclass('outbox_message_default') AND conname = 'outbox_segment_range'

-- name: guard_segment
-- Creates the trigger that refuses statements which name the segment.
SELECT outbox_guard_segment_v1(%(name)s)

-- name: attach_segment
-- Locks the default segment until commit; publishers of other segments go on.
SELECT outbox_attach_v1(%(name)s, %(lower)s, %(upper)s)

-- name: drop_segment
-- Under lock_log.
SELECT outbox_drop_segment_v1(%(lower)s)

-- name: swap_segment
-- Under lock_log.
SELECT outbox_swap_segment_v1(%(name)s, %(lower)s, %(upper)s)

-- name: promote_default
-- Under lock_log, after promise_range and validate_range.
SELECT outbox_promote_default_v1(%(lower)s, %(upper)s, %(name)s)

-- name: bounds_of_default
-- Two steps into the primary key of the default segment; null when it is empty.
SELECT min(position), max(position) FROM outbox_message_default

-- name: segment_channels
-- Steps through outbox_message_by_channel of one segment.
SELECT channel, first_position, last_position, last_at FROM outbox_segment_channels_v1(%(lower)s)

-- name: copy_segment
-- Reads one segment and, for the rule "latest", the newer messages of its keys.
SELECT outbox_copy_segment_v1(
    %(lower)s, %(name)s, %(expired)s::text[], %(latest)s::text[], %(keyless)s::text[],
    %(horizon)s, %(erased_channel)s, %(erased_key)s
)

-- name: segment_has_key
-- Walks outbox_message_by_channel of one segment, filtering slots inside the index.
SELECT outbox_segment_has_key_v1(%(lower)s, %(channel)s, %(key)s)

-- name: advance_sequence
-- Under lock_log: the next position is above this one.
SELECT setval('outbox_message_position_seq', %(position)s)
WHERE outbox_last_position() < %(position)s

-- name: copy_whole_segment
-- Reads one segment.
SELECT outbox_copy_segment_v1(%(lower)s, %(name)s, '{}', '{}', '{}', 0, '', NULL)

-- name: rename_table
-- A table beside the log.
SELECT outbox_rename_v1(%(name)s, %(new_name)s)

-- name: first_present
-- By the primary key of the log.
SELECT min(position) FROM outbox_message WHERE position = ANY(%(positions)s::bigint[])

-- name: age_of_log
-- One row by the primary key: seconds since the first message that the log still has.
SELECT COALESCE((
    SELECT GREATEST(extract(epoch FROM clock_timestamp() - created_at), 1)
    FROM outbox_message
    ORDER BY position
    LIMIT 1
), 0)::float8

-- name: sample_log
-- Reads a part of the blocks of each segment, chosen at random: channel, age in seconds, bytes.
SELECT
    channel,
    extract(epoch FROM clock_timestamp() - created_at)::float8,
    pg_column_size(payload) + pg_column_size(headers) + 150
FROM outbox_message TABLESAMPLE SYSTEM (%(percent)s)
