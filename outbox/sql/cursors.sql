-- Cursors: create, claim, advance, lease.

-- name: lock_group_shape
-- Serialises sessions that create, split or merge the ranges of a group in a channel.
SELECT pg_advisory_xact_lock(
    outbox_lock_key(20299, jsonb_build_array(%(group)s::text, %(channel)s::text)::text)
)

-- name: create_cursors
-- Under lock_group_shape; does nothing when the group has a cursor in the channel.
INSERT INTO outbox_cursor
    ("group", channel, slot_from, slot_to, position, counted_from, max_position)
SELECT
    %(group)s::text, %(channel)s::text, slots.first, slots.last,
    begin.at, begin.at, begin.at
FROM unnest(%(slots_from)s::smallint[], %(slots_to)s::smallint[]) AS slots (first, last)
CROSS JOIN LATERAL (
    SELECT GREATEST(%(position)s, (
        SELECT removed_to FROM outbox_channel_retention WHERE channel = %(channel)s
    )) AS at
) AS begin
WHERE NOT EXISTS (
    SELECT FROM outbox_cursor WHERE "group" = %(group)s AND channel = %(channel)s
)

-- name: list_channels
-- Reads the cursor rows of the group.
SELECT DISTINCT channel FROM outbox_cursor WHERE "group" = %(group)s ORDER BY channel

-- name: claim_batch
-- Reads the horizons, then locks one cursor row until commit and skips locked ones; the search for
-- its messages walks outbox_message_by_channel.
SELECT *
FROM outbox_claim_v1(
    %(groups)s, %(channels)s, %(horizons)s, %(log)s, %(last_position)s, %(end_position)s,
    CASE WHEN %(without_own)s THEN pg_backend_pid() END, %(reads_log)s, %(is_scan)s,
    %(queue_ids)s, %(queue_numbers)s, %(idle_ids)s, %(idle_generations)s, %(idle_numbers)s,
    %(idle_first)s, %(idle_last)s, %(most)s, %(most_bytes)s
)

-- name: advance_cursor
-- The claim holds the row's lock; sends a NOTIFY only while a session waits for the group.
SELECT outbox_advance_v1(
    %(id)s, %(generation)s, %(lease_token)s, %(of_position)s, %(transaction)s, %(position)s,
    %(processed)s, %(skipped)s, %(parked)s, %(rate)s,
    %(attempts)s, %(failed_position)s, %(retry_delay)s, %(last_error)s, %(lease)s
)

-- name: claim_window
-- Walks outbox_message_by_channel once for several ranges; locks the cursor rows of those that have
-- a message until commit, and skips locked ones.
SELECT *
FROM outbox_claim_window_v1(
    %(channel)s, %(horizon)s, %(log)s, %(ids)s, %(generations)s, %(first)s, %(last)s, %(after)s,
    %(most)s, %(most_bytes)s
)

-- name: advance_cursors
-- The same for several rows of one claim, of whose messages none has failed, in one statement.
WITH written AS (
    UPDATE outbox_cursor AS c
    SET position = done.to_position,
        max_position = GREATEST(c.max_position, done.to_position),
        processed = c.processed + done.processed,
        skipped = c.skipped + done.skipped,
        rate = done.rate,
        retry_at = NULL,
        last_error = '',
        leased_until = NULL,
        last_served_at = transaction_timestamp(),
        last_commit_at = clock_timestamp()
    FROM unnest(
        %(id)s::bigint[], %(generation)s::integer[], %(lease_token)s::bigint[],
        %(of_position)s::bigint[], %(position)s::bigint[], %(processed)s::bigint[],
        %(skipped)s::bigint[], %(rate)s::float8[]
    ) AS done (
        id, generation, lease_token, of_position, to_position, processed, skipped, rate
    )
    CROSS JOIN LATERAL (
        SELECT n.ctid FROM outbox_cursor AS n WHERE n.id <= done.id ORDER BY n.id DESC LIMIT 1
    ) AS newest
    WHERE c.ctid = newest.ctid
      AND c.id = done.id
      AND c.generation = done.generation
      AND c.lease_token = done.lease_token
      AND c.position = done.of_position
      AND %(transaction)s = pg_current_xact_id_if_assigned()::text
    RETURNING c."group"
)
SELECT count(*) = %(count)s AND outbox_signal_waiters(max("group")) IS NOT NULL FROM written

-- name: settle_cursors
-- Locks the cursors it moves, which are known to be idle, and skips locked ones. Moves none when the
-- log was emptied since that was learnt.
UPDATE outbox_cursor AS moved
SET position = known.horizon, max_position = GREATEST(moved.max_position, known.horizon)
FROM (
    SELECT c.id, idle.horizon
    FROM unnest(%(idle_ids)s::bigint[], %(idle_generations)s::integer[], %(idle_horizons)s::bigint[])
        AS idle (id, generation, horizon)
    JOIN outbox_cursor AS c ON c.id = idle.id AND c.generation = idle.generation
    WHERE c.position < idle.horizon - %(idle_gap)s
      AND outbox_log_identity_v1() = %(log)s
      AND outbox_batch_limit(c, idle.horizon) = idle.horizon
    FOR UPDATE OF c SKIP LOCKED
) AS known
WHERE moved.id = known.id

