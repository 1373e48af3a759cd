-- Wake-ups: the publisher's side.
-- Frozen from the first release on: a change is a new file.

-- 16 bits of namespace (20297), 48 bits of the channel's hash.
CREATE FUNCTION outbox_idle_key(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT (20297::bigint << 48) | (hashtextextended(channel, 0) & 281474976710655)
$$;

-- The NOTIFY channel of an outbox channel; its own name may be too long for one.
CREATE FUNCTION outbox_signal_name(channel text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'outbox_' || to_hex(hashtextextended(channel, 0) & 281474976710655)
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
