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
-- Reads the segments above `seen` alone, the sequence's position a moment before; null: no row is
-- there. The sequence is read after the snapshot is taken, so it is never behind a row or cursor that
-- the snapshot holds.
SELECT outbox_last_position(), (SELECT max(position) FROM outbox_message WHERE position > %(seen)s)

-- name: see_cursors_above
-- Reads the few cursor rows.
SELECT c."group", c.channel, c.position, outbox_last_position()
FROM outbox_cursor AS c
WHERE c.position > outbox_last_position()
ORDER BY c."group", c.channel, c.slot_from

-- name: see_missing_ranges
-- Reads the few cursor rows: how many slots of a group's channel no cursor covers, and the statement
-- after which its next worker creates all of them.
SELECT
    "group", channel, 32768 - sum(slot_to - slot_from + 1),
    'DELETE FROM outbox_cursor WHERE "group" = ' || quote_literal("group")
        || ' AND channel = ' || quote_literal(channel) || ';'
FROM outbox_cursor
GROUP BY "group", channel
HAVING sum(slot_to - slot_from + 1) < 32768
ORDER BY "group", channel

-- name: list_misplaced_functions
-- Reads the catalog: the functions that look for their names in another schema than the log's, as
-- after ALTER SCHEMA ... RENAME, and the statements that mend them.
SELECT
    array_agg(proname::text ORDER BY proname),
    string_agg(
        format('ALTER FUNCTION %I.%I(', nspname, proname) || pg_get_function_identity_arguments(pg_proc.oid)
            || format(') SET search_path = %I, pg_temp;', nspname),
        ' ' ORDER BY proname
    )
FROM pg_proc
JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE pronamespace = (
          SELECT relnamespace FROM pg_class WHERE oid = to_regclass('outbox_message')
      )
  AND starts_with(proname, 'outbox_')
  AND EXISTS (
      SELECT
      FROM unnest(proconfig) AS setting (line)
      WHERE starts_with(line, 'search_path=')
        AND line <> format('search_path=%I, pg_temp', nspname)
  )

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
-- The server's lock table holds the product of the first two; how many relations a claim locks.
SELECT
    current_setting('max_locks_per_transaction')::bigint,
    current_setting('max_connections')::bigint
        + current_setting('max_prepared_transactions')::bigint,
    (SELECT 2 * count(*) FROM pg_inherits WHERE inhparent = to_regclass('outbox_message'))

-- name: notify_doctor
-- Comes back to the session that listens.
NOTIFY outbox_doctor

-- name: log_schema
-- Reads the catalog: the schema of the log that this session writes to; an error where there is none.
SELECT nspname::text
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = 'outbox_message'::regclass
