-- Reads of the log that are held to its index.
-- Frozen from the first release on: a change is a new file.

-- How the functions that claim plan. A plan for all bounds is made once for a session, which is
-- faster with a few segments; but it locks all of them each time, so with many a plan for the bounds
-- is made for each call: it locks what it reads.
CREATE FUNCTION outbox_plan_mode() RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE
        WHEN EXISTS (
            SELECT FROM pg_inherits WHERE inhparent = 'outbox_message'::regclass OFFSET 32
        )
        THEN 'force_custom_plan'
        ELSE 'force_generic_plan'
    END;
END;

-- The next messages of one range of slots, in order. The planner is held to the index walk:
-- right after a bulk load its statistics make a sort of everything look cheap.
CREATE FUNCTION outbox_read(
    of_channel text, after bigint, until bigint, first_slot integer, last_slot integer, most integer
) RETURNS TABLE (
    "position" bigint, key text, type text, payload json, headers jsonb, created_at timestamptz
) LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET search_path FROM CURRENT AS $$
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
SET search_path FROM CURRENT AS $$
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

-- The first message of a channel between two positions, by the same index.
CREATE FUNCTION outbox_next(of_channel text, after bigint, until bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET search_path FROM CURRENT AS $$
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

-- The slots of the messages of a channel between two positions, sorted; by the same index walk.
CREATE FUNCTION outbox_slots(of_channel text, after bigint, until bigint) RETURNS integer[]
LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET search_path FROM CURRENT AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT m.slot
        FROM outbox_message AS m
        WHERE m.channel = of_channel AND m.position > after AND m.position <= until
        ORDER BY m.slot
    );
END
$$;

-- What a range of slots has not handled: how many messages among the next `most` of the channel,
-- whether there are more, and since when the oldest waits. The same index walk.
CREATE FUNCTION outbox_backlog(
    of_channel text, after bigint, first_slot integer, last_slot integer, most bigint
) RETURNS TABLE (messages bigint, is_lower_bound boolean, oldest timestamptz)
LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET search_path FROM CURRENT AS $$
BEGIN
    SELECT count(*) FILTER (WHERE walked.slot BETWEEN first_slot AND last_slot), count(*) = most
    INTO messages, is_lower_bound
    FROM (
        SELECT m.slot
        FROM outbox_message AS m
        WHERE m.channel = of_channel AND m.position > after
        ORDER BY m.position
        LIMIT most
    ) AS walked;
    IF messages > 0 OR is_lower_bound THEN
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

-- Where a batch of large messages ends: at the last of the next ones whose JSON has no more than
-- `bytes` in all, and never before the first one. Stored sizes count for what is not compressed; the
-- rest has to be expanded, message by message, since PostgreSQL has no function for the size of its text.
CREATE FUNCTION outbox_fitting_end(
    of_channel text, after bigint, until bigint, first_slot integer, last_slot integer, bytes bigint
) RETURNS bigint LANGUAGE plpgsql VOLATILE
SET search_path FROM CURRENT AS $$
DECLARE
    following CURSOR FOR
        SELECT
            m.position,
            CASE WHEN pg_column_compression(m.payload) IS NULL THEN pg_column_size(m.payload)
                 ELSE octet_length(m.payload::text) END
            + CASE WHEN pg_column_compression(m.headers) IS NULL THEN pg_column_size(m.headers)
                   ELSE octet_length(m.headers::text) END
        FROM outbox_message AS m
        WHERE m.channel = of_channel
          AND m.position > after
          AND m.position <= until
          AND m.slot BETWEEN first_slot AND last_slot
        ORDER BY m.position;
    at bigint;
    size bigint;
    total bigint := 0;
    fitting bigint;
BEGIN
    -- FETCH takes one row at a time; a loop over a query would expand 50 ahead.
    OPEN following;
    LOOP
        FETCH following INTO at, size;
        EXIT WHEN NOT FOUND;
        total := total + size;
        EXIT WHEN total > bytes AND fitting IS NOT NULL;
        fitting := at;
        EXIT WHEN total >= bytes;
    END LOOP;
    CLOSE following;
    RETURN fitting;
END
$$;
