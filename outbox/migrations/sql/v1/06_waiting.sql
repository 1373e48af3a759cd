-- Sessions that wait for a group.
-- Frozen from the first release on: a change is a new file.

-- 16 bits of namespace (20298), 48 bits of the group's hash.
CREATE FUNCTION outbox_waiter_key(of_group text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT (20298::bigint << 48) | (hashtextextended(of_group, 0) & 281474976710655)
$$;

-- The NOTIFY channel of those who wait for a group.
CREATE FUNCTION outbox_waiter_signal(of_group text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'outbox_group_' || to_hex(hashtextextended(of_group, 0) & 281474976710655)
$$;

-- NOTIFY those who wait for a group, if anybody does: they hold its key shared.
CREATE FUNCTION outbox_signal_waiters(of_group text) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT CASE
        WHEN pg_try_advisory_lock(outbox_waiter_key(of_group))
        THEN NOT pg_advisory_unlock(outbox_waiter_key(of_group))
        ELSE pg_notify(outbox_waiter_signal(of_group), '') IS NOT NULL
    END
$$;
