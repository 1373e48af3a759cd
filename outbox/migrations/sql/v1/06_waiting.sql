-- Sessions that wait for a group.
-- Frozen from the first release on: a change is a new file.

-- The lock of a session that waits for a group.
CREATE FUNCTION outbox_waiter_key(of_group text) RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT outbox_lock_key(20298, of_group);
END;

-- The NOTIFY channel of the sessions that wait for a group.
CREATE FUNCTION outbox_waiter_signal(of_group text) RETURNS text LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox_group_' || to_hex(outbox_waiter_key(of_group));
END;

-- NOTIFY the sessions that wait for a group, if there is one: they hold its key shared.
CREATE FUNCTION outbox_signal_waiters(of_group text) RETURNS boolean LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT CASE
        WHEN pg_try_advisory_lock(outbox_waiter_key(of_group))
        THEN NOT pg_advisory_unlock(outbox_waiter_key(of_group))
        ELSE outbox_notify(outbox_waiter_signal(of_group))
    END;
END;
