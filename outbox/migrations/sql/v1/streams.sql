-- Streams: the messages of one key of one channel, numbered without gaps from 1.
-- Frozen from the first release on: a change is a new file.

-- How many messages this transaction appended to a guarded stream. A setting and not a table, so
-- that a roll-back to a savepoint reverts it together with the messages.
CREATE FUNCTION outbox_own_appends_v1(of_channel text, of_key text) RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT COALESCE((
        NULLIF(current_setting('outbox.own_appends', true), '')::jsonb
        ->> (of_channel || ' ' || of_key)
    )::bigint, 0);
END;

-- Append one message to a stream, if the stream stands at the expected version (null: at any).
-- The version row is locked first, so that a writer waits for other writers of its stream before
-- it holds a floor: a wait never holds the horizon back. A null position: the stream stands at
-- another version, which is returned, and nothing was stored. guarded: the version at which a guard
-- saw the stream before this transaction appended to it.
CREATE FUNCTION outbox_append_to_stream_v1(
    of_channel text, of_key text, of_type text, of_payload text, of_headers text, expected bigint,
    guarded bigint
) RETURNS TABLE ("position" bigint, version bigint) LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
#variable_conflict use_variable
DECLARE
    is_new boolean := false;
BEGIN
    LOOP
        SELECT s.version INTO version
        FROM outbox_stream AS s
        WHERE s.channel = of_channel AND s.key = of_key
        FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO outbox_stream (channel, key, version, first_position, last_position)
        VALUES (of_channel, of_key, 0, 0, 0)
        ON CONFLICT DO NOTHING;
        is_new := FOUND;
    END LOOP;
    IF version <> expected
        OR version - outbox_own_appends_v1(of_channel, of_key) <> guarded
    THEN
        IF is_new THEN
            DELETE FROM outbox_stream AS s WHERE s.channel = of_channel AND s.key = of_key;
        END IF;
        RETURN NEXT;
        RETURN;
    END IF;
    version := version + 1;
    IF guarded IS NOT NULL THEN
        PERFORM set_config(
            'outbox.own_appends',
            (COALESCE(NULLIF(current_setting('outbox.own_appends', true), ''), '{}')::jsonb
             || jsonb_build_object(
                    of_channel || ' ' || of_key,
                    outbox_own_appends_v1(of_channel, of_key) + 1))::text,
            true
        );
    END IF;
    position := outbox_publish_v1(
        of_channel, of_key, of_type, of_payload::jsonb,
        of_headers::jsonb || jsonb_build_object('stream_version', version)
    );
    INSERT INTO outbox_stream_message (channel, key, version, position)
    VALUES (of_channel, of_key, version, position);
    UPDATE outbox_stream AS s
    SET version = version,
        first_position = CASE WHEN s.first_position = 0 THEN position ELSE s.first_position END,
        last_position = position
    WHERE s.channel = of_channel AND s.key = of_key;
    RETURN NEXT;
END
$$;

-- Lock a stream until commit and return the version that it had before this transaction, 0 for one
-- without a message. A stream that is only guarded gets a row, so that its first writer waits.
CREATE FUNCTION outbox_lock_stream_v1(of_channel text, of_key text, for_write boolean)
RETURNS bigint LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    version bigint;
BEGIN
    LOOP
        IF for_write THEN
            SELECT s.version INTO version FROM outbox_stream AS s
            WHERE s.channel = of_channel AND s.key = of_key FOR UPDATE;
        ELSE
            SELECT s.version INTO version FROM outbox_stream AS s
            WHERE s.channel = of_channel AND s.key = of_key FOR SHARE;
        END IF;
        IF FOUND THEN
            RETURN version - outbox_own_appends_v1(of_channel, of_key);
        END IF;
        INSERT INTO outbox_stream (channel, key, version, first_position, last_position)
        VALUES (of_channel, of_key, 0, 0, 0)
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;
