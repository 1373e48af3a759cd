-- Visibility: the floors of publishers, the horizons of readers (docs/visibility.md).
-- Frozen from the first release on: a change is a new file.

-- The highest position that the sequence has returned. Not a snapshot: read at this moment. With
-- the owner's rights: the first publisher of a log needs it and may lack SELECT on the sequence.
CREATE FUNCTION outbox_last_position() RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
    FROM outbox_message_position_seq;
END;

-- 16 bits of a channel's hash, as a floor's key holds them; '' stands for every channel.
CREATE FUNCTION outbox_floor_hash(channel text) RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT hashtextextended(channel, outbox_log_number()) & 65535;
END;

-- 16 bits of kind, 16 bits of the channel's hash, the 32 low bits of the floor.
CREATE FUNCTION outbox_floor_key(channel text, floor bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT (20290::bigint << 48) | (outbox_floor_hash(channel) << 32) | (floor & 4294967295);
END;

-- The setting that remembers this transaction's floors: ' hash:floor' for each.
CREATE FUNCTION outbox_floor_setting() RETURNS text LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox.floors_' || outbox_log_number();
END;

-- The lower bound of the positions of a channel in this transaction; null when no floor of it,
-- nor one of every channel, is held.
CREATE FUNCTION outbox_held_floor(held text, channel text) RETURNS bigint LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT LEAST(
        NULLIF(split_part(split_part(held, ' ' || outbox_floor_hash('') || ':', 2), ' ', 1), ''),
        NULLIF(split_part(
            split_part(held, ' ' || outbox_floor_hash(channel) || ':', 2), ' ', 1), '')
    )::bigint;
END;

-- Before a transaction draws its first position of a channel it holds a lower bound of it as a
-- lock. The publishing functions name their channels in outbox.channels; other INSERTs hold the
-- floor of every channel, as does a transaction with more than four. Remembered in a setting and
-- not in a flag, so that ROLLBACK TO SAVEPOINT reverts it together with the lock.
-- Assignments and not PERFORM: an expression costs less than a query.
CREATE FUNCTION outbox_take_floor() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    held text := COALESCE(current_setting(outbox_floor_setting(), true), '');
    channels text[] := COALESCE(NULLIF(current_setting('outbox.channels', true), ''), '{""}');
    channel text;
    floor bigint;
    taken text := '';
    ignored text;
BEGIN
    IF TG_TABLE_NAME <> 'outbox_message' THEN
        LOCK TABLE outbox_message IN ROW EXCLUSIVE MODE;  -- outbox_floors asks for it
    END IF;
    IF strpos(held, ' ' || outbox_floor_hash('') || ':') > 0 THEN
        RETURN NULL;
    END IF;
    IF cardinality(channels) + length(held) - length(replace(held, ':', '')) > 4 THEN
        channels := '{""}';
    END IF;
    FOREACH channel IN ARRAY channels LOOP
        CONTINUE WHEN strpos(held || taken, ' ' || outbox_floor_hash(channel) || ':') > 0;
        IF floor IS NULL THEN
            floor := COALESCE(
                pg_sequence_last_value('outbox_message_position_seq'), outbox_last_position()
            );
        END IF;
        -- A lock of the project may have this very key: a lower floor is a bound as well.
        WHILE NOT pg_try_advisory_xact_lock_shared(outbox_floor_key(channel, floor)) LOOP
            floor := floor - 1;
        END LOOP;
        -- Positions allocated before the lock was held may lie below a published horizon.
        taken := taken || ' ' || outbox_floor_hash(channel) || ':'
            || GREATEST(floor, pg_sequence_last_value('outbox_message_position_seq'));
    END LOOP;
    IF taken <> '' THEN
        ignored := set_config(outbox_floor_setting(), held || taken, true);
    END IF;
    RETURN NULL;
END
$$;

-- Append one message and return its position: the floor is that of its channel alone.
CREATE FUNCTION outbox_publish_v1(
    channel text, key text, type text, payload json, headers jsonb
) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    appended_at bigint;
    ignored text := set_config('outbox.channels', ARRAY[channel]::text, true);
BEGIN
    INSERT INTO outbox_message AS m (channel, key, type, payload, headers)
    VALUES ($1, $2, $3, $4, outbox_context() || $5)
    RETURNING m.position INTO appended_at;
    ignored := set_config('outbox.channels', '', true);
    RETURN appended_at;
END
$$;

-- Append a message per element of a JSON array, positions in its order; channels: all of theirs.
CREATE FUNCTION outbox_publish_many_v1(messages json, channels text[]) RETURNS SETOF bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    ignored text := set_config('outbox.channels', channels::text, true);
BEGIN
    RETURN QUERY
        INSERT INTO outbox_message AS m (channel, key, type, payload, headers)
        SELECT
            draft.channel,
            draft.key,
            draft.type,
            draft.payload,
            CASE WHEN draft.headers IS NULL THEN outbox_context()
                 ELSE outbox_context() || draft.headers END
        FROM json_to_recordset(messages)
            AS draft (channel text, key text, type text, payload json, headers jsonb)
        RETURNING m.position;
    ignored := set_config('outbox.channels', '', true);
END
$$;

-- The floors of this log: the hash of the channel, the floor, and who holds it. The project's locks
-- share the space of the keys, and so may another log's: a floor counts only if its transaction
-- also holds the RowExclusiveLock that every INSERT takes on outbox_message before it draws a
-- position. The transaction's number ties the two together also in PREPARE TRANSACTION, while
-- they change hands one by one. A lock holds 32 bits of the floor: take the number with these bits
-- that is nearest to last_position.
CREATE FUNCTION outbox_floors(last_position bigint) RETURNS TABLE (
    channel_hash bigint, floor bigint, pid integer, virtualtransaction text
) LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH locks AS MATERIALIZED (
        SELECT * FROM pg_locks
        WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (
              locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 16 = 20290
              OR locktype = 'relation' AND mode = 'RowExclusiveLock'
                  AND relation::bigint = outbox_log_number()
          )
    )
    SELECT
        classid::bigint & 65535,
        last_position - 2147483648
            + ((objid::bigint - last_position + 2147483648) & 4294967295),
        locks.pid,
        locks.virtualtransaction
    FROM locks
    WHERE locktype = 'advisory'
      AND locks.virtualtransaction IN (
          SELECT inserting.virtualtransaction FROM locks AS inserting
          WHERE inserting.locktype = 'relation'
      );
END;

-- The highest position at or below which no message can appear any more, in any channel. The
-- sequence is read before the locks: a position allocated later is above the result anyway. Call it in
-- a statement of its own; read the rows in a later one. excluded_pid leaves out the floors of one
-- session, for tests that publish and consume within one transaction.
CREATE FUNCTION outbox_horizon_beside(excluded_pid integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
DECLARE
    last_position bigint := COALESCE(
        pg_sequence_last_value('outbox_message_position_seq'), outbox_last_position()
    );
BEGIN
    RETURN LEAST(last_position, (
        SELECT min(floor) FROM outbox_floors(last_position)
        WHERE excluded_pid IS NULL OR pid IS DISTINCT FROM excluded_pid
    ));
END
$$;

-- The highest position at or below which no message can appear any more, in any channel.
CREATE FUNCTION outbox_horizon() RETURNS bigint LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT outbox_horizon_beside(NULL);
END;

-- The same for each of some channels: a floor holds back its own channel, or every channel.
CREATE FUNCTION outbox_horizons_v1(
    of_channels text[], excluded_pid integer DEFAULT NULL,
    OUT last_position bigint, OUT horizons bigint[]
) LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
DECLARE
    hashes bigint[];
    floors bigint[];
    of_every_channel bigint;
BEGIN
    last_position := COALESCE(
        pg_sequence_last_value('outbox_message_position_seq'), outbox_last_position()
    );
    SELECT
        array_agg(lowest.channel_hash),
        array_agg(lowest.floor),
        min(lowest.floor) FILTER (WHERE lowest.channel_hash = outbox_floor_hash(''))
    INTO hashes, floors, of_every_channel
    FROM (
        SELECT held.channel_hash, min(held.floor) AS floor
        FROM outbox_floors(last_position) AS held
        WHERE excluded_pid IS NULL OR held.pid IS DISTINCT FROM excluded_pid
        GROUP BY held.channel_hash
    ) AS lowest;
    IF hashes IS NULL THEN
        horizons := array_fill(last_position, ARRAY[cardinality(of_channels)]);
        RETURN;
    END IF;
    horizons := ARRAY(
        SELECT LEAST(last_position, of_every_channel, lowest.floor)
        FROM unnest(of_channels) WITH ORDINALITY AS asked (channel, number)
        LEFT JOIN unnest(hashes, floors) AS lowest (channel_hash, floor)
            ON lowest.channel_hash = outbox_floor_hash(asked.channel)
        ORDER BY asked.number
    );
END
$$;

-- The first segments; their triggers need the functions above.
SELECT outbox_create_segment(NULL, NULL);
SELECT outbox_create_segment(n * 10000000 + CASE n WHEN 0 THEN 1 ELSE 0 END, (n + 1) * 10000000)
FROM generate_series(0::bigint, 7) AS n;
