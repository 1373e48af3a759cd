-- Which positions a cursor can have, and how positions that disagree are mended.
-- Frozen from the first release on: a change is a new file.

-- Identifies the log, for sessions that cache facts about it: TRUNCATE gives the table of cursors
-- another file, and a pooler may connect the session to another server.
CREATE FUNCTION outbox_log_identity_v1() RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT pg_relation_filenode('outbox_cursor'::regclass)::text || ' '
        || extract(epoch FROM pg_postmaster_start_time())::text;
END;

-- Refuse a cursor above the log's last position, and one that moves back within its generation. A row
-- that was committed before this transaction comes from a backup or another database, perhaps ahead
-- of the sequence's value, as does one that a subscription brings: workers and checks refuse that. No WHEN clause: it is parsed anew for each
-- statement, which takes longer than this function.
CREATE FUNCTION outbox_check_cursor() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    last bigint;
BEGIN
    IF current_setting('session_replication_role') = 'replica' THEN
        RETURN NEW;
    ELSIF TG_OP = 'INSERT' THEN
        IF NEW.last_commit_at < transaction_timestamp() THEN
            RETURN NEW;
        END IF;
    ELSIF NEW.position = OLD.position THEN
        RETURN NEW;
    ELSIF NEW.position < OLD.position AND NEW.generation <= OLD.generation THEN
        RAISE EXCEPTION 'cursor % of group % in channel % moves back from % to % without a new generation',
            NEW.id, NEW."group", NEW.channel, OLD.position, NEW.position
            USING ERRCODE = 'check_violation',
                HINT = 'Move cursors with manage.py outbox reset.';
    END IF;
    last := pg_sequence_last_value('outbox_message_position_seq');
    IF last IS NULL THEN
        last := outbox_last_position();
    END IF;
    IF NEW.position > last THEN
        RAISE EXCEPTION 'cursor % of group % in channel % cannot be at %: the last position of the log is %',
            NEW.id, NEW."group", NEW.channel, NEW.position, last
            USING ERRCODE = 'check_violation',
                HINT = 'Move cursors with manage.py outbox reset.';
    END IF;
    RETURN NEW;
END
$$;

-- For operators, after a restore or a logical upgrade: make cursors and sequence agree with the log,
-- and return the last position. A cursor above the sequence goes back to the first message of its
-- range that is younger than its last commit, so that none is passed over; then the sequence goes
-- above all that has a position. Publishers wait until commit.
CREATE FUNCTION outbox_mend_positions() RETURNS bigint LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    LOCK TABLE outbox_message IN SHARE ROW EXCLUSIVE MODE;
    UPDATE outbox_cursor AS c
    SET position = unread.first - 1,
        counted_from = unread.first - 1,
        max_position = unread.first - 1,
        generation = generation + 1,
        lease_token = lease_token + 1,
        leased_until = NULL,
        processed = 0,
        skipped = 0,
        attempts = 0,
        failed_position = NULL,
        failed_since = NULL,
        retry_at = NULL,
        last_error = ''
    FROM (
        SELECT behind.id, min(m.position) AS first
        FROM outbox_cursor AS behind
        JOIN outbox_message AS m
            ON m.channel = behind.channel
           AND m.position <= behind.position
           AND m.slot BETWEEN behind.slot_from AND behind.slot_to
           AND m.created_at > behind.last_commit_at
        WHERE behind.position > outbox_last_position()
        GROUP BY behind.id
    ) AS unread
    WHERE unread.id = c.id;
    RETURN setval('outbox_message_position_seq', GREATEST(
        outbox_last_position(),
        (SELECT max(position) FROM outbox_message),
        (SELECT max(position) FROM outbox_cursor),
        (SELECT max(position) FROM outbox_parked_message),
        1
    ));
END
$$;
