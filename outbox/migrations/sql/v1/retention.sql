-- Retention: segments are made, rewritten and dropped as tables beside the log, then swapped in.
-- Frozen from the first release on: a change is a new file.

-- Copies of payloads and errors, which erasure could not remove from the statistics.
ALTER TABLE outbox_parked_message
    ALTER payload SET STATISTICS 0,
    ALTER headers SET STATISTICS 0,
    ALTER error SET STATISTICS 0,
    ALTER traceback SET STATISTICS 0;
ALTER TABLE outbox_cursor ALTER last_error SET STATISTICS 0;

-- The name of the segment that begins at a position; null: the default segment.
CREATE FUNCTION outbox_segment_name_v1(lower bigint) RETURNS text LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'outbox_message_' || COALESCE(lower::text, 'default');
END;

-- Make an empty table like a segment, not attached to the log. A table of that name that is not
-- attached is what a maintenance that was killed left behind: it is dropped first.
CREATE FUNCTION outbox_make_table_v1(of_name text) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_inherits
        WHERE inhrelid = to_regclass(quote_ident(of_name))
    ) THEN
        RAISE EXCEPTION 'table % is attached to the log', of_name;
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS %I', of_name);
    EXECUTE format(
        'CREATE TABLE %I (LIKE outbox_message INCLUDING DEFAULTS INCLUDING GENERATED '
        'INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE)',
        of_name
    );
    -- No copy of a payload in the statistics: erasure could not remove it from there.
    EXECUTE format(
        'ALTER TABLE %I ALTER payload SET STATISTICS 0, ALTER headers SET STATISTICS 0', of_name
    );
END
$$;

-- Refuse statements that name a segment: the log's statement triggers do not fire for them. With
-- session_replication_role = replica such an INSERT takes a floor instead.
CREATE FUNCTION outbox_guard_segment_v1(of_name text) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format(
        'CREATE TRIGGER outbox_segment_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I '
        'FOR EACH STATEMENT EXECUTE FUNCTION outbox_forbid_changes()',
        of_name
    );
    EXECUTE format(
        'CREATE TRIGGER outbox_segment_floor BEFORE INSERT ON %1$I '
        'FOR EACH STATEMENT EXECUTE FUNCTION outbox_take_floor(); '
        'ALTER TABLE %1$I ENABLE REPLICA TRIGGER outbox_segment_floor',
        of_name
    );
END
$$;

-- Promise the range of a table that is not attached, so that attaching it does not scan it.
CREATE FUNCTION outbox_promise_range_v1(of_name text, lower bigint, upper bigint)
RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT IF EXISTS outbox_segment_range', of_name);
    EXECUTE format(
        'ALTER TABLE %I ADD CONSTRAINT outbox_segment_range '
        'CHECK (position >= %s AND position < %s) NOT VALID',
        of_name, lower, upper
    );
END
$$;

-- Scan a table for rows outside of its promised range, without a lock that publishers wait for.
CREATE FUNCTION outbox_validate_range_v1(of_name text) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I VALIDATE CONSTRAINT outbox_segment_range', of_name);
END
$$;

-- Take the promise of a range back.
CREATE FUNCTION outbox_drop_promise_v1(of_name text) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT IF EXISTS outbox_segment_range', of_name);
END
$$;

-- Attach a table as the segment of a range. Publishers go on: it locks the default segment, not
-- the log, and scans nothing but the default segment.
CREATE FUNCTION outbox_attach_v1(of_name text, lower bigint, upper bigint)
RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format(
        'ALTER TABLE outbox_message ATTACH PARTITION %I %s',
        of_name,
        CASE WHEN lower IS NULL THEN 'DEFAULT'
             ELSE format('FOR VALUES FROM (%s) TO (%s)', lower, upper) END
    );
    PERFORM outbox_drop_promise_v1(of_name);
END
$$;

-- Under the log's exclusive lock: detach a segment and drop it.
CREATE FUNCTION outbox_drop_segment_v1(lower bigint) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format(
        'ALTER TABLE outbox_message DETACH PARTITION %I', outbox_segment_name_v1(lower)
    );
    EXECUTE format('DROP TABLE %I', outbox_segment_name_v1(lower));
END
$$;

-- Under the log's exclusive lock: put a rewritten table in the place of a segment.
CREATE FUNCTION outbox_swap_segment_v1(rewritten text, lower bigint, upper bigint)
RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM outbox_drop_segment_v1(lower);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', rewritten, outbox_segment_name_v1(lower));
    PERFORM outbox_attach_v1(outbox_segment_name_v1(lower), lower, upper);
END
$$;

