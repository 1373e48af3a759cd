-- Visibility: floors of publishers, the horizon of readers.
-- Frozen from the first release on: a change is a new file.

-- The highest position drawn so far. Not a snapshot: it is read as it is at this moment.
CREATE FUNCTION outbox_last_position() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
    FROM outbox_message_position_seq
$$;

-- 16 bits of namespace (20290), 16 bits for a channel (0: any), the 32 low bits of the floor.
CREATE FUNCTION outbox_floor_key(floor bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT (20290::bigint << 48) | (floor & 4294967295)
$$;

-- Before the first position of a transaction is drawn: hold its lower bound as a lock.
-- A setting and not a flag, so that ROLLBACK TO SAVEPOINT reverts it together with the lock.
-- Assignments and not PERFORM: an expression costs less than a query.
CREATE FUNCTION outbox_take_floor() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    floor bigint;
    ignored text;
BEGIN
    IF COALESCE(current_setting('outbox.floor', true), '') = '' THEN
        floor := pg_sequence_last_value('outbox_message_position_seq');
        IF floor IS NULL THEN
            SELECT last_value - 1 INTO floor FROM outbox_message_position_seq;
        END IF;
        ignored := pg_advisory_xact_lock_shared((20290::bigint << 48) | (floor & 4294967295));
        -- What was drawn before the lock was there may be below a horizon: nobody may name it.
        floor := GREATEST(floor, pg_sequence_last_value('outbox_message_position_seq'));
        ignored := set_config('outbox.floor', floor::text, true);
    END IF;
    RETURN NULL;
END
$$;

-- The highest position at or below which nothing can appear any more. The sequence is read
-- before the locks: a position drawn after the first read is above the result anyway.
-- Call it in a statement of its own; read the rows in a later one. excluded_pid leaves out the
-- floors of one session, for tests that publish and consume within one transaction.
CREATE FUNCTION outbox_horizon_beside(excluded_pid integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    drawn bigint;
    lowest bigint;
BEGIN
    drawn := pg_sequence_last_value('outbox_message_position_seq');
    IF drawn IS NULL THEN
        drawn := outbox_last_position();
    END IF;
    -- The lock holds 32 bits of the floor: take the number with these bits nearest to drawn.
    SELECT min(
        drawn - 2147483648
        + ((objid::bigint - drawn + 2147483648) & 4294967295)
    ) INTO lowest
    FROM pg_locks
    WHERE locktype = 'advisory'
      AND objsubid = 1
      AND classid::bigint >> 16 = 20290
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (excluded_pid IS NULL OR pid IS DISTINCT FROM excluded_pid);
    RETURN LEAST(drawn, lowest);
END
$$;

CREATE FUNCTION outbox_horizon() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT outbox_horizon_beside(NULL)
$$;
