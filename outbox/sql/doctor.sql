-- Whether the database is fit for the log.

-- name: describe_log
-- Reads the catalog; the cache is null and all triggers are missing before the migration.
SELECT
    current_setting('server_version_num')::integer,
    (SELECT seqcache FROM pg_sequence
     WHERE seqrelid = to_regclass('outbox_message_position_seq')),
    ARRAY(
        SELECT needed.function
        FROM (VALUES
            ('outbox_take_floor', 'outbox_message'),
            ('outbox_check_positions_and_notify', 'outbox_message'),
            ('outbox_forbid_changes', 'outbox_message'),
            ('outbox_check_cursor', 'outbox_cursor')
        ) AS needed (function, relation)
        WHERE NOT EXISTS (
            SELECT
            FROM pg_trigger
            JOIN pg_proc ON pg_proc.oid = tgfoid
            WHERE tgrelid = to_regclass(needed.relation)
              AND proname = needed.function
              AND tgenabled IN ('O', 'A')
        )
    )

-- name: see_last_positions
-- One step from the end of the primary key of each segment. The sequence is read after the snapshot
-- is taken, so it is never behind a row or cursor that the snapshot holds.
SELECT outbox_last_position(), (SELECT max(position) FROM outbox_message)

-- name: see_cursors_above
-- Reads the few cursor rows.
SELECT c."group", c.channel, c.position, outbox_last_position()
FROM outbox_cursor AS c
WHERE c.position > outbox_last_position()
ORDER BY c."group", c.channel, c.slot_from

-- name: mend_positions
-- For operators: locks the log against publishers, and the cursor rows that it moves.
SELECT outbox_mend_positions()

-- name: list_origin_triggers
-- Reads the catalog: triggers that should fire in every session_replication_role, and do not.
SELECT array_agg(tgname::text ORDER BY tgname)
FROM pg_trigger
JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE tgrelid = to_regclass('outbox_message')
  AND proname IN ('outbox_take_floor', 'outbox_check_positions_and_notify')
  AND tgenabled = 'O'

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

-- name: read_timeouts
-- In milliseconds, as this session has them; 0 is off. Older servers lack some.
SELECT name, setting::bigint FROM pg_settings WHERE right(name, 8) = '_timeout' AND unit = 'ms'

-- name: current_role
-- The role of this session.
SELECT current_user

-- name: read_lock_table
-- How many locks the server's lock table holds, and how many relations a claim locks.
SELECT
    current_setting('max_locks_per_transaction')::bigint
    * (current_setting('max_connections')::bigint
       + current_setting('max_prepared_transactions')::bigint),
    (SELECT 2 * count(*) FROM pg_inherits WHERE inhparent = to_regclass('outbox_message'))

-- name: notify_doctor
-- Comes back to the session that listens.
NOTIFY outbox_doctor

-- name: log_schema
-- Reads the catalog: the schema of the log that this session writes to.
SELECT nspname::text
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = to_regclass('outbox_message')
