-- The log: append, read, look things up.

-- name: append_message
-- Takes the floor of the channel (trigger) and waits for no other session.
SELECT outbox_publish_v1(
    %(channel)s, %(key)s, %(type)s, %(payload)s::json, %(headers)s::jsonb
)

-- name: append_messages
-- One row per element of a JSON array, positions in its order; floors of its channels, as above.
SELECT outbox_publish_many_v1(%(messages)s::json, %(channels)s::text[])

-- name: set_context
-- Sets what outbox_context() returns until the transaction, or savepoint, ends; '' for nothing.
SELECT set_config('outbox.context', %(context)s, true)

-- name: read_last_position
-- Reads the sequence as it is now.
SELECT outbox_last_position()

-- name: read_horizon
-- Reads the sequence and the lock table; takes no lock. Never together with the rows.
SELECT outbox_horizon()

-- name: read_horizon_within
-- The same, as if this session held no floor.
SELECT outbox_horizon_beside(pg_backend_pid())

-- name: read_horizon_of
-- The same, of some channels; without_own: as if this session held no floor.
SELECT LEAST(last_position, (SELECT min(horizon) FROM unnest(horizons) AS of_one (horizon)))
FROM outbox_horizons_v1(
    %(channels)s::text[], CASE WHEN %(without_own)s THEN pg_backend_pid() END
)

-- name: read_messages
-- Walks outbox_message_by_channel, filtering slots inside the index; takes no lock.
SELECT position, key, type, payload::text, headers::text, created_at::text
FROM outbox_read(
    %(channel)s, %(after)s, %(until)s, %(slot_from)s, %(slot_to)s, %(most)s
)

-- name: see_message
-- One row by the primary key.
SELECT channel, slot, key, type FROM outbox_message WHERE position = %(position)s

-- name: first_message
-- One row by the primary key: the first message from a position on.
SELECT position, created_at
FROM outbox_message
WHERE position >= %(position)s
ORDER BY position
LIMIT 1

-- name: first_place_of_time
-- Halves the positions by the primary key: where times of publication reach a time.
WITH RECURSIVE search (low, high) AS (
    SELECT %(low)s::bigint, %(high)s::bigint
    UNION ALL
    SELECT
        CASE WHEN is_before THEN found.position + 1 ELSE low END,
        CASE WHEN is_before THEN high ELSE middle END
    FROM search
    CROSS JOIN LATERAL (SELECT (low + high) / 2) AS half (middle)
    LEFT JOIN LATERAL (
        SELECT position, created_at
        FROM outbox_message
        WHERE position >= middle
        ORDER BY position
        LIMIT 1
    ) AS found ON true
    CROSS JOIN LATERAL (
        SELECT COALESCE(found.position < high AND found.created_at < %(time)s, false)
    ) AS place (is_before)
    WHERE low < high
)
SELECT low FROM search WHERE low >= high

-- name: first_message_since
-- Walks the primary key from a position to the first message of a time.
SELECT position
FROM outbox_message
WHERE position >= %(position)s AND created_at >= %(time)s
ORDER BY position
LIMIT 1

-- name: last_visible
-- One step into outbox_message_by_channel per channel, from its end.
SELECT COALESCE(max(last.position), 0)
FROM unnest(%(channels)s::text[]) AS of (channel)
CROSS JOIN LATERAL (
    SELECT max(position) AS position FROM outbox_message WHERE channel = of.channel
) AS last

-- name: count_moves
-- Walks outbox_message_by_channel for each range over at most `most` messages of the channel and one
-- more; returns those of the range, and whether the walk ended before the range did. Takes no lock.
SELECT counted.*
FROM unnest(
    %(channels)s::text[], %(first_slots)s::int[], %(last_slots)s::int[],
    %(starts)s::bigint[], %(ends)s::bigint[]
) WITH ORDINALITY AS moves (channel, first_slot, last_slot, after, until, number)
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE slot BETWEEN moves.first_slot AND moves.last_slot),
        count(*) > %(most)s::bigint
    FROM (
        SELECT m.slot
        FROM outbox_message AS m
        WHERE m.channel = moves.channel AND m.position > moves.after AND m.position <= moves.until
        ORDER BY m.position
        LIMIT %(most)s::bigint + 1
    ) AS walked
) AS counted
ORDER BY number

