-- Streams: the messages of one key of one channel, numbered without gaps from 1.
-- Frozen from the first release on: a change is a new file.

-- The setting that counts what this transaction appended to the streams that a guard sees. A setting
-- and not a table, so that a roll-back to a savepoint reverts it together with the messages.
CREATE FUNCTION outbox_own_appends_setting() RETURNS text LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox.own_appends_' || outbox_log_number();
END;

-- How many messages this transaction appended to a stream since a guard saw it first.
CREATE FUNCTION outbox_own_appends_v1(of_channel text, of_key text) RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT COALESCE((
        NULLIF(current_setting(outbox_own_appends_setting(), true), '')::jsonb
        ->> jsonb_build_array(of_channel, of_key)::text
    )::bigint, 0);
END;

-- Return the version of a stream, and how many of its messages this transaction appended since a
-- guard saw it first: they are counted from now on.
CREATE FUNCTION outbox_guard_stream_v1(
    of_channel text, of_key text, OUT version bigint, OUT own_appends bigint
) LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    own_appends := outbox_own_appends_v1(of_channel, of_key);
    PERFORM set_config(
        outbox_own_appends_setting(),
        (COALESCE(NULLIF(current_setting(outbox_own_appends_setting(), true), ''), '{}')::jsonb
         || jsonb_build_object(jsonb_build_array(of_channel, of_key)::text, own_appends))::text,
        true
    );
    version := COALESCE((
        SELECT s.version FROM outbox_stream AS s WHERE s.channel = of_channel AND s.key = of_key
    ), 0);
END
$$;

-- Count messages that this transaction appends to a stream, if a guard sees it; return the number.
CREATE FUNCTION outbox_count_appends_v1(of_channel text, of_key text, appended bigint)
RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    counts text := current_setting(outbox_own_appends_setting(), true);
    stream text;
BEGIN
    IF counts <> '' THEN
        stream := jsonb_build_array(of_channel, of_key)::text;
        IF counts::jsonb ? stream THEN
            PERFORM set_config(
                outbox_own_appends_setting(),
                (counts::jsonb || jsonb_build_object(
                    stream, outbox_own_appends_v1(of_channel, of_key) + appended))::text,
                true
            );
        END IF;
    END IF;
    RETURN appended;
END
$$;

-- Append one message to a stream, if the stream stands at the expected version (null: at any).
-- The row of the stream is locked first, so that a writer waits for other writers of its stream
-- before it holds a floor: a wait never holds the horizon back. Return position and version in an
-- array, which costs less than a row: a function in FROM is planned and scanned. A null position:
-- the stream stands at another version, which is returned, and nothing was stored. guarded: the
-- version at which a guard saw the stream, without what this transaction appended to it.
CREATE FUNCTION outbox_append_to_stream_v1(
    of_channel text, of_key text, of_type text, of_payload text, of_headers text, expected bigint,
    guarded bigint
) RETURNS bigint[] LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
#variable_conflict use_variable
DECLARE
    own bigint := CASE WHEN guarded IS NULL THEN 0 ELSE outbox_own_appends_v1(of_channel, of_key) END;
    version bigint;
    position bigint;
    ignored bigint;
BEGIN
    LOOP
        -- Waits for the row, and compares the version that the other writer left.
        UPDATE outbox_stream AS s SET version = s.version + 1
        WHERE s.channel = of_channel AND s.key = of_key
          AND (expected IS NULL OR s.version = expected)
          AND (guarded IS NULL OR s.version = guarded + own)
        RETURNING s.version INTO version;
        EXIT WHEN FOUND;
        version := COALESCE((
            SELECT s.version FROM outbox_stream AS s WHERE s.channel = of_channel AND s.key = of_key
        ), 0);
        IF version <> expected OR version <> guarded + own THEN
            RETURN ARRAY[NULL, version];
        END IF;
        INSERT INTO outbox_stream (channel, key, version) VALUES (of_channel, of_key, 1)
        ON CONFLICT DO NOTHING
        RETURNING outbox_stream.version INTO version;
        EXIT WHEN FOUND;
    END LOOP;
    position := outbox_publish_v1(
        of_channel, of_key, of_type, of_payload::json,
        of_headers::jsonb || jsonb_build_object('stream_version', version)
    );
    INSERT INTO outbox_stream_message (channel, key, version, position)
    VALUES (of_channel, of_key, version, position);
    IF current_setting(outbox_own_appends_setting(), true) <> '' THEN
        ignored := outbox_count_appends_v1(of_channel, of_key, 1);
    END IF;
    RETURN ARRAY[position, version];
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
        INSERT INTO outbox_stream (channel, key, version) VALUES (of_channel, of_key, 0)
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;
