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

-- Workers of many channels lock and listen to 32 buckets of channels instead: the lock table of the
-- server is small, and a session pays for each name that it listens to.
CREATE FUNCTION outbox_bucket(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended(channel, 1) & 31
$$;

-- 16 bits of namespace (20299), 48 bits of the bucket.
CREATE FUNCTION outbox_bucket_key(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT (20299::bigint << 48) | outbox_bucket(channel)
$$;

-- The NOTIFY channel of a bucket.
CREATE FUNCTION outbox_bucket_signal(channel text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'outbox_bucket_' || outbox_bucket(channel)
$$;

-- The keys that a worker of these channels locks while idle, and the NOTIFY channels that it listens
-- to: a pair for each of up to 32 channels, else a pair for each bucket of them.
CREATE FUNCTION outbox_idle_places(channels text[]) RETURNS TABLE (key bigint, signal text)
LANGUAGE sql IMMUTABLE AS $$
    SELECT outbox_idle_key(channel), outbox_signal_name(channel)
    FROM unnest(channels) AS mine (channel)
    WHERE cardinality(channels) <= 32
    UNION
    SELECT outbox_bucket_key(channel), outbox_bucket_signal(channel)
    FROM unnest(channels) AS mine (channel)
    WHERE cardinality(channels) > 32
$$;

-- Whether a session holds this key: a worker that sleeps, or is about to.
-- Lock and unlock in one expression: a cancelled statement cannot leave the lock behind.
CREATE FUNCTION outbox_is_held(key bigint) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT (CASE WHEN pg_try_advisory_lock(key) THEN pg_advisory_unlock(key) END) IS NULL
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
    IF COALESCE(current_setting('outbox.floor', true), '') = '' THEN
        RAISE EXCEPTION 'outbox_message: no floor was taken, so readers could skip this message: the '
                        'trigger take_floor is missing or disabled'
            USING ERRCODE = 'check_violation',
                HINT = 'Run manage.py pgtrigger install, then manage.py pgtrigger enable.';
    END IF;
    IF lowest <= current_setting('outbox.floor')::bigint
        OR highest > COALESCE(pg_sequence_last_value('outbox_message_position_seq'), 0)
    THEN
        RAISE EXCEPTION 'outbox_message: a position between % and % was not drawn from the sequence',
            lowest, highest
            USING ERRCODE = 'check_violation',
                HINT = 'Leave the column position out of the INSERT.';
    END IF;
    IF first_channel = last_channel THEN
        IF outbox_is_held(outbox_idle_key(first_channel)) THEN
            PERFORM pg_notify(outbox_signal_name(first_channel), '');
        END IF;
        IF outbox_is_held(outbox_bucket_key(first_channel)) THEN
            PERFORM pg_notify(outbox_bucket_signal(first_channel), '');
        END IF;
    ELSE
        PERFORM pg_notify(place.signal, '')
        FROM (
            SELECT outbox_idle_key(channel), outbox_signal_name(channel) FROM appended
            UNION
            SELECT outbox_bucket_key(channel), outbox_bucket_signal(channel) FROM appended
        ) AS place (key, signal)
        WHERE outbox_is_held(place.key);
    END IF;
    RETURN NULL;
END
$$;