-- name: read_log
-- Walks outbox_message_by_channel, or the primary key when no channel is given.
SELECT position, channel, key, type, payload::text, headers::text, created_at::text
FROM outbox_message
WHERE position > %(after)s
  AND position <= %(until)s
  AND (%(channel)s::text IS NULL OR channel = %(channel)s)
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(key)s::text IS NULL
       OR slot = hashtextextended(%(key)s, 0) & 32767 AND key = %(key)s)
ORDER BY position
LIMIT %(most)s

-- name: read_log_end
-- The same, from the end backwards.
SELECT position, channel, key, type, payload::text, headers::text, created_at::text
FROM outbox_message
WHERE position > %(after)s
  AND position <= %(until)s
  AND (%(channel)s::text IS NULL OR channel = %(channel)s)
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(key)s::text IS NULL
       OR slot = hashtextextended(%(key)s, 0) & 32767 AND key = %(key)s)
ORDER BY position DESC
LIMIT %(most)s

-- name: read_clock
-- The database's clock.
SELECT clock_timestamp()

-- name: walk_log_back
-- Walks outbox_message_by_channel, or the primary key, back from a position over at most `walked`
-- rows; returns what fits of them, the last first, and in each row where the walk ended. Key and type
-- are compared after the walk: with them in it, a rare one would have it read the whole log.
WITH walked AS MATERIALIZED (
    SELECT position, channel, key, type, created_at
    FROM outbox_message
    WHERE position < %(start)s AND (%(channel)s::text IS NULL OR channel = %(channel)s)
    ORDER BY position DESC
    LIMIT %(walked)s
), fitting AS (
    SELECT position, channel, key, type, created_at
    FROM walked
    WHERE (%(type)s::text IS NULL OR type = %(type)s) AND (%(key)s::text IS NULL OR key = %(key)s)
    ORDER BY position DESC
    LIMIT %(most)s
)
SELECT ended.position, ended.rows, fitting.*
FROM (SELECT min(position) AS position, count(*) AS rows FROM walked) AS ended
LEFT JOIN fitting ON true
ORDER BY fitting.position DESC

-- name: walk_log_forward
-- The same, forward from a position.
WITH walked AS MATERIALIZED (
    SELECT position, channel, key, type, created_at
    FROM outbox_message
    WHERE position > %(start)s AND (%(channel)s::text IS NULL OR channel = %(channel)s)
    ORDER BY position
    LIMIT %(walked)s
), fitting AS (
    SELECT position, channel, key, type, created_at
    FROM walked
    WHERE (%(type)s::text IS NULL OR type = %(type)s) AND (%(key)s::text IS NULL OR key = %(key)s)
    ORDER BY position
    LIMIT %(most)s
)
SELECT ended.position, ended.rows, fitting.*
FROM (SELECT max(position) AS position, count(*) AS rows FROM walked) AS ended
LEFT JOIN fitting ON true
ORDER BY fitting.position

-- name: catalogue_types
-- Reads the whole log.
SELECT channel, type, count(*), max(created_at)
FROM outbox_message
GROUP BY channel, type

-- name: see_readers
-- Reads the cursors whose range covers a slot of a channel, and what they parked at a position.
SELECT c."group", c.position, p.id, COALESCE(p.reason, ''), COALESCE(p.error, '')
FROM outbox_cursor AS c
LEFT JOIN outbox_parked_message AS p ON p."group" = c."group" AND p.position = %(position)s
WHERE c.channel = %(channel)s AND %(slot)s BETWEEN c.slot_from AND c.slot_to
ORDER BY c."group"
