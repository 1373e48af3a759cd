-- The log: one sequence, one partitioned table, its segments, append-only.
-- Frozen from the first release on: a change is a new file.

-- The positions of all channels. Without a cache: a session would use cached ones below its floor.
CREATE SEQUENCE outbox_message_position_seq AS bigint CACHE 1;

-- The values of outbox.context(), as the headers of every message of the transaction.
CREATE FUNCTION outbox_context() RETURNS jsonb LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT COALESCE(NULLIF(current_setting('outbox.context', true), ''), '{}')::jsonb;
END;

-- The fixed-width columns first: no alignment padding.
CREATE TABLE outbox_message (
    position bigint PRIMARY KEY DEFAULT nextval('outbox_message_position_seq'),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    slot smallint NOT NULL
        GENERATED ALWAYS AS (COALESCE(hashtextextended(key, 0) & 32767, 0)) STORED,
    channel varchar(63) NOT NULL CONSTRAINT outbox_message_channel CHECK (channel <> ''),
    key text,
    type text NOT NULL,
    -- Escapes that text cannot hold, such as NUL, are refused as jsonb refuses them.
    payload json NOT NULL CONSTRAINT outbox_message_payload
        CHECK (strpos(payload::text, '\u') = 0 OR payload::jsonb IS NOT NULL),
    headers jsonb NOT NULL DEFAULT outbox_context()
) PARTITION BY RANGE (position);

-- No copy of a payload in the statistics: erasure could not remove it from there.
ALTER TABLE outbox_message ALTER payload SET STATISTICS 0, ALTER headers SET STATISTICS 0;

ALTER SEQUENCE outbox_message_position_seq OWNED BY outbox_message.position;

CREATE INDEX outbox_message_by_channel ON outbox_message (channel, position, slot);

-- The log's number in this database: the locks, signals and settings of two logs in two schemas
-- differ by it.
CREATE FUNCTION outbox_log_number() RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox_message'::regclass::oid::bigint;
END;

-- An advisory lock key: 16 bits of a kind, 48 bits of a name's hash. The kinds: 20290 floors
-- (02_visibility.sql), 20294 claims (05_claiming.sql), 20295 maintenance, 20296 and 20297 idle workers, 20298 waiters, 20299
-- the shape of a group. Claims have two numbers as their key (05_claiming.sql).
CREATE FUNCTION outbox_lock_key(kind integer, name text) RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT (kind::bigint << 48)
        | (hashtextextended(name, outbox_log_number()) & 281474976710655);
END;

-- The log is append-only. It may be emptied, but only together with its cursors.
CREATE FUNCTION outbox_forbid_changes() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
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
-- statement triggers do not fire for a statement that names a segment; the guard refuses it. With
-- session_replication_role = replica a subscription copies rows into segments: there the guard is
-- not sent, and the insert holds a floor instead.
CREATE FUNCTION outbox_create_segment(lower bigint, upper bigint) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
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
        'ALTER TABLE %I ALTER payload SET STATISTICS 0, ALTER headers SET STATISTICS 0', segment
    );
    EXECUTE format(
        'CREATE TRIGGER outbox_segment_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I '
        'FOR EACH STATEMENT EXECUTE FUNCTION outbox_forbid_changes()',
        segment
    );
    EXECUTE format(
        'CREATE TRIGGER outbox_segment_floor BEFORE INSERT ON %1$I '
        'FOR EACH STATEMENT EXECUTE FUNCTION outbox_take_floor(); '
        'ALTER TABLE %1$I ENABLE REPLICA TRIGGER outbox_segment_floor',
        segment
    );
END
$$;
