-- Windows: the next messages of a channel, read once for several ranges of a group.
-- Frozen from the first release on: a change is a new file.

-- Whether a range can share a transaction with others up to a position: nothing of it is parked, no
-- message has failed, and it is not paused, leased or held by a merge.
CREATE FUNCTION outbox_is_plain(c outbox_cursor, until bigint) RETURNS boolean
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT c.parked = 0 AND c.attempts = 0 AND c.failed_position IS NULL
        AND COALESCE(outbox_batch_limit(c, until) = until, false);
END;

-- Read the next messages of some ranges of a group in a channel, and lock the ranges that have some of
-- them: at most `most` messages, and no more than `most_bytes` of JSON but one.
--
-- The ranges stand in the order of their slots, and none has a message up to `after` that is not
-- handled. A range is counted by its place among them, from 1 on. Rows: the messages, each with the
-- number of its range; then `claim` with each range that is locked, and its number; at last `claim`
-- with how far was read and which ranges have messages. A range is not locked when it changed, when
-- another session holds it, or when it is not plain. No row when the log is another one. No search
-- walks further than 100000 positions.
CREATE FUNCTION outbox_claim_window_v1(
    of_channel text, horizon bigint, known_log text, ids bigint[], generations integer[],
    first_slots integer[], last_slots integer[], after bigint, most integer, most_bytes bigint
) RETURNS TABLE (
    "position" bigint, key text, type text, payload text, headers text, created_at text,
    number integer, claim text
) LANGUAGE plpgsql VOLATILE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan SET search_path FROM CURRENT SET jit = off AS $$
DECLARE
    lowest_slot integer := first_slots[1];
    highest_slot integer := last_slots[cardinality(last_slots)];
    until bigint := LEAST(horizon, after + 100000);
    following CURSOR FOR
        SELECT
            m.position, m.key, m.type, m.payload::text, m.headers::text, m.created_at::text,
            width_bucket(m.slot::integer, first_slots)
        FROM outbox_message AS m
        WHERE m.channel = of_channel
          AND m.position > after
          AND m.position <= until
          AND m.slot BETWEEN lowest_slot AND highest_slot
          AND m.slot <= last_slots[width_bucket(m.slot::integer, first_slots)]
        ORDER BY m.position
        LIMIT most;
    messages integer := 0;
    last_message bigint := after;
    size bigint := 0;
    has_messages boolean[] := array_fill(false, ARRAY[cardinality(ids)]);
    held outbox_cursor;
    ignored boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(20294, outbox_claim_number(0)),  -- outbox_stand_aside_v1
        set_config('plan_cache_mode', outbox_plan_mode(), true);
    IF known_log <> outbox_log_identity_v1() THEN
        RETURN;
    END IF;
    -- FETCH takes one row at a time; a loop over a query would expand 50 ahead.
    OPEN following;
    LOOP
        FETCH following INTO position, key, type, payload, headers, created_at, number;
        EXIT WHEN NOT FOUND;
        size := size + octet_length(payload) + octet_length(headers);
        EXIT WHEN messages > 0 AND size > most_bytes;
        messages := messages + 1;
        last_message := position;
        has_messages[number] := true;
        RETURN NEXT;
    END LOOP;
    CLOSE following;
    IF messages = most OR size > most_bytes THEN
        until := last_message;
    END IF;
    position := NULL;
    FOREACH number IN ARRAY array_positions(has_messages, true) LOOP
        -- The newest version of a row is found backwards, as in outbox_ranges_v1.
        SELECT c.* INTO held
        FROM outbox_cursor AS c
        WHERE c.ctid = (
                  SELECT n.ctid FROM outbox_cursor AS n
                  WHERE n.id <= ids[number] ORDER BY n.id DESC LIMIT 1
              )
          AND c.id = ids[number]
          AND c.generation = generations[number]
          AND c.position < until
          AND outbox_is_plain(c, until)
        FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        ignored := pg_try_advisory_xact_lock(20291, outbox_claim_number(held.id));
        claim := outbox_claim_of(held, until);
        RETURN NEXT;
    END LOOP;
    -- The worker watches this setting, as in outbox_claim_v1.
    PERFORM set_config(
        'application_name', left(rtrim(current_setting('application_name'), '*'), 62) || '*', true
    );
    number := NULL;
    claim := json_build_array(until, array_positions(has_messages, true));
    RETURN NEXT;
END
$$;
