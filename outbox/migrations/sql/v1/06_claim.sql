-- Claims: the horizons, then a range with its next messages.
-- Frozen from the first release on: a change is a new file.

-- Lock a range that has something to do and read its next messages: at most `most`, and no more than
-- `most_bytes` of JSON but one message at least. Ranges that others hold are passed over.
--
-- First the ranges of the queue are tried, up to the horizons that were read before. Then the
-- horizons are read (`reads_log`) and all ranges of the groups are looked at (`is_scan`), or only
-- those known to be idle that have a message now. Each statement of this function has a snapshot of
-- its own, so rows are read under a newer one than the horizons; where that is not so (REPEATABLE
-- READ) it returns the horizons alone, for another transaction to look up to them.
--
-- Rows by `kind`: "state", the log as it was read; "idle", a range without a message up to its
-- horizon; "claim", the locked range and where the batch ends, with the first message or alone; null,
-- a further message; "queue", the ranges that were not tried: their ids, the numbers of their groups
-- and channels from 1 on, and for each its generation, its slots, and the position up to which it has
-- nothing to do. If the log is not the known one the state comes alone.
--
-- No search walks further than 100000 positions: a range that has nothing there is moved on by an
-- empty batch. Who holds a range shows in pg_locks: class 20291, outbox_claim_number. The plans are
-- held to the index walk, as in outbox_read; before PostgreSQL 18 the sort of the few cursors then
-- has so high an estimated cost that JIT would compile it.
CREATE FUNCTION outbox_claim_v1(
    of_groups text[], of_channels text[], horizons bigint[], known_log text, known_position bigint,
    end_position bigint, excluded_pid integer, reads_log boolean, is_scan boolean,
    queue_ids bigint[], queue_numbers integer[],
    idle_ids bigint[], idle_generations integer[], idle_numbers integer[],
    idle_first integer[], idle_last integer[], most integer, most_bytes bigint
) RETURNS TABLE (
    "position" bigint, key text, type text, payload text, headers text, created_at text,
    claim text, kind text
) LANGUAGE plpgsql VOLATILE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan SET search_path FROM CURRENT SET jit = off AS $$
DECLARE
    log text := outbox_log_identity_v1();
    is_known boolean := known_log IN ('', log);
    before bigint[] := horizons;
    queue_ranges json[];
    tried integer := 0;
    can_look boolean;
    last_log_position bigint;
    seen bigint[];
    woken bigint[] := '{}';
    candidate outbox_cursor;
    claimed outbox_cursor;
    horizon bigint;
    furthest bigint;
    until bigint;
    last_read bigint;
    messages integer;
    last_message bigint;
    size bigint;
    is_compressed boolean;
    ignored boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(20294, outbox_claim_number(0)),  -- outbox_stand_aside_v1
        set_config('plan_cache_mode', outbox_plan_mode(), true);
    IF NOT is_known THEN
        queue_ids := '{}';
        reads_log := true;
    END IF;
    LOOP
        tried := tried + 1;
        IF tried > COALESCE(cardinality(queue_ids), 0) THEN
            EXIT WHEN NOT (reads_log OR is_scan);
            tried := 0;
            IF reads_log THEN
                SELECT now.last_position, now.horizons INTO last_log_position, seen
                FROM outbox_horizons_v1(of_channels, excluded_pid) AS now;
                IF end_position IS NOT NULL THEN
                    seen := ARRAY(
                        SELECT LEAST(each.horizon, end_position)
                        FROM unnest(seen) WITH ORDINALITY AS each (horizon, number)
                        ORDER BY each.number
                    );
                END IF;
                can_look := is_known AND last_log_position >= known_position
                    AND current_setting('transaction_isolation') LIKE 'read %';
                IF can_look THEN
                    woken := outbox_woken_v1(
                        of_channels, horizons, seen, idle_ids, idle_numbers, idle_first, idle_last
                    );
                END IF;
                kind := 'state';
                claim := json_build_object(
                    'log', log,
                    'last_position', last_log_position,
                    'horizons', CASE WHEN last_log_position > ANY(seen) THEN seen END,
                    'woken', CASE WHEN can_look THEN woken END
                );
                RETURN NEXT;
                EXIT WHEN NOT can_look;
                horizons := seen;
            END IF;
            IF is_scan THEN
                SELECT array_agg(ranked.id), array_agg(ranked.number), array_agg(json_build_array(
                    ranked.generation, ranked.slot_from, ranked.slot_to, ranked.done
                ))
                INTO queue_ids, queue_numbers, queue_ranges
                FROM (
                    SELECT
                        c.id, mine.number, c.generation, c.slot_from, c.slot_to,
                        GREATEST(c.position, CASE WHEN known.id IS NOT NULL THEN before[mine.number] END)
                            AS done
                    FROM unnest(of_groups, of_channels, horizons) WITH ORDINALITY
                        AS mine ("group", channel, horizon, number)
                    CROSS JOIN LATERAL outbox_ranges_v1(mine."group", mine.channel) AS c
                    LEFT JOIN unnest(idle_ids, idle_generations) AS known (id, generation)
                        ON known.id = c.id AND known.generation = c.generation
                    WHERE outbox_batch_limit(c, mine.horizon) > c.position
                      AND (known.id IS NULL OR known.id IN (SELECT unnest(woken)))
                    ORDER BY
                        row_number() OVER (PARTITION BY mine."group" ORDER BY c.last_served_at),
                        array_position(of_groups, mine."group")
                ) AS ranked;
            ELSE
                SELECT array_agg(known.id), array_agg(known.number), array_agg(json_build_array(
                    known.generation, known.first, known.last, before[known.number]
                ))
                INTO queue_ids, queue_numbers, queue_ranges
                FROM unnest(idle_ids, idle_numbers, idle_generations, idle_first, idle_last)
                    AS known (id, number, generation, first, last)
                WHERE known.id IN (SELECT unnest(woken));
            END IF;
            reads_log := false;
            is_scan := false;
            CONTINUE;
        END IF;
        horizon := horizons[queue_numbers[tried]];
        SELECT c.* INTO candidate
        FROM outbox_cursor AS c
        WHERE c.ctid = (
                  SELECT n.ctid FROM outbox_cursor AS n
                  WHERE n.id <= queue_ids[tried] ORDER BY n.id DESC LIMIT 1
              )
          AND c.id = queue_ids[tried] AND outbox_batch_limit(c, horizon) > c.position;
        CONTINUE WHEN NOT FOUND;
        furthest := outbox_batch_limit(candidate, horizon);
        until := LEAST(furthest, candidate.position + 100000);
        SELECT
            m.position, m.key, m.type, m.payload::text, m.headers::text, m.created_at::text
        INTO position, key, type, payload, headers, created_at
        FROM outbox_message AS m
        WHERE m.channel = candidate.channel
          AND m.position > candidate.position
          AND m.position <= until
          AND m.slot BETWEEN candidate.slot_from AND candidate.slot_to
        ORDER BY m.position
        LIMIT 1;
        IF NOT FOUND AND until = furthest THEN
            IF until = horizon THEN
                kind := 'idle';
                claim := json_build_object('horizon', horizon, 'range', json_build_array(
                    candidate.id, candidate.generation, candidate.channel,
                    candidate.slot_from, candidate.slot_to
                ));
                RETURN NEXT;
            END IF;
            CONTINUE;
        END IF;
        IF position IS NULL THEN
            until := COALESCE(outbox_next(candidate.channel, until, furthest) - 1, furthest);
        END IF;
        SELECT c.* INTO claimed
        FROM outbox_cursor AS c
        WHERE c.ctid = (
                  SELECT n.ctid FROM outbox_cursor AS n
                  WHERE n.id <= candidate.id ORDER BY n.id DESC LIMIT 1
              )
          AND c.id = candidate.id AND outbox_batch_limit(c, horizon) > c.position
        FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        -- Moved, reshaped or held since it was looked at: read again, now under the lock.
        IF claimed.position <> candidate.position
            OR claimed.generation <> candidate.generation
            OR outbox_batch_limit(claimed, horizon) < until
        THEN
            until := outbox_batch_limit(claimed, horizon, 100000);
            position := NULL;
        END IF;
        ignored := pg_try_advisory_xact_lock(20291, outbox_claim_number(claimed.id));
        messages := 1;
        IF position IS DISTINCT FROM until THEN
            SELECT
                count(*),
                max(following.position),
                sum(pg_column_size(following.payload) + pg_column_size(following.headers)),
                bool_or(pg_column_compression(following.payload) IS NOT NULL
                        OR pg_column_compression(following.headers) IS NOT NULL)
            INTO messages, last_message, size, is_compressed
            FROM (
                SELECT m.position, m.payload, m.headers
                FROM outbox_message AS m
                WHERE m.channel = claimed.channel
                  AND m.position > claimed.position
                  AND m.position <= until
                  AND m.slot BETWEEN claimed.slot_from AND claimed.slot_to
                ORDER BY m.position
                LIMIT most
            ) AS following;
            IF messages = most THEN
                until := last_message;
            END IF;
            IF messages > 1 AND (is_compressed OR size > most_bytes) THEN
                last_read := outbox_fitting_end(
                    claimed.channel, claimed.position, last_message,
                    claimed.slot_from, claimed.slot_to, most_bytes
                );
                IF last_read < last_message THEN
                    until := last_read;
                END IF;
            END IF;
        END IF;
        -- The server reports this setting to the client whenever it changes, so the worker sees
        -- without a round trip whether a handler has ended this transaction.
        PERFORM set_config(
            'application_name', left(rtrim(current_setting('application_name'), '*'), 62) || '*', true
        );
        kind := 'claim';
        claim := outbox_claim_of(claimed, until);
        RETURN NEXT;
        last_read := COALESCE(position, claimed.position);
        IF last_read < until AND messages > (position IS NOT NULL)::integer THEN
            RETURN QUERY
                SELECT
                    m.position, m.key::text, m.type::text, m.payload::text, m.headers::text,
                    m.created_at::text, NULL::text, NULL::text
                FROM outbox_message AS m
                WHERE m.channel = claimed.channel
                  AND m.position > last_read
                  AND m.position <= until
                  AND m.slot BETWEEN claimed.slot_from AND claimed.slot_to
                ORDER BY m.position;
        END IF;
        EXIT;
    END LOOP;
    IF queue_ranges IS NOT NULL AND tried < cardinality(queue_ids) THEN
        position := NULL;
        kind := 'queue';
        claim := json_build_array(
            queue_ids[tried + 1:], queue_numbers[tried + 1:], queue_ranges[tried + 1:]
        );
        RETURN NEXT;
    END IF;
END
$$;
