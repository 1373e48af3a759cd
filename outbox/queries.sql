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
SELECT outbox_horizon()

-- name: read_horizon_within
-- The same, as if this session held no floor.
SELECT outbox_horizon_beside(pg_backend_pid())

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
    %(group)s::text, %(channel)s::text, slots.first, slots.last,
    %(position)s, %(position)s, %(position)s
FROM unnest(%(slots_from)s::smallint[], %(slots_to)s::smallint[]) AS slots (first, last)
WHERE NOT EXISTS (
    SELECT FROM outbox_cursor WHERE "group" = %(group)s AND channel = %(channel)s
)

-- name: list_channels
-- Reads the cursor rows of the group.
SELECT DISTINCT channel FROM outbox_cursor WHERE "group" = %(group)s ORDER BY channel

-- name: see_shape
-- Reads the cursor rows of one channel; the search for pending messages walks
-- outbox_message_by_channel.
SELECT
    id, slot_from, slot_to, position, seen_position,
    leased_until IS NOT NULL AND leased_until > clock_timestamp(),
    COALESCE(GREATEST(retry_at, paused_until) > clock_timestamp(), false),
    hold_position IS NOT NULL
        AND NOT outbox_pending(channel, position, hold_position, slot_from, slot_to)
FROM outbox_cursor
WHERE "group" = %(group)s AND channel = %(channel)s AND slot_from BETWEEN %(first)s AND %(last)s

-- name: lock_shape
-- Under lock_group_shape; holds the cursor rows until commit and waits for the batches in hand.
SELECT
    id, slot_from, slot_to, position, seen_position,
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
    "group", channel, slot_from, slot_to, position, generation, base_position, seen_position,
    rate, attempts, failed_position, failed_since, retry_at, last_error, paused_until,
    served_at, updated_at
)
SELECT
    "group", channel, %(slot)s, slot_to, position, generation, base_position, seen_position,
    rate * (slot_to - %(slot)s + 1) / (slot_to - slot_from + 1),
    attempts, failed_position, failed_since, retry_at, last_error, paused_until,
    served_at, updated_at
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
-- Locks the cursor rows that are held for a merge; waits for the batches in hand.
UPDATE outbox_cursor
SET hold_position = NULL, hold_until = NULL
WHERE "group" = %(group)s AND channel = %(channel)s AND hold_until IS NOT NULL

-- name: merge_ranges
-- Under lock_shape, the first of them becomes all of them; they have nothing up to the position.
-- What one part had before it began to count, and another counts, goes to the skipped ones.
WITH parts AS (
    SELECT *, min(base_position) OVER () AS lowest_base
    FROM outbox_cursor
    WHERE id = ANY(%(ids)s::bigint[])
), whole AS (
    SELECT
        max(slot_to) AS slot_to,
        max(seen_position) AS seen_position,
        min(base_position) AS base_position,
        sum(processed) AS processed,
        sum(skipped + (
            SELECT count(*)
            FROM outbox_message AS m
            WHERE m.channel = parts.channel
              AND m.position > lowest_base AND m.position <= base_position
              AND m.slot BETWEEN slot_from AND parts.slot_to
        ) - (
            SELECT count(*)
            FROM outbox_parked_message AS p
            WHERE p."group" = parts."group" AND p.channel = parts.channel
              AND p.position > lowest_base AND p.position <= base_position
              AND p.slot BETWEEN slot_from AND parts.slot_to
        )) AS skipped,
        sum(rate) AS rate,
        max(paused_until) AS paused_until,
        min(served_at) AS served_at,
        max(updated_at) AS updated_at
    FROM parts
), failed AS (
    SELECT attempts, failed_position, failed_since, retry_at, last_error
    FROM parts
    WHERE attempts > 0
    ORDER BY failed_position
    LIMIT 1
)
UPDATE outbox_cursor AS c
SET slot_to = whole.slot_to,
    position = %(position)s,
    seen_position = GREATEST(whole.seen_position, %(position)s),
    base_position = whole.base_position,
    processed = whole.processed,
    skipped = whole.skipped,
    rate = whole.rate,
    attempts = COALESCE(failed.attempts, 0),
    failed_position = failed.failed_position,
    failed_since = failed.failed_since,
    retry_at = failed.retry_at,
    last_error = COALESCE(failed.last_error, ''),
    paused_until = whole.paused_until,
    served_at = whole.served_at,
    updated_at = whole.updated_at
FROM whole LEFT JOIN failed ON true
WHERE c.id = (%(ids)s::bigint[])[1]

