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
        'limit', until
    )::text;
END;

-- The number by which pg_locks shows the claim of a cursor; another log's cursors have others.
CREATE FUNCTION outbox_claim_number(cursor_id bigint) RETURNS integer LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT (hashint8extended(cursor_id, outbox_log_number()) & 2147483647)::integer;
END;

-- Until the end of this transaction no segment is removed. Waits while maintenance removes one, and
-- while it waits to do so: then a claim must not start.
CREATE FUNCTION outbox_stand_aside_v1() RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pg_advisory_xact_lock_shared(20294, outbox_claim_number(0));
END;

-- Which of some idle ranges have a message between two positions of their channel. Beyond 100000
-- positions all of them count. Each channel is looked at once; many channels by one walk over the
-- positions, if those are few. `numbers`: the channel of each range, from 1 on.
CREATE FUNCTION outbox_woken_v1(
    of_channels text[], after bigint[], until bigint[], ids bigint[], numbers integer[],
    first_slots integer[], last_slots integer[]
) RETURNS bigint[] LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    looked_at integer[] := ARRAY(
        SELECT DISTINCT number FROM unnest(numbers) AS known (number)
        WHERE until[number] > after[number]
    );
    lowest bigint := (SELECT min(after[number]) FROM unnest(looked_at) AS known (number));
    highest bigint := (SELECT max(until[number]) FROM unnest(looked_at) AS known (number));
    with_news integer[] := looked_at;
BEGIN
    IF cardinality(looked_at) > 16 AND highest - lowest <= 20000 THEN
        with_news := ARRAY(
            SELECT number FROM unnest(looked_at) AS known (number)
            WHERE of_channels[number] IN (
                SELECT m.channel FROM outbox_message AS m
                WHERE m.position > lowest AND m.position <= highest
            )
        );
    END IF;
    RETURN ARRAY(
        WITH news AS MATERIALIZED (
            SELECT looked.number, CASE
                WHEN until[looked.number] - after[looked.number] > 100000 THEN NULL
                WHEN NOT looked.is_whole
                    THEN outbox_slots(of_channels[looked.number], after[looked.number], until[looked.number])
                WHEN NOT outbox_pending(
                    of_channels[looked.number], after[looked.number], until[looked.number], 0, 32767
                ) THEN '{}'
            END AS slots
            FROM (
                SELECT known.number, bool_or(known.first = 0 AND known.last = 32767) AS is_whole
                FROM unnest(numbers, first_slots, last_slots) AS known (number, first, last)
                WHERE known.number = ANY(with_news)
                GROUP BY known.number
            ) AS looked
        )
        SELECT known.id
        FROM unnest(ids, numbers, first_slots, last_slots) AS known (id, number, first, last)
        JOIN news USING (number)
        WHERE news.slots IS NULL
           OR news.slots[width_bucket(known.first - 1, news.slots) + 1] <= known.last
    );
END
$$;
