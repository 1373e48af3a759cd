-- Streams: append at a version, read in order.

-- name: append_to_stream
-- Locks the row of the stream, then takes the floor: writers of one stream wait for each other.
SELECT outbox_append_to_stream_v1(
    %(channel)s, %(key)s, %(type)s, %(payload)s, %(headers)s, %(expected)s,
    %(guarded)s
)

-- name: stream_version
-- One row by the primary key.
SELECT version FROM outbox_stream WHERE channel = %(channel)s AND key = %(key)s

-- name: lock_stream
-- Locks the row of a stream until commit, creating it when there is none.
SELECT outbox_lock_stream_v1(%(channel)s, %(key)s, %(for_write)s)

-- name: read_stream
-- Walks the primary key of stream messages, and finds each message by the primary key of the log.
SELECT
    m.position, m.key, m.type, m.payload::text, m.headers::text, m.created_at::text, s.version
FROM outbox_stream_message AS s
JOIN outbox_message AS m ON m.position = s.position
WHERE s.channel = %(channel)s AND s.key = %(key)s
  AND s.version > %(after)s AND s.version <= %(until)s
ORDER BY s.version
LIMIT %(most)s

-- name: fold_stream
-- The same, without what a fold does not need; headers: null where there are none but the version.
SELECT
    m.position, m.type, m.payload::text, NULLIF(m.headers - 'stream_version', '{}')::text, s.version
FROM outbox_stream_message AS s
JOIN outbox_message AS m ON m.position = s.position
WHERE s.channel = %(channel)s AND s.key = %(key)s
  AND s.version > %(after)s AND s.version <= %(until)s
ORDER BY s.version
LIMIT %(most)s

-- name: stream_version_at
-- Walks the primary key of stream messages backwards to the last message published until a time.
SELECT COALESCE((
    SELECT s.version
    FROM outbox_stream_message AS s
    JOIN outbox_message AS m ON m.position = s.position
    WHERE s.channel = %(channel)s AND s.key = %(key)s AND m.created_at <= %(time)s
    ORDER BY s.version DESC
    LIMIT 1
), 0)

-- name: list_streams
-- Walks the primary key of the streams of a channel.
SELECT key, version
FROM outbox_stream
WHERE channel = %(channel)s AND key > %(after)s AND version > 0
ORDER BY key
LIMIT %(most)s

-- name: guard_stream
-- Reads the row of the stream; counts this transaction's own messages of it from now on.
SELECT version, own_appends FROM outbox_guard_stream_v1(%(channel)s, %(key)s)
