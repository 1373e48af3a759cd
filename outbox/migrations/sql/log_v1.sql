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

-- Whether a worker sleeps in a channel, or may be about to.
-- Lock and unlock in one expression: a cancelled statement cannot leave the lock behind.
CREATE FUNCTION outbox_is_idle(channel text) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT (CASE WHEN pg_try_advisory_lock(outbox_idle_key(channel))
                 THEN pg_advisory_unlock(outbox_idle_key(channel)) END) IS NULL
$$;

-- Refuse positions that the writer chose; NOTIFY the channels in which a worker sleeps.
-- The case of one channel needs one query: it is what a publisher pays in each transaction.
CREATE FUNCTION outbox_seal_and_signal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    lowest bigint;
    highest bigint;
    first_channel text;
    last_channel text;
BEGIN
    SELECT min(position), max(position), min(channel), max(channel)
    INTO lowest, highest, first_channel, last_channel
    FROM appended;
    IF lowest <= current_setting('outbox.floor')::bigint
        OR highest > COALESCE(pg_sequence_last_value('outbox_message_position_seq'), 0)
    THEN
        RAISE EXCEPTION 'outbox_message: a position between % and % was not drawn from the sequence',
            lowest, highest
            USING ERRCODE = 'check_violation',
                HINT = 'Leave the column position out of the INSERT.';
    END IF;
    IF first_channel = last_channel THEN
        IF outbox_is_idle(first_channel) THEN
            PERFORM pg_notify(outbox_signal_name(first_channel), '');
        END IF;
    ELSE
        PERFORM pg_notify(outbox_signal_name(channel), '')
        FROM (SELECT DISTINCT channel FROM appended) AS touched
        WHERE outbox_is_idle(channel);
    END IF;
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

-- The next messages of one range of slots, in order. The planner is held to the index walk:
-- right after a bulk load its statistics make a sort of everything look cheap. And it plans once
-- for a session: to plan over all segments takes longer than to read a few messages.
CREATE FUNCTION outbox_read(
    of_channel text, after bigint, until bigint, first_slot integer, last_slot integer, most integer
) RETURNS TABLE (
    "position" bigint, key text, type text, payload jsonb, headers jsonb, created_at timestamptz
) LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
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
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
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

-- Up to which position a batch may move a range now: not past the horizon, not past where a merge
-- holds it, and no more than `most` positions. Null: it waits.
CREATE FUNCTION outbox_batch_limit(c outbox_cursor, horizon bigint, most bigint DEFAULT NULL)
RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT CASE
        WHEN COALESCE(
            GREATEST(c.retry_at, c.paused_until, c.leased_until) <= clock_timestamp(), true
        )
        THEN LEAST(
            horizon,
            CASE WHEN c.hold_until > clock_timestamp() THEN c.hold_position END,
            c.position + most
        )
    END
$$;

-- The first message of a channel between two positions, by the same index.
CREATE FUNCTION outbox_next(of_channel text, after bigint, until bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN (
        SELECT m.position
        FROM outbox_message AS m
        WHERE m.channel = of_channel AND m.position > after AND m.position <= until
        ORDER BY m.position
        LIMIT 1
    );
END
$$;

-- A cursor row as the worker's Claim, with the position up to which a batch may move it.
CREATE FUNCTION outbox_claim_of(c outbox_cursor, until bigint) RETURNS text
LANGUAGE sql VOLATILE AS $$
    SELECT json_build_object(
        'id', c.id,
        'group', c."group",
        'channel', c.channel,
        'slot_from', c.slot_from,
        'slot_to', c.slot_to,
        'position', c.position,
        'generation', c.generation,
        'lease_token', c.lease_token,
        'seen_position', c.seen_position,
        'parked', c.parked,
        'attempts', c.attempts,
        'failed_position', c.failed_position,
        'rate', c.rate,
        'idle_seconds', extract(epoch FROM clock_timestamp() - c.updated_at),
        'failing_seconds', extract(epoch FROM clock_timestamp() - c.failed_since),
        'until', until
    )::text
$$;

-- Lock the first range that has something to do, by the order of the groups and then the longest
-- not served, and read its next messages; ranges that others hold are passed over. The claim comes
-- with the first message, or alone. The rows before it are ranges that have nothing up to the
-- horizon, for the caller to leave out as long as that is so. No search walks further than 100000
-- positions: a range that has nothing there is moved on by an empty batch. Who holds a range shows
-- in pg_locks: class 20291, the cursor's id. The plan is held to the index walk, as in outbox_read;
-- before PostgreSQL 18 the sort of the few cursors then seems so dear that it would be compiled.
CREATE FUNCTION outbox_claim(
    of_groups text[], of_channels text[], horizon bigint,
    idle_ids bigint[], idle_generations integer[], most integer
) RETURNS TABLE (
    "position" bigint, key text, type text, payload text, headers text, created_at text,
    claim text, is_idle boolean
) LANGUAGE plpgsql VOLATILE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    candidate outbox_cursor;
    claimed outbox_cursor;
    furthest bigint;
    until bigint;
    last_read bigint;
    ignored boolean;
BEGIN
    FOR candidate IN
        SELECT c.*
        FROM unnest(of_groups, of_channels) WITH ORDINALITY AS mine ("group", channel, rank)
        JOIN outbox_cursor AS c ON c."group" = mine."group" AND c.channel = mine.channel
        WHERE outbox_batch_limit(c, horizon) > c.position
        ORDER BY array_position(of_groups, mine."group"), c.served_at
    LOOP
        CONTINUE WHEN
            candidate.generation = idle_generations[array_position(idle_ids, candidate.id)];
        furthest := outbox_batch_limit(candidate, horizon);
        until := LEAST(furthest, candidate.position + 100000);
        SELECT
            m.position, m.key, m.type, m.payload::text, m.headers::text, m.created_at::text
        INTO position, key, type, payload, headers, created_at
        FROM outbox_message AS m
        WHERE m.channel = candidate.channel
          AND m.position > candidate.position
          AND m.position <= until
          AND m.slot BETWEEN candidate.slot_from AND candidate.slot_to
        ORDER BY m.position
        LIMIT 1;
        is_idle := NOT FOUND AND until = furthest;
        IF is_idle THEN
            IF until = horizon THEN
                claim := outbox_claim_of(candidate, until);
                RETURN NEXT;
            END IF;
            CONTINUE;
        END IF;
        IF NOT FOUND THEN
            until := COALESCE(outbox_next(candidate.channel, until, furthest) - 1, furthest);
        END IF;
        SELECT c.* INTO claimed
        FROM outbox_cursor AS c
        WHERE c.id = candidate.id AND outbox_batch_limit(c, horizon) > c.position
        FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        -- Moved, reshaped or held since it was looked at: read again, now under the lock.
        IF claimed.position <> candidate.position
            OR claimed.generation <> candidate.generation
            OR outbox_batch_limit(claimed, horizon) < until
        THEN
            until := outbox_batch_limit(claimed, horizon, 100000);
            position := NULL;
        END IF;
        ignored := pg_try_advisory_xact_lock(20291, claimed.id::integer);
        claim := outbox_claim_of(claimed, until);
        RETURN NEXT;
        last_read := COALESCE(position, claimed.position);
        IF last_read < until THEN
            RETURN QUERY
                SELECT
                    m.position, m.key::text, m.type::text, m.payload::text, m.headers::text,
                    m.created_at::text, NULL::text, false
                FROM outbox_message AS m
                WHERE m.channel = claimed.channel
                  AND m.position > last_read
                  AND m.position <= until
                  AND m.slot BETWEEN claimed.slot_from AND claimed.slot_to
                ORDER BY m.position
                LIMIT CASE WHEN last_read > claimed.position THEN most - 1 ELSE most END;
        END IF;
        RETURN;
    END LOOP;
END
$$;

-- The slots of the messages of a channel between two positions, by the same index walk.
CREATE FUNCTION outbox_slots(of_channel text, after bigint, until bigint) RETURNS integer[]
LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT m.slot
        FROM outbox_message AS m
        WHERE m.channel = of_channel AND m.position > after AND m.position <= until
    );
