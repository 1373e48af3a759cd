-- Wake-ups: the publisher's side (docs/wakeups.md).
-- Frozen from the first release on: a change is a new file.

-- The lock of a worker that sleeps until a channel has a message.
CREATE FUNCTION outbox_idle_key(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT outbox_lock_key(20297, channel);
END;

-- The NOTIFY channel of an outbox channel; its own name may be too long for one.
CREATE FUNCTION outbox_signal_name(channel text) RETURNS text LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox_' || to_hex(outbox_idle_key(channel));
END;

-- Workers of many channels lock and listen to 32 buckets of channels instead: the lock table of the
-- server is small, and a session pays for each name that it listens to.
CREATE FUNCTION outbox_bucket_key(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT outbox_lock_key(20296, (hashtextextended(channel, 1) & 31)::text);
END;

-- The NOTIFY channel of a bucket.
CREATE FUNCTION outbox_bucket_signal(channel text) RETURNS text LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox_bucket_' || to_hex(outbox_bucket_key(channel));
END;

-- The keys that a worker of these channels locks while idle, and the NOTIFY channels that it listens
-- to: a pair for each of up to 32 channels, else a pair for each bucket of them.
CREATE FUNCTION outbox_idle_places(channels text[]) RETURNS TABLE (key bigint, signal text)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT outbox_idle_key(channel), outbox_signal_name(channel)
    FROM unnest(channels) AS mine (channel)
    WHERE cardinality(channels) <= 32
    UNION
    SELECT outbox_bucket_key(channel), outbox_bucket_signal(channel)
    FROM unnest(channels) AS mine (channel)
    WHERE cardinality(channels) > 32;
END;

-- Whether a session holds this key: a worker that sleeps, or is about to.
-- Lock and unlock in one expression: a cancelled statement cannot leave the lock behind.
CREATE FUNCTION outbox_is_held(key bigint) RETURNS boolean LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT (CASE WHEN pg_try_advisory_lock(key) THEN pg_advisory_unlock(key) END) IS NULL;
END;

-- NOTIFY, unless that could fail the transaction: a hint is not worth one. Not when the server's
-- queue is nearly full; not when outbox.notify is off; and not where the transaction may become
-- a prepared one, which the server refuses after a NOTIFY, unless outbox.notify is on.
CREATE FUNCTION outbox_notify(name text, may_be_prepared boolean DEFAULT false) RETURNS boolean
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT CASE
        WHEN CASE COALESCE(current_setting('outbox.notify', true), '')
                 WHEN 'off' THEN false
                 WHEN 'on' THEN true
                 ELSE NOT may_be_prepared OR current_setting('max_prepared_transactions') = '0'
             END
            AND pg_notification_queue_usage() < 0.9
        THEN pg_notify(name, '') IS NOT NULL
        ELSE false
    END;
END;

-- Refuse positions that the writer chose and channels whose floor is not held, but for a restore
-- (session_replication_role); NOTIFY the channels in which a worker sleeps. The case of one channel needs one query: it is what a
-- publisher pays in each transaction.
CREATE FUNCTION outbox_check_positions_and_notify() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    held text := current_setting(outbox_floor_setting(), true);
    may_be_prepared boolean := COALESCE(current_setting('outbox.channels', true), '') = '';
    lowest bigint;
    highest bigint;
    floor bigint;
    first_channel text;
    last_channel text;
    have_versions boolean;
    ignored boolean;
BEGIN
    SELECT
        min(position), max(position), min(channel), max(channel),
        bool_and(headers ? 'stream_version')
    INTO lowest, highest, first_channel, last_channel, have_versions
    FROM appended;
    IF lowest IS NULL THEN
        RETURN NULL;
    END IF;
    IF first_channel = last_channel THEN
        floor := outbox_held_floor(held, first_channel);
    ELSE
        SELECT CASE WHEN bool_and(floors.floor IS NOT NULL) THEN max(floors.floor) END
        INTO floor
        FROM (SELECT outbox_held_floor(held, channel) AS floor
              FROM (SELECT DISTINCT channel FROM appended) AS touched) AS floors;
    END IF;
    IF COALESCE(held, '') = '' THEN
        RAISE EXCEPTION 'outbox_message: no floor was taken, so readers could skip this message: the '
                        'trigger take_floor is missing or disabled'
            USING ERRCODE = 'check_violation',
                HINT = 'Run manage.py pgtrigger install.';
    END IF;
    IF floor IS NULL THEN
        RAISE EXCEPTION 'outbox_message: a message of a channel outside outbox.channels (%)',
            current_setting('outbox.channels', true)
            USING ERRCODE = 'check_violation',
                HINT = 'Leave the setting outbox.channels to the functions that publish.';
    END IF;
    IF (lowest <= floor
            OR highest > COALESCE(pg_sequence_last_value('outbox_message_position_seq'), 0))
        AND current_setting('session_replication_role') <> 'replica'
    THEN
        RAISE EXCEPTION
            'outbox_message: a position between % and % was not allocated by the sequence',
            lowest, highest
            USING ERRCODE = 'check_violation',
                HINT = 'Leave the column position out of the INSERT.';
    END IF;
    -- Nested: the server prepares all queries of a condition, also those that it does not reach.
    IF NOT have_versions THEN
        IF EXISTS (
            SELECT FROM outbox_stream AS s WHERE s.channel BETWEEN first_channel AND last_channel
        ) THEN
            IF EXISTS (
                SELECT FROM appended AS a
                WHERE NOT a.headers ? 'stream_version'
                  AND EXISTS (SELECT FROM outbox_stream AS s WHERE s.channel = a.channel)
            )
                AND current_setting('session_replication_role') <> 'replica'
            THEN
                RAISE EXCEPTION
                    'outbox_message: a message without a version in a channel of streams'
                    USING ERRCODE = 'check_violation',
                        HINT = 'Publish it with outbox.publish() or outbox_append_to_stream_v1().';
            END IF;
        END IF;
    END IF;
    IF first_channel <> last_channel THEN
        PERFORM outbox_notify(place.signal, may_be_prepared)
        FROM (
            SELECT outbox_idle_key(channel), outbox_signal_name(channel) FROM appended
            UNION
            SELECT outbox_bucket_key(channel), outbox_bucket_signal(channel) FROM appended
        ) AS place (key, signal)
        WHERE outbox_is_held(place.key);
        RETURN NULL;
    END IF;
    IF outbox_is_held(outbox_idle_key(first_channel)) THEN
        ignored := outbox_notify(outbox_signal_name(first_channel), may_be_prepared);
    END IF;
    IF outbox_is_held(outbox_bucket_key(first_channel)) THEN
        ignored := outbox_notify(outbox_bucket_signal(first_channel), may_be_prepared);
    END IF;
    RETURN NULL;
END
$$;
