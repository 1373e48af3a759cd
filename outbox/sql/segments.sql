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

-- name: has_strays
-- Looks for one row in the default segment.
SELECT EXISTS (SELECT FROM outbox_message_default)

-- name: limit_lock_wait
-- For this transaction.
SELECT set_config('lock_timeout', %(timeout)s, true)

-- name: try_maintenance_lock
-- A session lock: one maintenance at a time in this log.
SELECT pg_try_advisory_lock(outbox_lock_key(20295, 'maintenance'))

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
    %(lower)s, %(name)s, %(expired)s::text[], %(latest)s::text[], %(horizon)s,
    %(erased_channel)s, %(erased_key)s
)

-- name: segment_has_key
-- Walks outbox_message_by_channel of one segment, filtering slots inside the index.
SELECT outbox_segment_has_key_v1(%(lower)s, %(channel)s, %(key)s)

-- name: count_removable
-- Reads one segment: how many messages it has, and how many have a newer one of their key.
SELECT count(*), count(*) FILTER (
    WHERE m.key IS NOT NULL AND EXISTS (
        SELECT FROM outbox_message AS newer
        WHERE newer.channel = m.channel AND newer.slot = m.slot AND newer.key = m.key
          AND newer.position > m.position AND newer.position <= %(horizon)s
    )
)
FROM outbox_message AS m
WHERE m.position >= %(lower)s AND m.position < %(upper)s AND m.channel = ANY(%(latest)s::text[])

-- name: readers_of_channels
-- Reads the cursor rows: the lowest position of each group in each channel.
SELECT channel, "group", min(position) FROM outbox_cursor GROUP BY channel, "group"

-- name: open_snapshots
-- Reads the few rows of snapshots that are under way.
SELECT DISTINCT channel FROM outbox_snapshot WHERE finished_at IS NULL

-- name: note_removed
-- Under lock_log: up to which position a channel is no longer whole.
INSERT INTO outbox_channel_retention (channel, removed_to)
VALUES (%(channel)s, %(position)s)
ON CONFLICT (channel) DO UPDATE
SET removed_to = GREATEST(outbox_channel_retention.removed_to, EXCLUDED.removed_to)

-- name: removed_to
-- Reads a row per channel from which messages were removed.
SELECT channel, removed_to FROM outbox_channel_retention

-- name: read_removable
-- Walks the primary key of the log between two positions: what the segment does not keep.
SELECT m.position, m.channel, m.key, m.type, m.payload::text, m.headers::text, m.created_at
FROM outbox_message AS m
WHERE m.position > %(after)s AND m.position < %(upper)s
  AND (
      m.channel = ANY(%(expired)s::text[])
      OR m.channel = ANY(%(latest)s::text[]) AND m.key IS NOT NULL AND EXISTS (
          SELECT FROM outbox_message AS newer
          WHERE newer.channel = m.channel AND newer.slot = m.slot AND newer.key = m.key
            AND newer.position > m.position AND newer.position <= %(horizon)s
      )
  )
ORDER BY m.position
LIMIT %(most)s

-- name: advance_sequence
-- Under lock_log: the next position is above this one.
SELECT setval('outbox_message_position_seq', %(position)s)
WHERE outbox_last_position() < %(position)s

-- name: erase_parked
-- By outbox_parked_once of the group; error texts may quote the payload.
UPDATE outbox_parked_message
SET payload = 'null', headers = '{"outbox.erased": true}', error = '(erased)', traceback = ''
WHERE channel = %(channel)s AND key = %(key)s

-- name: erase_errors
-- Locks the cursor rows whose failed message has the key; error texts may quote the payload.
UPDATE outbox_cursor AS c
SET last_error = '(erased)'
FROM outbox_message AS m
WHERE c.channel = %(channel)s AND c.last_error <> ''
  AND m.position = c.failed_position AND m.channel = %(channel)s AND m.key = %(key)s

-- name: vacuum_parked
-- Rewrites the table of parked messages, so that its file holds no erased row; locks it meanwhile.
VACUUM (FULL) outbox_parked_message

-- name: count_key
-- Walks outbox_message_by_channel, filtering slots inside the index.
SELECT count(*)
FROM outbox_message
WHERE channel = %(channel)s
  AND key = %(key)s
  AND slot = COALESCE(hashtextextended(%(key)s, 0) & 32767, 0)
  AND headers::text <> '{"outbox.erased": true}'

-- name: insert_archived
-- Into a table beside the log, positions as they were.
SELECT outbox_insert_archived_v1(%(name)s, %(messages)s::json)

-- name: copy_whole_segment
-- Reads one segment.
SELECT outbox_copy_segment_v1(%(lower)s, %(name)s, '{}', '{}', 0, '', NULL)

-- name: rename_table
-- A table beside the log.
SELECT outbox_rename_v1(%(name)s, %(new_name)s)

-- name: first_present
-- By the primary key of the log.
SELECT min(position) FROM outbox_message WHERE position = ANY(%(positions)s::bigint[])

-- name: note_restored
-- Under lock_log: the channel is whole again from the first position of a segment on.
UPDATE outbox_channel_retention AS r
SET removed_to = %(lower)s - 1
WHERE r.removed_to < %(upper)s
  AND r.removed_to >= %(lower)s

-- name: age_of_log
-- One row by the primary key: seconds since the first message that the log still has.
SELECT COALESCE((
    SELECT GREATEST(extract(epoch FROM clock_timestamp() - created_at), 1)
    FROM outbox_message
    ORDER BY position
    LIMIT 1
), 0)::float8