-- name: drop_ranges
-- Under lock_shape, after merge_ranges.
DELETE FROM outbox_cursor WHERE id = ANY(%(ids)s::bigint[])

-- name: renew_ranges
-- Under lock_shape: what batches, leases and idle workers know of these ranges is void; a failed
-- message and the parked ones count where their slots are.
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

-- name: describe_ranges
-- Reads the cursor rows and pg_locks; counts by outbox_message_by_channel up to a bound.
SELECT
    seen.channel, slot_from, slot_to, position, backlog.messages, backlog.is_bound, owner,
    CASE WHEN owner <> '' THEN 'working'
         WHEN paused_until > clock_timestamp() THEN 'paused'
         WHEN attempts > 0 THEN 'failing'
         WHEN hold_until > clock_timestamp() AND position >= hold_position THEN 'held'
         WHEN backlog.messages > 0 THEN 'behind'
         ELSE 'idle' END,
    last_error
FROM (
    SELECT *, COALESCE(
        (
            SELECT application_name || ', backend ' || pid
            FROM pg_locks
            JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND objsubid = 2 AND granted
              AND classid::bigint = 20291 AND objid::bigint = outbox_cursor.id
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            LIMIT 1
        ),
        CASE WHEN leased_until > clock_timestamp() THEN leased_by END,
        ''
    ) AS owner
    FROM outbox_cursor
    WHERE "group" = %(group)s AND channel = ANY(%(channels)s::text[])
) AS seen
CROSS JOIN LATERAL outbox_backlog(
    channel, position, slot_from, slot_to, %(bound)s
) AS backlog
ORDER BY channel, slot_from

-- name: claim_batch
-- Locks one cursor row until commit and skips locked ones; the search for its messages walks
-- outbox_message_by_channel. Idle ranges come first, then the claim with its first message.
SELECT *
FROM outbox_claim(
    %(groups)s, %(channels)s, %(horizon)s, %(idle_ids)s, %(idle_generations)s, %(most)s
)

-- name: advance_cursor
-- The row is locked by the claim; sends a NOTIFY only while somebody waits for the group.
SELECT outbox_advance(
    %(id)s, %(generation)s, %(lease_token)s, %(position)s,
    %(processed)s, %(skipped)s, %(parked)s, %(rate)s,
    %(attempts)s, %(failed_position)s, %(retry_delay)s, %(last_error)s, %(lease)s
)

-- name: settle_cursors
-- Locks the cursors it moves, which are known to be idle, and skips locked ones.
UPDATE outbox_cursor
SET position = %(horizon)s, seen_position = GREATEST(seen_position, %(horizon)s)
WHERE id IN (
    SELECT c.id
    FROM outbox_cursor AS c
    WHERE (c.id, c.generation) IN (
        SELECT * FROM unnest(%(idle_ids)s::bigint[], %(idle_generations)s::integer[])
    )
      AND c.position < %(horizon)s::bigint - %(idle_gap)s
      AND outbox_batch_limit(c, %(horizon)s) = %(horizon)s
    FOR UPDATE SKIP LOCKED
)

-- name: read_slots
-- Walks outbox_message_by_channel once per channel; takes no lock.
SELECT channel, outbox_slots(channel, %(after)s, %(until)s)
FROM unnest(%(channels)s::text[]) AS of_group (channel)

-- name: next_retry
-- Reads the few cursor rows of the groups.
SELECT extract(epoch FROM min(due.at) - clock_timestamp())
FROM outbox_cursor
CROSS JOIN LATERAL (
    SELECT unnest(ARRAY[retry_at, paused_until, leased_until, hold_until]) AS at
) AS due
WHERE "group" = ANY(%(groups)s::text[]) AND due.at > clock_timestamp()

-- name: set_application_name
-- Shows in pg_stat_activity who works for which groups.
SELECT set_config('application_name', %(name)s, false)

-- name: notice_dead_clients
-- The server ends a statement that waits for a lock on behalf of a worker that was killed.
SELECT set_config('client_connection_check_interval', '1000', false)

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

-- name: has_cursor
-- Reads the few cursor rows of the group.
SELECT EXISTS (SELECT FROM outbox_cursor WHERE "group" = %(group)s)

-- name: lock_cursors
-- Holds the cursor rows of a group until commit; waits for the batches in hand.
SELECT id, channel, slot_from, slot_to, position, paused_until
FROM outbox_cursor
WHERE "group" = %(group)s
  AND (%(channels)s::text[] IS NULL OR channel = ANY(%(channels)s::text[]))
ORDER BY id
FOR UPDATE

