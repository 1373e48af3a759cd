-- The log: one sequence, one partitioned table, its functions. Frozen: a change is a new file.

CREATE SEQUENCE outbox_message_position_seq AS bigint CACHE 1;

-- The values of outbox.context(), as the headers of every message of the transaction.
CREATE FUNCTION outbox_context() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT COALESCE(NULLIF(current_setting('outbox.context', true), ''), '{}')::jsonb
$$;

-- The fixed-width columns first: no alignment padding.
CREATE TABLE outbox_message (
    position bigint PRIMARY KEY DEFAULT nextval('outbox_message_position_seq'),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    slot smallint NOT NULL
        GENERATED ALWAYS AS (COALESCE(hashtextextended(key, 0) & 32767, 0)) STORED,
    channel varchar(63) NOT NULL CONSTRAINT outbox_message_channel CHECK (channel <> ''),
    key text,
    type text NOT NULL,
    payload jsonb NOT NULL,
    headers jsonb NOT NULL DEFAULT outbox_context()
) PARTITION BY RANGE (position);

ALTER SEQUENCE outbox_message_position_seq OWNED BY outbox_message.position;

CREATE INDEX outbox_message_by_channel ON outbox_message (channel, position, slot);

-- The highest position drawn so far. Not a snapshot: it is read as it is at this moment.
CREATE FUNCTION outbox_last_position() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
    FROM outbox_message_position_seq
$$;

-- 16 bits of namespace (20290), 16 bits for a channel (0: any), the 32 low bits of the floor.
CREATE FUNCTION outbox_floor_key(floor bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT (20290::bigint << 48) | (floor & 4294967295)
$$;

-- 16 bits of namespace (20297), 48 bits of the channel's hash.
CREATE FUNCTION outbox_idle_key(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT (20297::bigint << 48) | (hashtextextended(channel, 0) & 281474976710655)
$$;

-- The NOTIFY channel of an outbox channel; its own name may be too long for one.
CREATE FUNCTION outbox_signal_name(channel text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'outbox_' || to_hex(hashtextextended(channel, 0) & 281474976710655)
$$;

-- Before the first position of a transaction is drawn: hold its lower bound as a lock.
-- A setting and not a flag, so that ROLLBACK TO SAVEPOINT reverts it together with the lock.
CREATE FUNCTION outbox_take_floor() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    floor bigint;
BEGIN
    IF COALESCE(current_setting('outbox.floor', true), '') = '' THEN
        SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO floor
        FROM outbox_message_position_seq;
        PERFORM pg_advisory_xact_lock_shared((20290::bigint << 48) | (floor & 4294967295));
        PERFORM set_config('outbox.floor', floor::text, true);
    END IF;
    RETURN NULL;
END
$$;

-- Refuse positions that the writer chose; NOTIFY the channels in which a worker sleeps.
-- Lock and unlock in one expression: a cancelled statement cannot leave the lock behind.
CREATE FUNCTION outbox_seal_and_signal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    lowest bigint;
    highest bigint;
BEGIN
    SELECT min(position), max(position) INTO lowest, highest FROM appended;
    IF lowest <= current_setting('outbox.floor')::bigint
        OR highest > (SELECT last_value FROM outbox_message_position_seq)
    THEN
        RAISE EXCEPTION 'outbox_message: a position between % and % was not drawn from the sequence',
            lowest, highest
            USING ERRCODE = 'check_violation',
                HINT = 'Leave the column position out of the INSERT.';
    END IF;
    PERFORM pg_notify(outbox_signal_name(channel), '')
    FROM (SELECT DISTINCT channel FROM appended) AS touched
    WHERE CASE WHEN pg_try_advisory_lock(outbox_idle_key(channel))
               THEN pg_advisory_unlock(outbox_idle_key(channel)) END IS NULL;
    RETURN NULL;
END
$$;

-- The log is append-only. It may be emptied, but only together with its cursors.
CREATE FUNCTION outbox_refuse_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' AND EXISTS (
        SELECT FROM pg_locks
        WHERE pid = pg_backend_pid()
          AND locktype = 'relation'
          AND relation = 'outbox_cursor'::regclass
          AND mode = 'AccessExclusiveLock'
    ) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '% of % refused: the log is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation',
            HINT = CASE TG_OP
                WHEN 'INSERT' THEN 'Insert into outbox_message, not into a segment.'
                WHEN 'TRUNCATE' THEN 'Truncate outbox_message together with outbox_cursor.'
                ELSE 'Publish a new message that corrects the old one.' END;
END
$$;

-- Add the segment of the positions from lower (inclusive) to upper (exclusive). The parent's
-- statement triggers do not fire for a statement that names a segment; the guard refuses it.
CREATE FUNCTION outbox_create_segment(lower bigint, upper bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    segment text := 'outbox_message_' || COALESCE(lower::text, 'default');
BEGIN
    EXECUTE format(
        'CREATE TABLE %I PARTITION OF outbox_message %s',
        segment,
        CASE WHEN lower IS NULL THEN 'DEFAULT'
             ELSE format('FOR VALUES FROM (%s) TO (%s)', lower, upper) END
    );
    EXECUTE format(
        'CREATE TRIGGER outbox_segment_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I '
        'FOR EACH STATEMENT EXECUTE FUNCTION outbox_refuse_rewrite()',
        segment
    );
END
$$;

SELECT outbox_create_segment(NULL, NULL);
SELECT outbox_create_segment(n * 10000000 + CASE n WHEN 0 THEN 1 ELSE 0 END, (n + 1) * 10000000)
FROM generate_series(0::bigint, 7) AS n;

-- The highest position at or below which nothing can appear any more. The sequence is read
-- before the locks: a position drawn after the first read is above the result anyway.
-- Call it in a statement of its own; read the rows in a later one.
CREATE FUNCTION outbox_horizon(count_own_floor boolean DEFAULT true) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    drawn bigint;
    lowest bigint;
BEGIN
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END INTO drawn
    FROM outbox_message_position_seq;
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
      AND (count_own_floor OR pid IS DISTINCT FROM pg_backend_pid());
    RETURN LEAST(drawn, lowest);
END
$$;

-- The next messages of one range of slots, in order. The planner is held to the index walk:
-- right after a bulk load its statistics make a sort of everything look cheap.
CREATE FUNCTION outbox_read(
    of_channel text, after bigint, until bigint, first_slot integer, last_slot integer, most integer
) RETURNS TABLE (
    "position" bigint, key text, type text, payload jsonb, headers jsonb, created_at timestamptz
) LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
        SELECT m.position, m.key, m.type, m.payload, m.headers, m.created_at
        FROM outbox_message AS m
        WHERE m.channel = of_channel
          AND m.position > after
          AND m.position <= until
          AND m.slot BETWEEN first_slot AND last_slot
        ORDER BY m.position
        LIMIT most;
END
$$;

-- Whether a range of slots has a message between two positions, by the same index walk.
CREATE FUNCTION outbox_pending(
    of_channel text, after bigint, until bigint, first_slot integer, last_slot integer
) RETURNS boolean LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM outbox_message AS m
        WHERE m.channel = of_channel
          AND m.position > after
          AND m.position <= until
          AND m.slot BETWEEN first_slot AND last_slot
    );
END
$$;
