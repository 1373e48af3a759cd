-- Sessions that wait: idle workers, and readers of their own writes.

-- name: set_application_name
-- Shows in pg_stat_activity who works for which groups.
SELECT set_config('application_name', %(name)s, false)

-- name: use_iso_dates
-- For the session; the order of day and month stays.
SELECT set_config('DateStyle', 'ISO', false)

-- name: notice_dead_clients
-- The server ends a statement that waits for a lock on behalf of a worker that was killed.
SELECT set_config('client_connection_check_interval', '1000', false)

-- name: take_idle_locks
-- Session-level shared locks, at most 32; a try, so that it never waits behind a publisher's look.
SELECT key, pg_try_advisory_lock_shared(key)
FROM outbox_idle_places(%(channels)s::text[])

-- name: drop_idle_locks
-- Releases what take_idle_locks returned.
SELECT pg_advisory_unlock_shared(key)
FROM unnest(%(keys)s::bigint[]) AS held (key)

-- name: signal_names
-- The NOTIFY channels to LISTEN to.
SELECT signal FROM outbox_idle_places(%(channels)s::text[])

-- name: see_backend
-- The server's idea of who we are; another one than the driver's means a pooler.
SELECT pg_backend_pid()

-- name: take_probe_lock
-- An exclusive advisory lock until the end of the transaction; a try.
SELECT pg_try_advisory_xact_lock(20292, %(key)s)

-- name: see_probe_lock
-- Reads the lock table: whether a session of this database holds take_probe_lock's.
SELECT EXISTS (
    SELECT
    FROM pg_locks
    WHERE locktype = 'advisory'
      AND objsubid = 2
      AND classid = 20292
      AND objid = %(key)s::bigint
      AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)

-- name: has_handled
-- Reads the cursors of a group; walks outbox_message_by_channel to the next message of each.
SELECT COALESCE(
    %(channels)s::text[] <@ array_agg(c.channel::text)
    AND bool_and(
        c.position >= %(position)s
        OR %(position)s <= %(horizon)s
            AND NOT outbox_pending(c.channel, c.position, %(position)s, c.slot_from, c.slot_to)
    ),
    false
)
FROM unnest(%(channels)s::text[]) AS mine (channel)
CROSS JOIN LATERAL outbox_ranges_v1(%(group)s, mine.channel) AS c

-- name: waiter_signal
-- The NOTIFY channel to LISTEN to while waiting for a group.
SELECT outbox_waiter_signal(%(group)s)

-- name: take_waiter_lock
-- A session-level shared lock; a try, so that it never waits behind a worker's look.
SELECT pg_try_advisory_lock_shared(outbox_waiter_key(%(group)s))

-- name: drop_waiter_lock
-- Releases what take_waiter_lock took.
SELECT pg_advisory_unlock_shared(outbox_waiter_key(%(group)s))
