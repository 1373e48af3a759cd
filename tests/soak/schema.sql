-- The rack's tables. One sequence numbers what handlers did and what happened to cursors: both are
-- written under the lock of the cursor row, so the numbers are the order of the commits of a range.
CREATE SEQUENCE soak_order;

-- A row for each message, written in the transaction that publishes it.
CREATE TABLE soak_fact (n bigint PRIMARY KEY, channel text NOT NULL, key text);

-- A row for each run of a handler that was kept.
CREATE TABLE soak_journal (
    id bigint PRIMARY KEY DEFAULT nextval('soak_order'),
    "group" text NOT NULL,
    channel text NOT NULL,
    position bigint NOT NULL,
    key text,
    n bigint,
    process int NOT NULL,
    attempt int NOT NULL
);

-- A row for each change of a cursor's position, shape or lease.
CREATE TABLE soak_cursor (
    id bigint PRIMARY KEY DEFAULT nextval('soak_order'),
    op text NOT NULL,
    cursor_id bigint NOT NULL,
    "group" text NOT NULL,
    channel text NOT NULL,
    slot_from int NOT NULL,
    slot_to int NOT NULL,
    old_position bigint,
    position bigint NOT NULL,
    old_generation int,
    generation int NOT NULL,
    is_renewal boolean NOT NULL,
    leased_by text NOT NULL,
    application text NOT NULL
);

CREATE FUNCTION soak_record_cursor() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before outbox_cursor := CASE WHEN TG_OP <> 'INSERT' THEN OLD END;
    after outbox_cursor := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    INSERT INTO soak_cursor (
        op, cursor_id, "group", channel, slot_from, slot_to, old_position, position,
        old_generation, generation, is_renewal, leased_by, application
    ) VALUES (
        TG_OP, after.id, after."group", after.channel, after.slot_from, after.slot_to,
        before.position, after.position, before.generation, after.generation,
        TG_OP = 'UPDATE' AND before.leased_until IS NOT NULL
            AND before.leased_until IS DISTINCT FROM after.leased_until
            AND before.lease_token = after.lease_token
            AND before.generation = after.generation,
        after.leased_by,
        current_setting('application_name')
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER soak_record_cursor AFTER INSERT OR UPDATE OR DELETE ON outbox_cursor
FOR EACH ROW EXECUTE FUNCTION soak_record_cursor();

-- Now and then a commit fails for lack of resources, which no message is to blame for.
CREATE FUNCTION soak_fail_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.001 THEN
        RAISE EXCEPTION 'the rack has no memory left' USING ERRCODE = 'out_of_memory';
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER soak_fail_commit AFTER INSERT ON soak_journal
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION soak_fail_commit();
