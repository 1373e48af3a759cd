-- Slot ranges of a group: split and merge while workers run.

-- name: see_shape
-- Reads the cursor rows of one channel; the search for pending messages walks
-- outbox_message_by_channel.
SELECT
    id, slot_from, slot_to, position, max_position,
    leased_until IS NOT NULL AND leased_until > clock_timestamp(),
    COALESCE(GREATEST(retry_at, paused_until) > clock_timestamp(), false),
    hold_position IS NOT NULL
        AND NOT outbox_pending(channel, position, hold_position, slot_from, slot_to)
FROM outbox_cursor
WHERE "group" = %(group)s AND channel = %(channel)s AND slot_from BETWEEN %(first)s AND %(last)s

-- name: lock_shape
-- Under lock_group_shape; holds the cursor rows until commit and waits for the current batches.
SELECT
    id, slot_from, slot_to, position, max_position,
    leased_until IS NOT NULL AND leased_until > clock_timestamp(),
    COALESCE(GREATEST(retry_at, paused_until) > clock_timestamp(), false),
    false
FROM outbox_cursor
WHERE "group" = %(group)s AND channel = %(channel)s AND slot_from BETWEEN %(first)s AND %(last)s
ORDER BY id
FOR UPDATE

-- name: split_range
-- Under lock_shape: the part from a slot on. The counters stay on the first part.
INSERT INTO outbox_cursor (
    "group", channel, slot_from, slot_to, position, generation, counted_from, max_position,
    rate, attempts, failed_position, failed_since, retry_at, last_error, paused_until,
    last_served_at, last_commit_at
)
SELECT
    "group", channel, %(slot)s, slot_to, position, generation, counted_from, max_position,
    rate * (slot_to - %(slot)s + 1) / (slot_to - slot_from + 1),
    attempts, failed_position, failed_since, retry_at, last_error, paused_until,
    last_served_at, last_commit_at
FROM outbox_cursor
WHERE id = %(id)s

-- name: shorten_range
-- Under lock_shape, after split_range.
UPDATE outbox_cursor
SET slot_to = %(slot)s - 1, rate = rate * (%(slot)s - slot_from) / (slot_to - slot_from + 1)
WHERE id = %(id)s

-- name: are_on_the_way
-- Under lock_shape: whether one of them has a message up to a position, by
-- outbox_message_by_channel.
SELECT EXISTS (
    SELECT
    FROM outbox_cursor
    WHERE id = ANY(%(ids)s::bigint[])
      AND outbox_pending(channel, position, %(position)s, slot_from, slot_to)
)

-- name: hold_ranges
-- Under lock_shape.
UPDATE outbox_cursor
SET hold_position = %(position)s,
    hold_until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = ANY(%(ids)s::bigint[])

-- name: release_ranges
-- Locks the cursor rows that are held for a merge; waits for the current batches.
UPDATE outbox_cursor
SET hold_position = NULL, hold_until = NULL
WHERE "group" = %(group)s AND channel = %(channel)s AND hold_until IS NOT NULL

-- name: merge_ranges
-- Under lock_shape, the first of them becomes all of them; they have nothing up to the position.
-- Ranges count from different base positions; messages between them are added to `skipped`, so that
-- the audit adds up.
WITH parts AS (
    SELECT *, min(counted_from) OVER () AS lowest_base
    FROM outbox_cursor
    WHERE id = ANY(%(ids)s::bigint[])
), whole AS (
    SELECT
        max(slot_to) AS slot_to,
        max(max_position) AS max_position,
        min(counted_from) AS counted_from,
        sum(processed) AS processed,
        sum(skipped + (
            SELECT count(*)
            FROM outbox_message AS m
            WHERE m.channel = parts.channel
              AND m.position > lowest_base AND m.position <= counted_from
              AND m.slot BETWEEN slot_from AND parts.slot_to
        ) - (
            SELECT count(*)
            FROM outbox_parked_message AS p
            WHERE p."group" = parts."group" AND p.channel = parts.channel
              AND p.position > lowest_base AND p.position <= counted_from
              AND p.slot BETWEEN slot_from AND parts.slot_to
        )) AS skipped,
        sum(rate) AS rate,
        max(paused_until) AS paused_until,
        min(last_served_at) AS last_served_at,
        max(last_commit_at) AS last_commit_at
    FROM parts
), failed AS (
    SELECT attempts, failed_position, failed_since, retry_at, last_error
    FROM parts
    WHERE failed_position IS NOT NULL
    ORDER BY failed_position
    LIMIT 1
)
UPDATE outbox_cursor AS c
SET slot_to = whole.slot_to,
    position = %(position)s,
    max_position = GREATEST(whole.max_position, %(position)s),
    counted_from = whole.counted_from,
    processed = whole.processed,
    skipped = whole.skipped,
    rate = whole.rate,
    attempts = COALESCE(failed.attempts, 0),
    failed_position = failed.failed_position,
    failed_since = failed.failed_since,
    retry_at = failed.retry_at,
    last_error = COALESCE(failed.last_error, ''),
    paused_until = whole.paused_until,
    last_served_at = whole.last_served_at,
    last_commit_at = whole.last_commit_at
FROM whole LEFT JOIN failed ON true
WHERE c.id = (%(ids)s::bigint[])[1]

-- name: drop_ranges
-- Under lock_shape, after merge_ranges.
DELETE FROM outbox_cursor WHERE id = ANY(%(ids)s::bigint[])

-- name: renew_ranges
-- Under lock_shape. Bumps generation and lease token: open batches, leases and cached idle ranges are
-- rejected. A failed message and the parked messages count in the range that has their slots.
UPDATE outbox_cursor AS c
SET generation = generation + 1,
    lease_token = lease_token + 1,
    leased_until = NULL,
    hold_position = NULL,
    hold_until = NULL,
    parked = (
        SELECT count(*)
        FROM outbox_parked_message AS p
        WHERE p."group" = c."group" AND p.channel = c.channel
          AND p.slot BETWEEN c.slot_from AND c.slot_to
    ),
    attempts = CASE WHEN failure.is_here THEN attempts ELSE 0 END,
    failed_position = CASE WHEN failure.is_here THEN failed_position END,
    failed_since = CASE WHEN failure.is_here THEN failed_since END,
    retry_at = CASE WHEN failure.is_here THEN retry_at END,
    last_error = CASE WHEN failure.is_here THEN last_error ELSE '' END
FROM (
    SELECT id, COALESCE((
        SELECT m.slot BETWEEN slot_from AND slot_to
        FROM outbox_message AS m
        WHERE m.position = failed_position
    ), true) AS is_here
    FROM outbox_cursor
) AS failure
WHERE failure.id = c.id
  AND c."group" = %(group)s AND c.channel = %(channel)s
  AND c.slot_from >= %(first)s AND c.slot_to <= %(last)s

-- name: count_ranges
-- Under lock_group_shape.
SELECT count(*) FROM outbox_cursor WHERE "group" = %(group)s AND channel = %(channel)s
