-- Claims of slot ranges, and what a batch did to them.
-- Frozen from the first release on: a change is a new file.

-- Up to which position a batch may move a range now: not past the horizon, not past where a merge
-- holds it, and no more than `most` positions. Null: it waits.
CREATE FUNCTION outbox_batch_limit(c outbox_cursor, horizon bigint, most bigint DEFAULT NULL)
RETURNS bigint LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT CASE
        WHEN COALESCE(
            GREATEST(c.retry_at, c.paused_until, c.leased_until) <= clock_timestamp(), true
        )
        THEN LEAST(
            horizon,
            CASE WHEN c.hold_until > clock_timestamp() THEN c.hold_position END,
            c.position + most
        )
    END;
END;

-- The cursor rows of a group in a channel. While a session holds an old snapshot, the dead versions of
-- these rows stay, one for each batch. Equal keys of an index lie in the order of the table, so a walk
-- backwards meets the newest version first; a forward walk would read all dead ones before it.
CREATE FUNCTION outbox_ranges_v1(of_group text, of_channel text) RETURNS SETOF outbox_cursor
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH RECURSIVE walk AS (
        (
            SELECT c AS found, c.slot_from
            FROM outbox_cursor AS c
            WHERE c."group" = of_group AND c.channel = of_channel
            ORDER BY c.slot_from DESC
            LIMIT 1
        )
        UNION ALL
        SELECT lower.found, lower.slot_from
        FROM walk
        CROSS JOIN LATERAL (
            SELECT c AS found, c.slot_from
            FROM outbox_cursor AS c
            WHERE c."group" = of_group AND c.channel = of_channel AND c.slot_from < walk.slot_from
            ORDER BY c.slot_from DESC
            LIMIT 1
        ) AS lower
    )
    SELECT (found).* FROM walk;
END;

-- A cursor row as the worker's Claim, with the position up to which a batch may move it.
CREATE FUNCTION outbox_claim_of(c outbox_cursor, until bigint) RETURNS text
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT json_build_object(
        'id', c.id,
        'group', c."group",
        'channel', c.channel,
        'slot_from', c.slot_from,
        'slot_to', c.slot_to,
        'position', c.position,
        'generation', c.generation,
        'lease_token', c.lease_token,
        'leased_by', c.leased_by,
        'transaction', pg_current_xact_id_if_assigned()::text,
        'max_position', c.max_position,
        'parked', c.parked,
        'attempts', c.attempts,
        'failed_position', c.failed_position,
        'rate', c.rate,
        'idle_seconds', extract(epoch FROM clock_timestamp() - c.last_commit_at),
        'failing_seconds', extract(epoch FROM clock_timestamp() - c.failed_since),
        'until', until
    )::text;
END;

-- The number by which pg_locks shows the claim of a cursor; another log's cursors have others.
CREATE FUNCTION outbox_claim_number(cursor_id bigint) RETURNS integer LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT (hashint8extended(cursor_id, outbox_log_number()) & 2147483647)::integer;
END;

-- Until the end of this transaction no segment is removed. Waits while maintenance removes one, and
-- while it waits to do so: then a claim has to stand aside.
CREATE FUNCTION outbox_stand_aside_v1() RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pg_advisory_xact_lock_shared(20294, outbox_claim_number(0));
END;

-- Lock the first range that has something to do, by the order of the groups and then the longest
-- not served, and read its next messages: at most `most`, and no more than `most_bytes` of JSON but
-- one message at least. Ranges that others hold are passed over. The claim comes with the first
-- message, or alone, and says where the batch ends. The rows before it are ranges that have nothing up to the
-- horizon, for the caller to leave out as long as that is so. No search walks further than 100000
-- positions: a range that has nothing there is moved on by an empty batch. Who holds a range shows
-- in pg_locks: class 20291, outbox_claim_number. The plan is held to the index walk, as in outbox_read;
-- before PostgreSQL 18 the sort of the few cursors then seems so dear that it would be compiled.
CREATE FUNCTION outbox_claim(
    of_groups text[], of_channels text[], horizon bigint,
    idle_ids bigint[], idle_generations integer[], most integer, most_bytes bigint
) RETURNS TABLE (
    "position" bigint, key text, type text, payload text, headers text, created_at text,
    claim text, is_idle boolean
) LANGUAGE plpgsql VOLATILE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan SET search_path FROM CURRENT SET jit = off AS $$
DECLARE
    candidate outbox_cursor;
    claimed outbox_cursor;
    furthest bigint;
    until bigint;
    last_read bigint;
    messages integer;
    last_message bigint;
    size bigint;
    is_compressed boolean;
    ignored boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(20294, outbox_claim_number(0));
    FOR candidate IN
        SELECT c.*
        FROM unnest(of_groups, of_channels) WITH ORDINALITY AS mine ("group", channel, rank)
        CROSS JOIN LATERAL outbox_ranges_v1(mine."group", mine.channel) AS c
        WHERE outbox_batch_limit(c, horizon) > c.position
        ORDER BY array_position(of_groups, mine."group"), c.last_served_at
    LOOP
        CONTINUE WHEN
            candidate.generation = idle_generations[array_position(idle_ids, candidate.id)];
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
        is_idle := NOT FOUND AND until = furthest;
        IF is_idle THEN
            IF until = horizon THEN
                claim := outbox_claim_of(candidate, until);
                RETURN NEXT;
            END IF;
            CONTINUE;
        END IF;
        IF NOT FOUND THEN
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
        claim := outbox_claim_of(claimed, until);
        RETURN NEXT;
        last_read := COALESCE(position, claimed.position);
        IF last_read < until AND messages > (position IS NOT NULL)::integer THEN
            RETURN QUERY
                SELECT
                    m.position, m.key::text, m.type::text, m.payload::text, m.headers::text,
                    m.created_at::text, NULL::text, false
                FROM outbox_message AS m
                WHERE m.channel = claimed.channel
                  AND m.position > last_read
                  AND m.position <= until
                  AND m.slot BETWEEN claimed.slot_from AND claimed.slot_to
                ORDER BY m.position;
        END IF;
        RETURN;
    END LOOP;
END
$$;
