-- Parked messages: park, hold back, redrive.

-- name: park_message
-- Under the cursor's lock; finds the message by the log's primary key.
INSERT INTO outbox_parked_message (
    "group", channel, position, key, slot, type, payload, headers, created_at, replayed, reason,
    attempts, error_class, error, traceback, first_failed_at, last_failed_at
)
SELECT
    %(group)s, channel, position, key, slot, type, payload, headers, created_at, %(replayed)s,
    %(reason)s, %(attempts)s, %(error_class)s, %(error)s, %(traceback)s,
    clock_timestamp() - make_interval(secs => %(failing_seconds)s), clock_timestamp()
FROM outbox_message
WHERE position = %(position)s

-- name: park_blocked
-- Under the cursor's lock; finds the messages by the log's primary key, and the earlier ones of
-- their keys by outbox_parked_by_slot.
INSERT INTO outbox_parked_message (
    "group", channel, position, key, slot, type, payload, headers, created_at, replayed, reason
)
SELECT
    %(group)s::text, m.channel, m.position, m.key, m.slot, m.type, m.payload, m.headers,
    m.created_at, m.position <= %(max_position)s, 'blocked'
FROM outbox_message AS m
WHERE m.position = ANY(%(positions)s::bigint[])
  AND EXISTS (
      SELECT
      FROM outbox_parked_message AS p
      WHERE p."group" = %(group)s
        AND p.channel = m.channel
        AND p.slot = m.slot
        AND p.key = m.key
        AND p.position < m.position
  )

-- name: parked_keys
-- Under the cursor's lock; reads the range in outbox_parked_by_slot.
SELECT DISTINCT key
FROM outbox_parked_message
WHERE "group" = %(group)s
  AND channel = %(channel)s
  AND slot BETWEEN %(slot_from)s AND %(slot_to)s
  AND key IS NOT NULL

-- name: blocked_keys
-- Under the cursor's lock; one look into outbox_parked_by_slot per key.
SELECT wanted.key
FROM unnest(%(keys)s::text[]) AS wanted (key)
CROSS JOIN LATERAL (
    SELECT
    FROM outbox_parked_message AS p
    WHERE p."group" = %(group)s
      AND p.channel = %(channel)s
      AND p.slot = (hashtextextended(wanted.key, 0) & 32767)::smallint
      AND p.key = wanted.key
    LIMIT 1
) AS found

-- name: list_parked_keys
-- Reads the parked messages of a group: one row per key, and one per message without a key.
SELECT channel, key, min(slot), min(position), count(*)
FROM outbox_parked_message
WHERE "group" = %(group)s AND (%(key)s::text IS NULL OR key = %(key)s::text)
GROUP BY channel, key, CASE WHEN key IS NULL THEN position END
ORDER BY min(position)

-- name: count_parked_of_key
-- By outbox_parked_by_slot.
SELECT count(*)
FROM outbox_parked_message
WHERE "group" = %(group)s AND channel = %(channel)s AND slot = %(slot)s
  AND (key = %(key)s::text OR key IS NULL AND position = %(position)s)

-- name: first_parked
-- Under the cursor's lock, by outbox_parked_by_slot.
SELECT
    position, key, type, payload::text, headers::text, created_at::text, attempts, replayed,
    extract(epoch FROM clock_timestamp() - first_failed_at)::float8
FROM outbox_parked_message
WHERE "group" = %(group)s AND channel = %(channel)s AND slot = %(slot)s
  AND (key = %(key)s::text OR key IS NULL AND position = %(position)s)
ORDER BY position
LIMIT 1

-- name: release_parked
-- Under the cursor's lock, by outbox_parked_once.
DELETE FROM outbox_parked_message WHERE "group" = %(group)s AND position = %(position)s

-- name: count_released
-- lock_slot holds the row's lock. Messages below counted_from are not counted there.
UPDATE outbox_cursor
SET parked = parked - 1,
    processed = processed + CASE WHEN counted_from < %(position)s THEN %(processed)s ELSE 0 END,
    skipped = skipped + CASE WHEN counted_from < %(position)s THEN %(skipped)s ELSE 0 END
WHERE id = %(id)s
RETURNING true

-- name: fail_parked
-- Under the cursor's lock, by outbox_parked_once.
UPDATE outbox_parked_message
SET reason = %(reason)s,
    attempts = %(attempts)s,
    error_class = %(error_class)s,
    error = %(error)s,
    traceback = %(traceback)s,
    first_failed_at = COALESCE(first_failed_at, clock_timestamp()),
    last_failed_at = clock_timestamp()
WHERE "group" = %(group)s AND position = %(position)s

-- name: forget_parked
-- Under lock_cursors: these messages are handled again from the log.
DELETE FROM outbox_parked_message
WHERE "group" = %(group)s
  AND channel = %(channel)s
  AND slot BETWEEN %(slot_from)s AND %(slot_to)s
  AND position > %(position)s

-- name: discard_parked
-- Under lock_cursors, by outbox_parked_once; messages below counted_from are not counted there.
-- Returns the keys that have no other parked message.
WITH dropped AS (
    DELETE FROM outbox_parked_message
    WHERE "group" = %(group)s AND position = ANY(%(positions)s::bigint[])
    RETURNING "group", channel, slot, key, position
), counted AS (
    SELECT c.id, count(*) AS parked, count(*) FILTER (WHERE d.position > c.counted_from) AS skipped
    FROM dropped AS d
    JOIN outbox_cursor AS c
        ON c."group" = d."group" AND c.channel = d.channel
       AND d.slot BETWEEN c.slot_from AND c.slot_to
    GROUP BY c.id
), changed AS (
    UPDATE outbox_cursor AS c
    SET parked = c.parked - counted.parked, skipped = c.skipped + counted.skipped
    FROM counted
    WHERE c.id = counted.id
)
SELECT DISTINCT d.channel, d.key
FROM dropped AS d
WHERE d.key IS NOT NULL AND NOT EXISTS (
    SELECT
    FROM outbox_parked_message AS p
    WHERE p."group" = d."group" AND p.channel = d.channel AND p.slot = d.slot AND p.key = d.key
      AND p.position <> ALL(%(positions)s::bigint[])
)
