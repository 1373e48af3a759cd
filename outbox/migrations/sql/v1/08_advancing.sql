-- Advances: what became of messages, written to their cursor.
-- Frozen from the first release on: a change is a new file.

-- Write the results of a range's messages to its cursor row; false when the row was changed since
-- it was locked, or when the transaction that locked it is over (`of_transaction`; null where the
-- lease is the proof). A function, so that it is planned once for a session.
CREATE FUNCTION outbox_advance_v1(
    cursor_id bigint, of_generation integer, of_token bigint, of_position bigint,
    of_transaction text, to_position bigint, more_processed bigint, more_skipped bigint,
    more_parked bigint, new_rate float8, new_attempts integer, new_failed_position bigint,
    retry_delay float8, error text, lease float8
) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET search_path FROM CURRENT AS $$
DECLARE
    of_group text;
BEGIN
    -- The newest version of the row is found backwards, as in outbox_ranges_v1. A leased row is not
    -- locked: when another session writes a newer version at this moment, read it again.
    FOR attempt IN 1..3 LOOP
        UPDATE outbox_cursor AS c
        SET position = to_position,
            max_position = GREATEST(c.max_position, to_position),
            processed = c.processed + more_processed,
            skipped = c.skipped + more_skipped,
            parked = c.parked + more_parked,
            rate = new_rate,
            attempts = new_attempts,
            failed_position = new_failed_position,
            failed_since = CASE WHEN new_failed_position IS NULL THEN NULL
                                WHEN c.failed_position = new_failed_position THEN c.failed_since
                                ELSE clock_timestamp() END,
            retry_at = clock_timestamp() + make_interval(secs => retry_delay),
            last_error = COALESCE(error, c.last_error),
            leased_until = clock_timestamp() + make_interval(secs => lease),
            last_served_at = transaction_timestamp(),
            last_commit_at = clock_timestamp()
        WHERE c.ctid = (
                  SELECT n.ctid FROM outbox_cursor AS n WHERE n.id <= cursor_id ORDER BY n.id DESC LIMIT 1
              )
          AND c.id = cursor_id
          AND c.generation = of_generation
          AND c.lease_token = of_token
          AND c.position = of_position
          AND (of_transaction IS NULL
               OR of_transaction = pg_current_xact_id_if_assigned()::text)
        RETURNING c."group" INTO of_group;
        IF FOUND THEN
            RETURN outbox_signal_waiters(of_group) IS NOT NULL;
        END IF;
    END LOOP;
    RETURN false;
END
$$;