-- name: see_cursors
-- The same rows, without a lock.
SELECT id, channel, slot_from, slot_to, position, paused_until
FROM outbox_cursor
WHERE "group" = %(group)s
  AND (%(channels)s::text[] IS NULL OR channel = ANY(%(channels)s::text[]))
ORDER BY id

-- name: count_between
-- Walks outbox_message_by_channel, filtering slots inside the index; takes no lock.
SELECT count(*)
FROM outbox_message
WHERE channel = %(channel)s
  AND position > %(after)s
  AND position <= %(until)s
  AND slot BETWEEN %(slot_from)s AND %(slot_to)s

-- name: forget_parked
-- Under lock_cursors: these messages are handled again from the log.
DELETE FROM outbox_parked_message
WHERE "group" = %(group)s
  AND channel = %(channel)s
  AND slot BETWEEN %(slot_from)s AND %(slot_to)s
  AND position > %(position)s

-- name: move_cursor
-- Under lock_cursors; a batch or lease from before is refused by generation and token.
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
    failed_position = NULL,
    failed_since = NULL,
    retry_at = NULL,
    last_error = '',
    lease_token = lease_token + 1,
    leased_until = NULL,
    hold_position = NULL,
    hold_until = NULL,
    updated_at = clock_timestamp()
WHERE id = %(id)s

-- name: pause_cursors
-- Under lock_cursors.
UPDATE outbox_cursor SET paused_until = %(until)s WHERE id = ANY(%(ids)s::bigint[])

-- name: resume_cursors
-- Under lock_cursors; the end of the pause stays: how long a worker takes to come counts from it.
UPDATE outbox_cursor
SET paused_until = clock_timestamp()
WHERE id = ANY(%(ids)s::bigint[]) AND paused_until > clock_timestamp()

-- name: skip_message
-- Under lock_cursors: moves one range past its next message.
UPDATE outbox_cursor
SET position = %(position)s,
    seen_position = GREATEST(seen_position, %(position)s),
    generation = generation + 1,
    skipped = skipped + 1,
    attempts = 0,
    failed_position = NULL,
    failed_since = NULL,
    retry_at = NULL,
    last_error = '',
    lease_token = lease_token + 1,
    leased_until = NULL,
    updated_at = clock_timestamp()
WHERE id = %(id)s
RETURNING outbox_signal_waiters("group")

-- name: wake_workers
-- A worker that skipped a locked cursor may sleep; it looks again when this commits.
SELECT pg_notify(outbox_signal_name(channel), '')
FROM unnest(%(channels)s::text[]) AS changed (channel)

-- name: see_message
-- One row by the primary key.
SELECT channel, slot, key, type FROM outbox_message WHERE position = %(position)s

-- name: next_pending
-- Walks outbox_message_by_channel to the next message of a range.
SELECT position FROM outbox_read(
    %(channel)s, %(after)s, %(until)s, %(slot_from)s, %(slot_to)s, 1
)

-- name: first_message
-- One row by the primary key: the first message from a position on.
SELECT position, created_at
FROM outbox_message
WHERE position >= %(position)s
ORDER BY position
LIMIT 1

-- name: first_message_since
-- Walks the primary key from a position to the first message of a time.
SELECT position
FROM outbox_message
WHERE position >= %(position)s AND created_at >= %(time)s
ORDER BY position
LIMIT 1

-- name: read_clock
-- The database's clock.
SELECT clock_timestamp()

-- name: see_ranges
-- Reads the cursors; walks outbox_message_by_channel up to a number of messages for all of them.
SELECT
    id, "group", channel, slot_from, slot_to, position, seen_position, generation, processed,
    skipped, parked, attempts, last_error, retry_at, paused_until, leased_until, leased_by,
    served_at, updated_at, backlog.messages, backlog.is_bound, backlog.oldest,
    rate * exp(extract(epoch FROM updated_at - clock_timestamp())::float8 / %(rate_seconds)s)
        AS rate,
    clock_timestamp() AS now
FROM outbox_cursor
CROSS JOIN LATERAL outbox_backlog(
    channel, position, slot_from, slot_to,
    GREATEST(%(least)s, %(budget)s / (
        SELECT count(*) FROM outbox_cursor WHERE %(group)s::text IS NULL OR "group" = %(group)s
    ))
) AS backlog
WHERE %(group)s::text IS NULL OR "group" = %(group)s
ORDER BY "group", channel, slot_from

-- name: see_backlog
-- Walks outbox_message_by_channel: all that a group without a cursor has before it.
SELECT
    messages,
    is_bound,
    COALESCE(extract(epoch FROM clock_timestamp() - oldest), 0)::float8
FROM outbox_backlog(%(channel)s, 0, 0, 32767, %(most)s)

