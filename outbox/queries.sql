-- The statements that the outbox runs, by name. Parameters are %(name)s.

-- name: append_message
-- Takes the floor of the transaction (trigger) and waits for nobody.
INSERT INTO outbox_message (channel, key, type, payload, headers)
VALUES (
    %(channel)s,
    %(key)s,
    %(type)s,
    %(payload)s::jsonb,
    outbox_context() || %(headers)s::jsonb
)
RETURNING position

-- name: append_messages
-- One row per element of a JSON array, positions in its order; floor and waiting as above.
INSERT INTO outbox_message (channel, key, type, payload, headers)
SELECT
    draft.channel,
    draft.key,
    draft.type,
    draft.payload,
    CASE WHEN draft.headers IS NULL THEN outbox_context()
         ELSE outbox_context() || draft.headers END
FROM json_to_recordset(%(messages)s::json)
    AS draft (channel text, key text, type text, payload jsonb, headers jsonb)
RETURNING position

-- name: read_horizon
-- Reads the sequence and the lock table; takes no lock. Never together with the rows.
SELECT outbox_horizon(%(count_own_floor)s)

-- name: read_last_position
-- Reads the sequence as it is now.
SELECT outbox_last_position()

-- name: read_messages
-- Walks outbox_message_by_channel, filtering slots inside the index; takes no lock.
SELECT position, key, type, payload::text, headers::text, created_at::text
FROM outbox_read(
    %(channel)s, %(after)s, %(until)s, %(slot_from)s, %(slot_to)s, %(most)s
)

-- name: lock_group_shape
-- Serialises whoever creates, splits or merges the ranges of a group in a channel.
SELECT pg_advisory_xact_lock(hashtextextended('outbox ' || %(group)s || ' ' || %(channel)s, 0))

-- name: create_cursors
-- Under lock_group_shape; does nothing when the group has a cursor in the channel.
INSERT INTO outbox_cursor
    ("group", channel, slot_from, slot_to, position, base_position, seen_position)
SELECT
    %(group)s, %(channel)s, slots.first, slots.last, %(position)s, %(position)s, %(position)s
FROM unnest(%(slots_from)s::smallint[], %(slots_to)s::smallint[]) AS slots (first, last)
WHERE NOT EXISTS (
    SELECT FROM outbox_cursor WHERE "group" = %(group)s AND channel = %(channel)s
)

-- name: claim_cursor
-- Locks one cursor row until commit and skips locked ones; the search for a pending message
-- walks outbox_message_by_channel.
SELECT
    id, "group", channel, slot_from, slot_to, position, generation, seen_position, parked,
    attempts, rate, extract(epoch FROM clock_timestamp() - updated_at)::float8,
    extract(epoch FROM clock_timestamp() - failed_since)::float8
FROM outbox_cursor
WHERE ("group", channel) IN (SELECT * FROM unnest(%(groups)s::text[], %(channels)s::text[]))
  AND position < %(horizon)s
  AND (retry_at IS NULL OR retry_at <= clock_timestamp())
  AND (paused_until IS NULL OR paused_until <= clock_timestamp())
  AND (leased_until IS NULL OR leased_until <= clock_timestamp())
  AND outbox_pending(channel, position, %(horizon)s, slot_from, slot_to)
ORDER BY served_at
LIMIT 1
FOR UPDATE SKIP LOCKED

-- name: advance_cursor
-- The row is locked by the claim.
UPDATE outbox_cursor
SET position = %(position)s,
    seen_position = GREATEST(seen_position, %(position)s),
    processed = processed + %(processed)s,
    skipped = skipped + %(skipped)s,
    parked = parked + %(parked)s,
    rate = %(rate)s,
    attempts = %(attempts)s,
    failed_since = CASE WHEN %(attempts)s = 0 THEN NULL
                        WHEN %(attempts)s = 1 THEN clock_timestamp()
                        ELSE failed_since END,
    retry_at = clock_timestamp() + make_interval(secs => %(retry_delay)s),
    last_error = %(last_error)s,
    served_at = clock_timestamp(),
    updated_at = clock_timestamp()
WHERE id = %(id)s AND generation = %(generation)s

-- name: settle_cursors
-- Locks the idle cursors it moves, skipping locked ones.
UPDATE outbox_cursor
SET position = %(horizon)s, seen_position = GREATEST(seen_position, %(horizon)s)
WHERE id IN (
    SELECT id
    FROM outbox_cursor
    WHERE "group" = ANY(%(groups)s::text[])
      AND position < %(horizon)s - %(idle_gap)s
      AND (leased_until IS NULL OR leased_until <= clock_timestamp())
      AND NOT outbox_pending(channel, position, %(horizon)s, slot_from, slot_to)
    FOR UPDATE SKIP LOCKED
)

