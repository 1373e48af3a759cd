-- Changes from outside: reset, skip, pause.

-- name: move_cursor
-- A cursor that has seen more than there is was restored: nothing of this log has been seen.
-- Under lock_cursors; a batch or lease from before is refused by generation and token.
UPDATE outbox_cursor
SET position = %(position)s,
    counted_from = %(position)s,
    max_position = CASE WHEN max_position > outbox_last_position() THEN %(position)s
                         ELSE max_position END,
    generation = generation + 1,
    processed = 0,
    skipped = 0,
    parked = (
        SELECT count(*)
        FROM outbox_parked_message AS p
        WHERE p."group" = outbox_cursor."group"
          AND p.channel = outbox_cursor.channel
          AND p.slot BETWEEN slot_from AND slot_to
    ),
    attempts = 0,
    failed_position = NULL,
    failed_since = NULL,
    retry_at = NULL,
    last_error = '',
    lease_token = lease_token + 1,
    leased_until = NULL,
    hold_position = NULL,
    hold_until = NULL,
    last_commit_at = clock_timestamp()
WHERE id = %(id)s

-- name: pause_cursors
-- Under lock_cursors.
UPDATE outbox_cursor SET paused_until = %(until)s WHERE id = ANY(%(ids)s::bigint[])

-- name: resume_cursors
-- Under lock_cursors; keeps the time of resume: the status `stalled` is measured from it.
UPDATE outbox_cursor
SET paused_until = clock_timestamp()
WHERE id = ANY(%(ids)s::bigint[]) AND paused_until > clock_timestamp()

-- name: skip_message
-- Under lock_cursors: moves one range past its next message.
UPDATE outbox_cursor
SET position = %(position)s,
    max_position = GREATEST(max_position, %(position)s),
    generation = generation + 1,
    skipped = skipped + 1,
    attempts = 0,
    failed_position = NULL,
    failed_since = NULL,
    retry_at = NULL,
    last_error = '',
    lease_token = lease_token + 1,
    leased_until = NULL,
    last_commit_at = clock_timestamp()
WHERE id = %(id)s
RETURNING outbox_signal_waiters("group")

-- name: wake_workers
-- A worker that skipped a locked cursor may sleep; it claims again when this commits.
SELECT outbox_notify(signal)
FROM unnest(%(channels)s::text[]) AS changed (channel)
CROSS JOIN LATERAL (
    VALUES (outbox_signal_name(channel)), (outbox_bucket_signal(channel))
) AS heard (signal)

-- name: forget_cursors
-- Under lock_cursors.
DELETE FROM outbox_cursor WHERE id = ANY(%(ids)s::bigint[])

-- name: forget_parked_messages
-- Under lock_cursors, by outbox_parked_by_slot.
DELETE FROM outbox_parked_message
WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[])

-- name: count_parked_by_channel
-- By outbox_parked_by_slot.
SELECT channel, count(*)
FROM outbox_parked_message
WHERE "group" = %(group)s AND (%(channel)s::text IS NULL OR channel = %(channel)s)
GROUP BY channel