-- Under the log's exclusive lock: what lies in the default segment becomes the segment of a range
-- that was promised and validated before; an empty default segment takes its place.
CREATE FUNCTION outbox_promote_default_v1(lower bigint, upper bigint, fresh text)
RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    name text := outbox_segment_name_v1(lower);
BEGIN
    ALTER TABLE outbox_message DETACH PARTITION outbox_message_default;
    EXECUTE format('ALTER TABLE outbox_message_default RENAME TO %I', name);
    EXECUTE format('ALTER TABLE %I RENAME TO outbox_message_default', fresh);
    PERFORM outbox_attach_v1(name, lower, upper);
    PERFORM outbox_attach_v1('outbox_message_default', NULL, NULL);
END
$$;

-- The channels of a segment, by steps through its index.
CREATE FUNCTION outbox_segment_channels_v1(lower bigint) RETURNS TABLE (
    channel text, first_position bigint, last_position bigint, last_at timestamptz
) LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'WITH RECURSIVE each AS ('
        '    (SELECT min(s.channel) AS channel FROM %1$I AS s)'
        '    UNION ALL'
        '    SELECT (SELECT min(s.channel) FROM %1$I AS s WHERE s.channel > each.channel)'
        '    FROM each WHERE each.channel IS NOT NULL'
        ') '
        'SELECT each.channel::text, first.position, last.position, last.created_at '
        'FROM each '
        'CROSS JOIN LATERAL (SELECT s.position FROM %1$I AS s WHERE s.channel = each.channel '
        '    ORDER BY s.position LIMIT 1) AS first '
        'CROSS JOIN LATERAL (SELECT s.position, s.created_at FROM %1$I AS s '
        '    WHERE s.channel = each.channel ORDER BY s.position DESC LIMIT 1) AS last '
        'WHERE each.channel IS NOT NULL',
        outbox_segment_name_v1(lower)
    );
END
$$;

-- Copy what a segment keeps into a table beside it: all but the expired channels, and of the
-- channels that keep the latest message of a key all but those that have a newer one, or that have
-- no key where the channel is among `keyless`. A null erased_key keeps payloads; else the messages of that key and channel become tombstones.
CREATE FUNCTION outbox_copy_segment_v1(
    lower bigint, into_table text, expired text[], latest text[], keyless text[],
    horizon bigint, erased_channel text, erased_key text
) RETURNS bigint LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    copied bigint;
BEGIN
    EXECUTE format(
        'INSERT INTO %I (position, created_at, channel, key, type, payload, headers) '
        'SELECT s.position, s.created_at, s.channel, s.key, s.type, '
        '    CASE WHEN erased.is_one THEN ''null'' ELSE s.payload END, '
        '    CASE WHEN erased.is_one THEN ''{"outbox.erased": true}'' ELSE s.headers END '
        'FROM %I AS s '
        'CROSS JOIN LATERAL ('
        '    SELECT COALESCE(s.channel = $5 AND s.key = $6, false) AS is_one'
        ') AS erased '
        'WHERE s.channel <> ALL ($1) '
        '  AND NOT (s.channel = ANY ($3) AND s.key IS NULL) '
        '  AND NOT (s.channel = ANY ($2) AND s.key IS NOT NULL AND EXISTS ('
        '      SELECT FROM outbox_message AS m '
        '      WHERE m.channel = s.channel AND m.slot = s.slot AND m.key = s.key '
        '        AND m.position > s.position AND m.position <= $4'
        '  )) '
        'ORDER BY s.position',
        into_table, outbox_segment_name_v1(lower)
    ) USING expired, latest, keyless, horizon, erased_channel, erased_key;
    GET DIAGNOSTICS copied = ROW_COUNT;
    RETURN copied;
END
$$;

-- Whether a segment has a message of a key that is not erased yet.
CREATE FUNCTION outbox_segment_has_key_v1(lower bigint, of_channel text, of_key text)
RETURNS boolean LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    found_one boolean;
BEGIN
    EXECUTE format(
        'SELECT EXISTS (SELECT FROM %I WHERE channel = $1 AND key = $2 '
        '    AND slot = COALESCE(hashtextextended($2, 0) & 32767, 0) '
        '    AND headers::text <> ''{"outbox.erased": true}'')',
        outbox_segment_name_v1(lower)
    ) INTO found_one USING of_channel, of_key;
    RETURN found_one;
END
$$;

-- Put archived messages into a table beside the log, at the positions that they had.
CREATE FUNCTION outbox_insert_archived_v1(into_table text, messages json)
RETURNS bigint LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    inserted bigint;
BEGIN
    EXECUTE format(
        'INSERT INTO %I (position, created_at, channel, key, type, payload, headers) '
        'SELECT position, created_at, channel, key, type, COALESCE(payload, ''null''), headers '
        'FROM json_to_recordset($1) AS line (position bigint, created_at timestamptz, '
        '    channel text, key text, type text, payload json, headers jsonb)',
        into_table
    ) USING messages;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;

-- Rename a table, such as a rewritten segment.
CREATE FUNCTION outbox_rename_v1(of_name text, new_name text) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('ALTER TABLE %I RENAME TO %I', of_name, new_name);
END
$$;