-- name: next_retry
-- Reads the few cursor rows of the groups.
SELECT extract(epoch FROM min(due.at) - clock_timestamp())
FROM outbox_cursor
CROSS JOIN LATERAL (
    SELECT unnest(ARRAY[retry_at, paused_until, leased_until]) AS at
) AS due
WHERE "group" = ANY(%(groups)s::text[]) AND due.at > clock_timestamp()

-- name: set_application_name
-- Shows in pg_stat_activity who works for which groups.
SELECT set_config('application_name', %(name)s, false)

-- name: take_idle_locks
-- Session-level shared locks; a try, so that it never waits behind a publisher's look.
SELECT channel
FROM unnest(%(channels)s::text[]) AS idle (channel)
WHERE pg_try_advisory_lock_shared(outbox_idle_key(channel))

-- name: drop_idle_locks
-- Releases what take_idle_locks returned.
SELECT pg_advisory_unlock_shared(outbox_idle_key(channel))
FROM unnest(%(channels)s::text[]) AS idle (channel)

-- name: signal_names
-- The NOTIFY channels to LISTEN to.
SELECT outbox_signal_name(channel) FROM unnest(%(channels)s::text[]) AS heard (channel)

-- name: see_backend
-- The server's idea of who we are; another one than the driver's means a pooler.
SELECT pg_backend_pid()

-- name: describe_log
-- Reads the catalog; the cache is null and all triggers are missing before the migration.
SELECT
    current_setting('server_version_num')::integer,
    (SELECT seqcache FROM pg_sequence
     WHERE seqrelid = to_regclass('outbox_message_position_seq')),
    ARRAY(
        SELECT needed.function
        FROM unnest(
            ARRAY['outbox_take_floor', 'outbox_seal_and_signal', 'outbox_refuse_rewrite']
        ) AS needed (function)
        WHERE NOT EXISTS (
            SELECT
            FROM pg_trigger
            JOIN pg_proc ON pg_proc.oid = tgfoid
            WHERE tgrelid = to_regclass('outbox_message')
              AND proname = needed.function
              AND tgenabled IN ('O', 'A')
        )
    )

-- name: lock_cursors
-- Holds the cursor rows of a group until commit; waits for the batches in hand.
SELECT id FROM outbox_cursor
WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[])
ORDER BY id
FOR UPDATE

-- name: see_cursors
-- The same rows, without a lock.
SELECT id FROM outbox_cursor
WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[])

-- name: plan_reset
-- Counts by outbox_message_by_channel what lies between the old and the new position.
SELECT
    id, channel, slot_from, slot_to, position, %(position)s::bigint,
    (
        SELECT count(*)
        FROM outbox_message AS m
        WHERE m.channel = outbox_cursor.channel
          AND m.position > LEAST(outbox_cursor.position, %(position)s)
          AND m.position <= GREATEST(outbox_cursor.position, %(position)s)
          AND m.slot BETWEEN slot_from AND slot_to
    )
FROM outbox_cursor
WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[])
ORDER BY channel, slot_from

-- name: forget_parked_after
-- Under lock_cursors: these messages are handled again from the log.
DELETE FROM outbox_parked_message
WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[]) AND position > %(position)s

-- name: reset_cursors
-- Under lock_cursors.
UPDATE outbox_cursor
SET position = %(position)s,
    base_position = %(position)s,
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
    failed_since = NULL,
    retry_at = NULL,
    last_error = '',
    lease_token = lease_token + 1,
    leased_until = NULL,
    updated_at = clock_timestamp()
WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[])

-- name: list_groups
-- Reads the cursors; counts pending messages by outbox_message_by_channel, up to a bound.
SELECT
    "group",
    min(position),
    sum((
        SELECT count(*)
        FROM (
            SELECT
            FROM outbox_message AS m
            WHERE m.channel = outbox_cursor.channel
              AND m.position > outbox_cursor.position
              AND m.slot BETWEEN slot_from AND slot_to
            LIMIT %(bound)s
        ) AS pending
    ))::bigint,
    sum(processed)::bigint,
    max(attempts),
    max(last_error),
    max(updated_at)
FROM outbox_cursor
GROUP BY "group"
ORDER BY "group"