END
$$;

-- What a range of slots has not handled: how many messages among the next `most` of the channel,
-- whether there are more, and since when the oldest waits. The same index walk.
CREATE FUNCTION outbox_backlog(
    of_channel text, after bigint, first_slot integer, last_slot integer, most bigint
) RETURNS TABLE (messages bigint, is_bound boolean, oldest timestamptz)
LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    SELECT count(*) FILTER (WHERE walked.slot BETWEEN first_slot AND last_slot), count(*) = most
    INTO messages, is_bound
    FROM (
        SELECT m.slot
        FROM outbox_message AS m
        WHERE m.channel = of_channel AND m.position > after
        ORDER BY m.position
        LIMIT most
    ) AS walked;
    IF messages > 0 OR is_bound THEN
        SELECT m.created_at INTO oldest
        FROM outbox_message AS m
        WHERE m.channel = of_channel
          AND m.position > after
          AND m.slot BETWEEN first_slot AND last_slot
        ORDER BY m.position
        LIMIT 1;
    END IF;
    RETURN NEXT;
END
$$;

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

-- Write what a batch did to its cursor, whose row the claim locked; false when the row was moved,
-- reshaped or taken over. A function, and so planned once for a session.
CREATE FUNCTION outbox_advance(
    cursor_id bigint, of_generation integer, of_token bigint, to_position bigint,
    more_processed bigint, more_skipped bigint, more_parked bigint, new_rate float8,
    new_attempts integer, new_failed_position bigint, retry_delay float8, error text, lease float8
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    of_group text;
BEGIN
    UPDATE outbox_cursor AS c
    SET position = to_position,
        seen_position = GREATEST(c.seen_position, to_position),
        processed = c.processed + more_processed,
        skipped = c.skipped + more_skipped,
        parked = c.parked + more_parked,
        rate = new_rate,
        attempts = new_attempts,
        failed_position = new_failed_position,
        failed_since = CASE WHEN new_attempts = 0 THEN NULL
                            WHEN c.failed_position = new_failed_position THEN c.failed_since
                            ELSE clock_timestamp() END,
        retry_at = clock_timestamp() + make_interval(secs => retry_delay),
        last_error = COALESCE(error, c.last_error),
        leased_until = clock_timestamp() + make_interval(secs => lease),
        served_at = transaction_timestamp(),
        updated_at = clock_timestamp()
    WHERE c.id = cursor_id AND c.generation = of_generation AND c.lease_token = of_token
    RETURNING c."group" INTO of_group;
    RETURN FOUND AND outbox_signal_waiters(of_group) IS NOT NULL;
END
$$;

-- A captured row as jsonb; the given key instead of a row that jsonb cannot hold, or that would
-- leave no room for another one beside it (jsonb ends at 256 MB).
CREATE FUNCTION outbox_row_image(source record, key jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    image jsonb;
BEGIN
    image := to_jsonb(source);
    RETURN CASE WHEN pg_column_size(image) < 130000000 THEN image ELSE key END;
EXCEPTION WHEN program_limit_exceeded OR internal_error THEN
    RETURN key;
END
$$;