-- name: next_look
-- Reads the few cursor rows of the groups: the seconds until the next retry, resume or lease end,
-- whether a range with messages was passed over because another session holds its row, and whether
-- a slot of their channels has no cursor.
SELECT
    extract(epoch FROM min(due.at) - clock_timestamp()),
    COALESCE(bool_or(
        outbox_batch_limit(c, mine.horizon) > c.position
        AND (c.id, c.generation) NOT IN (
            SELECT * FROM unnest(%(idle_ids)s::bigint[], %(idle_generations)s::integer[])
        )
    ), false),
    COALESCE(sum(c.slot_to - c.slot_from + 1), 0) < 32768 * cardinality(%(groups)s::text[])
FROM unnest(%(groups)s::text[], %(channels)s::text[], %(horizons)s::bigint[])
    AS mine ("group", channel, horizon)
CROSS JOIN LATERAL outbox_ranges_v1(mine."group", mine.channel) AS c
CROSS JOIN LATERAL (
    SELECT min(each.at) AS at
    FROM unnest(ARRAY[c.retry_at, c.paused_until, c.leased_until, c.hold_until]) AS each (at)
    WHERE each.at > clock_timestamp()
) AS due

-- name: lock_cursor
-- Locks one cursor row by its primary key; waits for the batch that holds it.
SELECT
    pg_current_xact_id()::text, outbox_claim_of(c, c.position),
    COALESCE(leased_until > clock_timestamp(), false)
FROM outbox_cursor AS c
WHERE id = %(id)s
FOR UPDATE

-- name: lock_slot
-- Locks the cursor row that covers a slot; waits for the batch that holds it. No row when the range
-- was split or merged meanwhile: retry.
SELECT pg_current_xact_id()::text, outbox_claim_of(c, c.position)
FROM outbox_cursor AS c
WHERE "group" = %(group)s AND channel = %(channel)s AND %(slot)s BETWEEN slot_from AND slot_to
FOR UPDATE

-- name: see_claim
-- Whether the transaction that locked the cursor row is the present one, and the row is unchanged.
-- Reads the row by its primary key.
SELECT
    pg_current_xact_id_if_assigned()::text = %(transaction)s,
    EXISTS (
        SELECT FROM outbox_cursor
        WHERE id = %(id)s
          AND generation = %(generation)s
          AND lease_token = %(lease_token)s
          AND position = %(position)s
    )

-- name: is_committed
-- What became of a transaction of this server; null once the server has forgotten it.
SELECT pg_xact_status(%(transaction)s::xid8) = 'committed'

-- name: wait_for_lock
-- Bounds the waits for locks in this transaction; milliseconds.
SELECT set_config('lock_timeout', %(wait)s, true)

-- name: next_pending
-- Walks outbox_message_by_channel to the next message of a range.
SELECT position FROM outbox_read(
    %(channel)s, %(after)s, %(until)s, %(slot_from)s, %(slot_to)s, 1
)

-- name: is_next
-- By outbox_message_by_channel: whether nothing of the range lies before a position.
SELECT NOT outbox_pending(
    %(channel)s, %(after)s, %(position)s - 1, %(slot_from)s, %(slot_to)s
)

-- name: take_lease
-- The row is locked by the claim.
UPDATE outbox_cursor
SET lease_token = lease_token + 1,
    leased_until = clock_timestamp() + make_interval(secs => %(lease)s),
    leased_by = %(holder)s
WHERE id = %(id)s
RETURNING lease_token

-- name: renew_lease
-- Locks the cursor row by its primary key; finds none when the lease ended or another process took it.
UPDATE outbox_cursor
SET leased_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(id)s
  AND generation = %(generation)s
  AND lease_token = %(lease_token)s
  AND leased_until IS NOT NULL

-- name: has_cursor
-- Reads the few cursor rows of the group.
SELECT EXISTS (SELECT FROM outbox_cursor WHERE "group" = %(group)s)

-- name: see_cursors
-- The same rows, without a lock.
SELECT id, channel, slot_from, slot_to, position, paused_until
FROM outbox_cursor
WHERE "group" = %(group)s
  AND (%(channels)s::text[] IS NULL OR channel = ANY(%(channels)s::text[]))
ORDER BY id

-- name: lock_cursors
-- Holds the cursor rows of a group until commit; waits for the current batches.
SELECT id, channel, slot_from, slot_to, position, paused_until
FROM outbox_cursor
WHERE "group" = %(group)s
  AND (%(channels)s::text[] IS NULL OR channel = ANY(%(channels)s::text[]))
ORDER BY id
FOR UPDATE
