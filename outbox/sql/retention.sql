-- Retention: who has read what, what goes, what was removed, erased or restored.

-- name: hold_off_removal
-- Until commit: shared by all that read or move cursors; no segment is removed meanwhile.
SELECT outbox_stand_aside_v1()

-- name: note_maintenance
-- One row: when maintenance ended last, and why it failed if it did.
INSERT INTO outbox_maintenance AS m (id, succeeded_at, failed_at, error)
VALUES (
    1,
    CASE WHEN %(error)s = '' THEN clock_timestamp() END,
    CASE WHEN %(error)s <> '' THEN clock_timestamp() END,
    %(error)s
)
ON CONFLICT (id) DO UPDATE
SET succeeded_at = COALESCE(EXCLUDED.succeeded_at, m.succeeded_at),
    failed_at = EXCLUDED.failed_at,
    error = EXCLUDED.error
RETURNING id

-- name: see_maintenance
-- One row.
SELECT succeeded_at, failed_at, error FROM outbox_maintenance WHERE id = 1

-- name: cursors_behind_retention
-- Reads the cursor rows: those before the first message that their channel still has.
SELECT DISTINCT c."group", c.channel, r.removed_to
FROM outbox_cursor AS c
JOIN outbox_channel_retention AS r ON r.channel = c.channel AND c.position < r.removed_to
ORDER BY 1, 2

-- name: has_streams
-- One step into the primary key of the streams.
SELECT EXISTS (SELECT FROM outbox_stream WHERE channel = %(channel)s)

-- name: count_removable
-- Reads one segment: how many messages it has, and how many have a newer one of their key.
SELECT count(*), count(*) FILTER (
    WHERE m.key IS NULL AND m.channel = ANY(%(keyless)s::text[])
       OR m.key IS NOT NULL AND EXISTS (
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
RETURNING removed_to

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
      OR m.channel = ANY(%(keyless)s::text[]) AND m.key IS NULL
      OR m.channel = ANY(%(latest)s::text[]) AND m.key IS NOT NULL AND EXISTS (
          SELECT FROM outbox_message AS newer
          WHERE newer.channel = m.channel AND newer.slot = m.slot AND newer.key = m.key
            AND newer.position > m.position AND newer.position <= %(horizon)s
      )
  )
ORDER BY m.position
LIMIT %(most)s

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

-- name: vacuum_cursors
-- Rewrites the small table of cursors, so that its file holds no old error text; locks it meanwhile.
VACUUM (FULL) outbox_cursor

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

-- name: note_restored
-- Under lock_log: the channel is whole again from the first position of a segment on.
UPDATE outbox_channel_retention AS r
SET removed_to = %(lower)s - 1
WHERE r.removed_to < %(upper)s
  AND r.removed_to >= %(lower)s
