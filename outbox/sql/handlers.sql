-- What a handler may have done to its transaction and session.

-- name: find_prepared
-- The name of a transaction that was prepared; reads the few prepared ones.
SELECT gid FROM pg_prepared_xacts WHERE transaction = %(transaction)s::xid8::xid

-- name: roll_back_prepared
-- Releases the locks of the prepared transaction; runs outside a transaction.
ROLLBACK PREPARED %(name)s

-- name: read_session
-- Settings that a handler may change for the rest of the transaction by SET LOCAL.
SELECT
    current_setting('role'), current_setting('search_path'),
    current_setting('statement_timeout'), current_setting('lock_timeout')

-- name: restore_session
-- Sets them back; the values are those of read_session. Returns whether the transaction was made
-- read-only, which cannot be undone.
SELECT
    current_setting('transaction_read_only')::boolean,
    set_config('role', %(role)s, true), set_config('search_path', %(search_path)s, true),
    set_config('statement_timeout', %(statement_timeout)s, true),
    set_config('lock_timeout', %(lock_timeout)s, true)

-- name: read_session_limits
-- The time limits of the server that end a session.
SELECT name || ' is ' || setting || ' ms'
FROM pg_settings
WHERE name IN (
    'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout'
)
  AND setting <> '0'
ORDER BY name