-- name: see_workers
-- Reads the sessions of this database that call themselves workers, and the claims they hold.
SELECT
    pid, application_name, COALESCE(host(client_addr), 'local'), backend_start,
    COALESCE(state, ''), extract(epoch FROM clock_timestamp() - xact_start)::float8,
    COALESCE(claims.cursors, '{}')
FROM pg_stat_activity
LEFT JOIN (
    SELECT pid, array_agg(objid::bigint) AS cursors
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 20291 AND granted
    GROUP BY pid
) AS claims USING (pid)
WHERE datname = current_database() AND starts_with(application_name, 'outbox:')
ORDER BY pid

-- name: see_floors
-- Reads the lock table, the sessions and the prepared transactions; the lowest floor first.
SELECT
    floors.floor,
    floors.pid,
    COALESCE(application_name, ''),
    COALESCE(usename, owner, ''),
    COALESCE(state, CASE WHEN gid IS NULL THEN '' ELSE 'prepared' END),
    COALESCE(prepared, xact_start),
    COALESCE(extract(epoch FROM clock_timestamp() - COALESCE(prepared, xact_start)), 0)::float8,
    COALESCE(query, ''),
    COALESCE(gid, '')
FROM (
    SELECT
        pid,
        virtualtransaction,
        drawn - 2147483648 + ((objid::bigint - drawn + 2147483648) & 4294967295) AS floor
    FROM pg_locks
    CROSS JOIN outbox_last_position() AS drawn
    WHERE locktype = 'advisory'
      AND objsubid = 1
      AND classid::bigint >> 16 = 20290
      AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS floors
LEFT JOIN pg_stat_activity ON pg_stat_activity.pid = floors.pid
LEFT JOIN pg_locks AS own
    ON floors.pid IS NULL
   AND own.pid IS NULL
   AND own.locktype = 'transactionid'
   AND own.virtualtransaction = floors.virtualtransaction
LEFT JOIN pg_prepared_xacts ON transaction = own.transactionid
ORDER BY floors.floor, COALESCE(prepared, xact_start)

-- name: audit_ranges
-- One snapshot of cursors, parked messages and the log; walks outbox_message_by_channel.
SELECT
    c.channel, c.slot_from, c.slot_to, c.base_position, c.position, c.processed, c.skipped,
    c.parked,
    (
        SELECT count(*)
        FROM outbox_parked_message AS p
        WHERE p."group" = c."group"
          AND p.channel = c.channel
          AND p.slot BETWEEN c.slot_from AND c.slot_to
    ),
    (
        SELECT count(*)
        FROM outbox_parked_message AS p
        WHERE p."group" = c."group"
          AND p.channel = c.channel
          AND p.slot BETWEEN c.slot_from AND c.slot_to
          AND p.position > c.base_position
    ),
    (
        SELECT count(*)
        FROM outbox_message AS m
        WHERE m.channel = c.channel
          AND m.position > c.base_position
          AND m.position <= c.position
          AND m.slot BETWEEN c.slot_from AND c.slot_to
    )
FROM outbox_cursor AS c
WHERE c."group" = %(group)s
ORDER BY c.channel, c.slot_from

-- name: has_handled
-- Reads the cursors of a group; walks outbox_message_by_channel to the next message of each.
SELECT COALESCE(
    %(channels)s::text[] <@ array_agg(channel::text)
    AND bool_and(
        position >= %(position)s
        OR %(position)s <= %(horizon)s
            AND NOT outbox_pending(channel, position, %(position)s, slot_from, slot_to)
    ),
    false
)
FROM outbox_cursor
WHERE "group" = %(group)s

-- name: last_visible
-- One step into outbox_message_by_channel per channel, from its end.
SELECT COALESCE(max(last.position), 0)
FROM unnest(%(channels)s::text[]) AS of (channel)
CROSS JOIN LATERAL (
    SELECT max(position) AS position FROM outbox_message WHERE channel = of.channel
) AS last

-- name: waiter_signal
-- The NOTIFY channel to LISTEN to while waiting for a group.
SELECT outbox_waiter_signal(%(group)s)

-- name: take_waiter_lock
-- A session-level shared lock; a try, so that it never waits behind a worker's look.
SELECT pg_try_advisory_lock_shared(outbox_waiter_key(%(group)s))

-- name: drop_waiter_lock
-- Releases what take_waiter_lock took.
SELECT pg_advisory_unlock_shared(outbox_waiter_key(%(group)s))

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

-- name: see_segments
-- Reads the catalog; the bounds are null for the default segment.
SELECT
    child.relname,
    (bounds.of)[1]::bigint,
    (bounds.of)[2]::bigint,
    GREATEST(child.reltuples::bigint, pg_stat_get_live_tuples(child.oid), 0),
    pg_total_relation_size(child.oid),
    EXISTS (
        SELECT
        FROM pg_trigger
        WHERE tgrelid = child.oid
          AND tgname = 'outbox_segment_guard'
          AND tgenabled IN ('O', 'A')
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

-- name: create_segment
-- Locks the log against everybody for a moment.
SELECT outbox_create_segment(%(lower)s, %(upper)s)

-- name: server_text
-- Which server this is.
SELECT version()

-- name: has_citus
-- Reads the catalog.
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')

-- name: is_standby
-- Whether this server replays another one's log.
SELECT pg_is_in_recovery()

-- name: read_isolation
-- Of the present transaction.
SELECT current_setting('transaction_isolation')

-- name: read_idle_timeout
-- In milliseconds; 0 is off.
SELECT setting::bigint FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'

-- name: listen_to_doctor
-- For a NOTIFY of one's own.
LISTEN outbox_doctor

-- name: notify_doctor
-- Comes back to whoever listens.
NOTIFY outbox_doctor

-- name: unlisten_to_doctor
-- Ends it.
UNLISTEN outbox_doctor

-- name: take_lease
-- The row is locked by the claim.
UPDATE outbox_cursor
SET lease_token = lease_token + 1,
    leased_until = clock_timestamp() + make_interval(secs => %(lease)s),
    leased_by = %(holder)s
WHERE id = %(id)s
RETURNING lease_token

-- name: renew_lease
-- Locks the cursor row by its primary key; finds none when the lease was given up or taken over.
UPDATE outbox_cursor
SET leased_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(id)s
  AND generation = %(generation)s
  AND lease_token = %(lease_token)s
  AND leased_until IS NOT NULL

-- name: lock_cursor
-- Locks one cursor row by its primary key; waits for the batch in hand.
SELECT outbox_claim_of(c, c.position), CASE WHEN leased_until > clock_timestamp() THEN leased_by END
FROM outbox_cursor AS c
WHERE id = %(id)s
FOR UPDATE

-- name: is_next
-- By outbox_message_by_channel: whether nothing of the range lies before a position.
SELECT NOT outbox_pending(
    %(channel)s, %(after)s, %(position)s - 1, %(slot_from)s, %(slot_to)s
)

-- name: lock_slot
-- Locks the cursor row that covers a slot; waits for the batch in hand. None when the row was
-- reshaped meanwhile: ask again.
SELECT id
FROM outbox_cursor
WHERE "group" = %(group)s AND channel = %(channel)s AND %(slot)s BETWEEN slot_from AND slot_to
FOR UPDATE

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

-- name: park_behind
-- Under the cursor's lock; finds the messages by the log's primary key, and the earlier ones of
-- their keys by outbox_parked_by_slot.
INSERT INTO outbox_parked_message (
    "group", channel, position, key, slot, type, payload, headers, created_at, replayed, reason
)
SELECT
    %(group)s::text, m.channel, m.position, m.key, m.slot, m.type, m.payload, m.headers,
    m.created_at, m.position <= %(seen_position)s, 'blocked'
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

-- name: list_queues
-- Reads the parked messages of a group: one row per key, and one per message without a key.
SELECT channel, key, min(slot), min(position), count(*)
FROM outbox_parked_message
WHERE "group" = %(group)s AND (%(key)s::text IS NULL OR key = %(key)s::text)
GROUP BY channel, key, CASE WHEN key IS NULL THEN position END
ORDER BY min(position)

-- name: count_queue
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
-- The row is locked by lock_slot. What lies before base_position is not counted there.
UPDATE outbox_cursor
SET parked = parked - 1,
    processed = processed + CASE WHEN base_position < %(position)s THEN %(processed)s ELSE 0 END,
    skipped = skipped + CASE WHEN base_position < %(position)s THEN %(skipped)s ELSE 0 END
WHERE id = %(id)s

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

-- name: set_context
-- Sets what outbox_context() returns until the transaction, or savepoint, ends; '' for nothing.
SELECT set_config('outbox.context', %(context)s, true)

-- name: read_committed
-- Each statement of the transaction sees what was committed before it; must be its first one.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED

-- name: estimate_rows
-- Reads the catalog: the planner's guess at the rows of a table, 0 before the first ANALYZE.
SELECT COALESCE(
    (SELECT GREATEST(reltuples, 0)::bigint FROM pg_class
     WHERE oid = to_regclass(quote_ident(%(table)s))),
    0
)
