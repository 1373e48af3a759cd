-- Whether the database is fit for the log.

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
