"""The visibility protocol (design, section 3): one test, or several, for each thing that breaks
it."""

import threading

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connection, transaction

import outbox
from outbox.models import Message
from tests.shop.events import Countdown, OrderPlaced
from tests.shop.gates import GATES, gate_key
from tests.support.harness import (
    DRIVER_ERROR,
    all_floors,
    backend,
    copy_in,
    cursor_of,
    drain,
    execute,
    exhaust,
    floors,
    handled,
    horizon,
    insert,
    last_position,
    stored,
    value,
    worker,
)
from tests.support.processes import wait_until
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

WAITING_HORIZON = f"""
    PERFORM pg_advisory_xact_lock_shared({GATES}, {gate_key("horizon")});
    RETURN outbox_horizon_kept();
"""


@pytest.fixture
def session(connect):
    return connect()


# The horizon and the rows are read under different snapshots.


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_rows_are_read_under_a_newer_snapshot_than_the_horizon(
    background, connect, close_gate, replace_horizon, isolation
):
    """A commit between the beginning of the horizon's statement and its answer is not lost.

    A worker that read the horizon and the rows in one statement, or in one REPEATABLE READ
    transaction, would take its snapshot before that commit and its horizon after it.
    """
    gate = close_gate("horizon")
    replace_horizon(WAITING_HORIZON)
    publisher = connect()
    execute(publisher, "BEGIN")
    position = insert(publisher)

    def work():
        execute(
            connection, f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {isolation}"
        )
        return worker("billing").run_once()

    reader = background(work)
    wait_until(gate.waiting)
    execute(publisher, "COMMIT")
    gate.open()
    advanced = reader.result()
    drain("billing")

    assert advanced == 1
    assert handled("billing") == [position]


def test_nothing_of_the_log_is_held_while_the_horizons_are_read(
    background, session, close_gate, replace_horizon
):
    """While a worker asks for the horizons it holds no claim, and has opened neither the log nor its
    segments: the rows are read by later statements, under snapshots of their own."""
    gate = close_gate("horizon")
    replace_horizon(WAITING_HORIZON)
    publish_orders(notes=[""])
    reader = background(worker("billing").run_once)
    (pid,) = wait_until(gate.waiting)
    locked = execute(
        session,
        "SELECT relation::regclass::text FROM pg_locks WHERE pid = %s AND locktype = 'relation' AND granted"
        " AND relation IN (SELECT relid FROM pg_partition_tree('outbox_message'::regclass)"
        " UNION SELECT 'outbox_cursor'::regclass)",
        pid,
    )
    gate.open()
    reader.result()

    assert locked == []


# The sequence is read before the floors.


def test_the_sequence_is_read_before_the_floors(
    background, connect, close_gate, hold_after_reading_locks, observer
):
    """A publisher that begins when the floors have been read is above the horizon.

    Read in the other order, its position would be below the horizon and its floor unknown.
    """
    before = insert(observer)
    gate = close_gate("horizon")
    hold_after_reading_locks("horizon")
    reading = background(horizon, connect())
    wait_until(gate.waiting)
    publisher = connect()
    execute(publisher, "BEGIN")
    held = insert(publisher)
    insert(observer)
    gate.open()
    reached = reading.result()
    execute(publisher, "COMMIT")

    assert reached == before < held


# The floor is taken before a position is drawn.


def test_the_floor_is_held_before_a_position_is_drawn(background, connect, close_gate, observer):
    """An INSERT that is held up before its first row has its floor already and has drawn
    nothing."""
    insert(observer)
    gate = close_gate("insert")
    drawn_before = last_position(observer)
    slow = connect()
    insertion = background(
        execute,
        slow,
        "INSERT INTO outbox_message (channel, key, type, payload, headers)"
        " SELECT 'orders', '1', 'OrderPlaced', jsonb_build_object('order_id', 1, 'note', held.up::text), '{}'::jsonb"
        " FROM (SELECT pg_advisory_xact_lock_shared(%s, %s) AS up OFFSET 0) AS held",
        GATES,
        gate_key("insert"),
    )
    (pid,) = wait_until(gate.waiting)
    held, drawn = floors(observer, pid), last_position(observer)
    insert(observer)
    insert(observer)
    reached = horizon(observer)
    gate.open()
    insertion.result()

    assert held == [drawn_before]
    assert drawn == drawn_before
    assert reached == drawn_before


def test_every_position_of_a_transaction_is_above_its_floor(session, observer):
    """The horizon stays below the lowest position of an open transaction, however much it
    publishes."""
    insert(session)
    execute(session, "BEGIN")
    positions = [insert(session) for _ in range(5)]
    held = floors(observer, backend(session))
    reached = horizon(observer)
    execute(session, "COMMIT")

    assert held == [positions[0] - 1]
    assert reached == positions[0] - 1
    assert horizon(observer) == positions[-1]


def test_a_transaction_takes_one_floor(session, observer):
    """The floor is taken by the first publishing statement only, so that long transactions do not
    fill the lock table."""
    execute(session, "BEGIN")
    insert(session)
    insert(observer)
    insert(session)
    execute(session, "SAVEPOINT inner_block")
    insert(session)
    held = floors(observer, backend(session))
    execute(session, "COMMIT")

    assert len(held) == 1
    assert floors(observer, backend(session)) == []


def test_a_transaction_that_publishes_nothing_holds_nothing_back(session, connect, observer):
    """Long transactions, foreign locks and snapshots have no part in the horizon: only publishers
    have."""
    execute(session, "BEGIN ISOLATION LEVEL REPEATABLE READ")
    execute(
        session,
        "SELECT pg_advisory_xact_lock_shared(1, 1), pg_advisory_xact_lock(2), txid_current()",
    )
    execute(session, "SELECT count(*) FROM outbox_message")
    position = insert(observer)
    reached = horizon(observer)
    execute(session, "ROLLBACK")

    assert reached == position


def test_publishers_of_another_database_hold_nothing_back(connect, observer):
    """Locks of other databases of the server are not floors of this one."""
    name = value(observer, "SELECT current_database()") + "_neighbour"
    publisher = connect()
    execute(publisher, "BEGIN")
    position = insert(publisher)
    key = execute(
        observer,
        "SELECT classid::bigint << 32 | objid::bigint FROM pg_locks"
        " WHERE pid = %s AND locktype = 'advisory' AND objsubid = 1",
        backend(publisher),
    )[0][0]
    execute(publisher, "ROLLBACK")
    later = insert(observer)
    execute(observer, f"DROP DATABASE IF EXISTS {name}")
    execute(observer, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        neighbour = neighbouring_session(name)
        execute(neighbour, f"SELECT pg_advisory_lock_shared({key})")
        reached = horizon(observer)
        neighbour.close()
    finally:
        execute(observer, f"DROP DATABASE {name} WITH (FORCE)")

    assert position < later
    assert reached == later


def neighbouring_session(name):
    parameters = {**connection.get_connection_params(), "dbname": name}
    parameters = {
        key: parameter
        for key, parameter in parameters.items()
        if key in ("dbname", "host", "port", "user", "password")
    }
    session = connection.Database.connect(**parameters)
    session.autocommit = True
    return session


# A rollback to a savepoint gives the floor up, and the next publish takes it again.


def test_after_a_rolled_back_savepoint_sql_takes_its_floor_again(session, observer):
    """In plain SQL: the floor goes with the savepoint, and the next INSERT of the transaction takes
    a new one."""
    pid = backend(session)
    execute(session, "BEGIN")
    execute(session, "SAVEPOINT inner_block")
    undone = insert(session)
    execute(session, "ROLLBACK TO SAVEPOINT inner_block")
    held_after_rollback = floors(observer, pid)
    position = insert(session)
    insert(observer)
    held, reached = floors(observer, pid), horizon(observer)
    drain("billing")
    handled_meanwhile = handled("billing")
    execute(session, "COMMIT")
    drain("billing")

    assert held_after_rollback == []
    assert held == [undone]
    assert reached == undone < position
    assert handled_meanwhile == []
    assert handled("billing") == stored()
    assert position in handled("billing")


def test_after_a_rolled_back_savepoint_django_takes_its_floor_again(background, connect, observer):
    """Through `outbox.publish`: no flag in Python believes that the floor is still held."""
    pid = value(connection, "SELECT pg_backend_pid()")
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            undone = outbox.publish(OrderPlaced(order_id=1))
            raise ZeroDivisionError
        held_after_rollback = floors(observer, pid)
        position = outbox.publish(OrderPlaced(order_id=1))
        insert(observer)
        held, reached = floors(observer, pid), horizon(observer)
        background(drain, "billing").result()
        reached_by_cursor = value(
            observer, """SELECT position FROM outbox_cursor WHERE "group" = 'billing'"""
        )
    drain("billing")

    assert held_after_rollback == []
    assert held == [undone]
    assert reached == undone < position
    assert reached_by_cursor < position
    assert handled("billing") == stored()


def test_a_floor_taken_before_a_savepoint_outlives_its_rollback(session, observer):
    """What was published before the savepoint is still protected by the first floor, and nothing
    new is taken."""
    pid = backend(session)
    execute(session, "BEGIN")
    first = insert(session)
    execute(session, "SAVEPOINT inner_block")
    insert(session)
    execute(session, "ROLLBACK TO SAVEPOINT inner_block")
    insert(session)
    held = floors(observer, pid)
    execute(session, "COMMIT")

    assert held == [first - 1]


def test_a_new_transaction_of_the_session_takes_a_new_floor(session, observer):
    """The memory of the floor ends with the transaction, by commit as by rollback."""
    for end in ("COMMIT", "ROLLBACK"):
        execute(session, "BEGIN")
        insert(session)
        execute(session, end)
    execute(session, "BEGIN")
    position = insert(session)
    held = floors(observer, backend(session))
    execute(session, "COMMIT")

    assert held == [position - 1]


# A sequence with a cache.


def messages_of_checks():
    return [
        found
        for found in checks.run_checks(databases=["default"])
        if (found.id or "").startswith("outbox.")
    ]


@pytest.fixture
def altered(session):
    """Alter the schema, and alter it back at the end of the test."""
    undo = []

    def alter(statement, back):
        undo.append(back)
        execute(session, statement)

    yield alter
    for statement in undo:
        execute(session, statement)


@pytest.mark.usefixtures("groups_of_the_apps")
def test_the_checks_are_content_with_the_migrated_database():
    """Without a cache and with all triggers there is nothing to report."""
    assert messages_of_checks() == []


@pytest.mark.usefixtures("groups_of_the_apps")
def test_a_sequence_with_a_cache_is_refused_by_a_check(altered):
    """With CACHE over 1 sessions draw positions ahead, below other sessions' floors, so a check
    refuses it."""
    altered(
        "ALTER SEQUENCE outbox_message_position_seq CACHE 20",
        "ALTER SEQUENCE outbox_message_position_seq CACHE 1",
    )
    found = messages_of_checks()

    assert len(found) == 1
    assert found[0].level >= checks.ERROR
    assert "outbox_message_position_seq" in found[0].msg + (found[0].hint or "")
    assert "cache" in (found[0].msg + (found[0].hint or "")).lower()


def test_a_cached_position_below_the_floor_is_refused_by_the_database(altered, connect):
    """Even if nobody runs the checks: a position drawn ahead is not stored when a reader may have
    passed it."""
    altered(
        "ALTER SEQUENCE outbox_message_position_seq CACHE 20",
        "ALTER SEQUENCE outbox_message_position_seq CACHE 1",
    )
    hoarder, other = connect(), connect()
    insert(hoarder)
    insert(other)
    with pytest.raises(DRIVER_ERROR, match="position"):
        insert(hoarder)

    assert len(stored()) == 2


@pytest.mark.usefixtures("groups_of_the_apps")
def test_a_disabled_trigger_is_refused_by_a_check(altered, session):
    """Each trigger of the log that is switched off is an error of the checks."""
    triggers = execute(
        session,
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'outbox_message'::regclass AND NOT tgisinternal ORDER BY 1",
    )
    silent = []
    for (name,) in triggers:
        execute(session, f'ALTER TABLE outbox_message DISABLE TRIGGER "{name}"')
        try:
            if not any(found.level >= checks.ERROR for found in messages_of_checks()):
                silent.append(name)
        finally:
            execute(session, f'ALTER TABLE ONLY outbox_message ENABLE ALWAYS TRIGGER "{name}"')

    assert triggers
    assert silent == []
    assert messages_of_checks() == []


# The very first message: `is_called` is false.


@pytest.fixture
def fresh_sequence(session):
    """A sequence that has not handed out a position since it was set: the next one is the number it
    shows."""

    def start(position):
        execute(session, "SELECT setval('outbox_message_position_seq', %s, false)", position)

    before = last_position(session)
    yield start
    after = max(before, last_position(session))
    execute(session, "SELECT setval('outbox_message_position_seq', %s)", after)


def test_the_horizon_of_an_unused_log_is_below_its_first_position(fresh_sequence, session):
    """Before anything was published, nothing can have been passed: not even the position that comes
    first."""
    fresh_sequence(1)
    at_the_beginning = horizon(session)
    ahead = last_position(session) + 1000
    fresh_sequence(ahead)

    assert at_the_beginning == 0
    assert horizon(session) == ahead - 1


def test_the_very_first_message_is_not_skipped(fresh_sequence, connect, observer):
    """While the first message of all is uncommitted a later one is published and committed: both
    are handled, in order."""
    fresh_sequence(1)
    drain("billing")
    first_publisher, second_publisher = connect(), connect()
    execute(first_publisher, "BEGIN")
    first = insert(first_publisher)
    held = floors(observer, backend(first_publisher))
    second = insert(second_publisher)
    reached = horizon(observer)
    drain("billing")
    handled_meanwhile = handled("billing")
    execute(first_publisher, "COMMIT")
    drain("billing")

    assert (first, second) == (1, 2)
    assert held == [0]
    assert reached == 0
    assert handled_meanwhile == []
    assert handled("billing") == [first, second]


def test_a_worker_that_looked_before_the_first_message_handles_it(fresh_sequence, connect):
    """A cursor that was created and served while the log was unused starts below the first
    position."""
    fresh_sequence(1)
    early = worker("billing")
    rounds = [early.run_once(), early.run_once()]
    reached = cursor_of("billing").position
    position = insert(connect())
    exhaust(early)

    assert rounds == [None, None]
    assert reached == 0
    assert position == 1
    assert handled("billing") == [1]


# Positions of more than 32 bits: the lock's key holds the floor's low half only.


@pytest.mark.parametrize("boundary", [2**31, 2**32, 3 * 2**32])
def test_the_horizon_is_right_across_a_boundary_of_32_bits(session, connect, observer, boundary):
    """A floor below a multiple of 2^32 is restored from its low half when the sequence has passed
    the multiple."""
    before = last_position(session)
    drain("billing")
    execute(session, "SELECT setval('outbox_message_position_seq', %s)", boundary - 2)
    try:
        call_command("outbox", "reset", "billing", "--to-latest", "--execute")
        execute(session, "BEGIN")
        held = insert(session)
        passed = [insert(observer) for _ in range(3)]
        reached = horizon(observer)
        drain("billing")
        handled_meanwhile = handled("billing")
        execute(session, "COMMIT")
        drain("billing")
        all_handled = handled("billing")
    finally:
        execute(observer, "SELECT setval('outbox_message_position_seq', %s)", before)

    assert held == boundary - 1
    assert reached == boundary - 2
    assert handled_meanwhile == []
    assert all_handled == [held, *passed]


# A prepared transaction has no process.


def test_a_prepared_transaction_holds_the_horizon(session, connect, observer):
    """A transaction that waits for its second phase has no process, and its floor counts all the
    same."""
    if value(observer, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    execute(session, "BEGIN")
    held = insert(session)
    execute(session, "PREPARE TRANSACTION 'outbox-visibility'")
    try:
        session.close()
        later = insert(observer)
        reached = horizon(observer)
        drain("billing")
        handled_meanwhile = handled("billing")
    finally:
        execute(observer, "COMMIT PREPARED 'outbox-visibility'")
    drain("billing")

    assert reached == held - 1
    assert handled_meanwhile == []
    assert handled("billing") == [held, later]


def test_a_prepared_transaction_that_is_rolled_back_leaves_nothing(session, observer):
    """The second phase may also be a rollback; the gap is then passed."""
    if value(observer, "SHOW max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    execute(session, "BEGIN")
    insert(session)
    execute(session, "PREPARE TRANSACTION 'outbox-visibility'")
    execute(observer, "ROLLBACK PREPARED 'outbox-visibility'")
    later = insert(observer)
    drain("billing")

    assert handled("billing") == [later]
    assert all_floors(observer) == []


# A handler that publishes.


def test_a_publishing_handler_holds_its_group_back_only_while_its_transaction_is_open(observer):
    """A group whose handler publishes goes through its backlog batch by batch, without a pause
    between them."""
    publish_orders(notes=["", "", "", ""])
    publisher = worker("relay", batch_size=1)
    counts = [publisher.run_once() for _ in range(5)]

    assert counts == [1, 1, 1, 1, None]
    assert all_floors(observer) == []
    assert drain("packers") == 4


def test_a_publishing_handler_may_publish_to_its_own_channel():
    """A group that feeds itself comes to an end."""
    with transaction.atomic():
        outbox.publish(Countdown(left=5))
    advanced = drain("countdown")

    assert advanced == 6
    assert handled("countdown") == stored()


def test_an_open_publishing_handler_holds_back_what_comes_after_its_floor(
    background, close_gate, observer
):
    """A handler's own publish holds back the channel that it publishes to, and no other: groups of the
    channel that it reads go on."""
    gate = close_gate("relay")
    before = publish_orders(notes=["", "gate"])
    relaying = background(worker("relay").run_once)
    (pid,) = wait_until(gate.waiting)
    after = publish_orders(notes=[""])
    held, reached = floors(observer, pid), horizon(observer)
    drain("billing")
    handled_meanwhile = handled("billing")
    gate.open()
    relaying.result()
    drain("billing")
    drain("relay")

    assert held == [before[-1]]
    assert reached == before[-1]
    assert handled_meanwhile == before + after
    assert handled("billing") == before + after
    assert handled("relay") == before + after


# Other ways into the log.


def test_a_plain_insert_takes_a_floor(session, observer):
    """An INSERT by any program goes through the trigger."""
    execute(session, "BEGIN")
    position = insert(session)
    held = floors(observer, backend(session))
    execute(session, "COMMIT")
    drain("billing")

    assert held == [position - 1]
    assert handled("billing") == [position]


def test_a_copy_takes_a_floor(session, observer):
    """COPY goes through the trigger, and its rows get positions, slots and a time like any
    others."""
    lines = "".join(
        f'orders\t{number}\tOrderPlaced\t{{"order_id": {number}}}\t{{}}\n' for number in range(3)
    )
    before = last_position(observer)
    execute(session, "BEGIN")
    copy_in(session, "COPY outbox_message (channel, key, type, payload, headers) FROM STDIN", lines)
    later = insert(observer)
    held, reached = floors(observer, backend(session)), horizon(observer)
    drain("billing")
    handled_meanwhile = handled("billing")
    execute(session, "COMMIT")
    drain("billing")

    assert len(held) == 1
    assert reached < before + 2
    assert handled_meanwhile == []
    assert len(stored()) == 4
    assert handled("billing") == stored()
    assert stored()[-1] == later
    assert not Message.objects.filter(created_at=None).exists()


def test_a_model_create_takes_a_floor(observer):
    """The ORM's own INSERT goes through the trigger."""
    pid = value(connection, "SELECT pg_backend_pid()")
    with transaction.atomic():
        Message.objects.create(
            channel="orders", key="1", type="OrderPlaced", payload={"order_id": 1}, headers={}
        )
        held = floors(observer, pid)
    (position,) = stored()
    drain("billing")

    assert held == [position - 1]
    assert handled("billing") == [position]


CHOSEN = """
    INSERT INTO outbox_message (position, channel, key, type, payload, headers)
    VALUES (%s, 'orders', '1', 'OrderPlaced', '{"order_id": 1}', '{}')
"""


def test_a_chosen_position_below_the_floor_is_refused(session):
    """A free position that readers may have passed cannot be taken."""
    execute(session, "BEGIN")
    gap = insert(session)
    execute(session, "ROLLBACK")
    with pytest.raises(DRIVER_ERROR, match="position"):
        execute(session, CHOSEN, gap)

    assert stored() == []


def test_a_position_passed_while_the_floor_was_taken_is_refused(
    session, connect, observer, close_gate
):
    """Between reading the sequence and holding the floor a publisher is invisible to readers: what
    they pass meanwhile is not free for it."""
    insert(session)
    last = last_position(session)
    original = value(session, "SELECT pg_get_functiondef('outbox_take_floor()'::regprocedure)")
    loop = "WHILE NOT pg_try_advisory_xact_lock_shared"
    held = f"PERFORM pg_advisory_xact_lock_shared({GATES}, {gate_key('floor')}); {loop}"
    assert loop in original
    gate, writer, refused = close_gate("floor"), connect(), []

    def name_a_position():
        try:
            execute(writer, CHOSEN, last + 2)
        except DRIVER_ERROR as error:
            refused.append(str(error))

    try:
        execute(session, original.replace(loop, held))
        thread = threading.Thread(target=name_a_position)
        thread.start()
        wait_until(gate.waiting)
        execute(session, "SELECT nextval('outbox_message_position_seq') FROM generate_series(1, 5)")
        gate.open()
        thread.join()
    finally:
        execute(session, original)

    assert len(refused) == 1
    assert "position" in refused[0]
    assert len(stored()) == 1


def test_a_position_drawn_in_an_earlier_statement_is_refused(session):
    """Drawing the position first and inserting it then is the forbidden order, also within one
    transaction."""
    execute(session, "BEGIN")
    drawn = value(session, "SELECT nextval('outbox_message_position_seq')")
    with pytest.raises(DRIVER_ERROR, match="position"):
        execute(session, CHOSEN, drawn)
    execute(session, "ROLLBACK")

    assert stored() == []


@pytest.mark.parametrize("distance", [1, 2, 1_000_000])
def test_a_chosen_position_above_the_sequence_is_refused(session, distance):
    """A position that was not drawn yet would collide with the publisher who draws it, and readers
    would pass it."""
    insert(session)
    with pytest.raises(DRIVER_ERROR, match="position"):
        execute(session, CHOSEN, last_position(session) + distance)

    assert len(stored()) == 1


@pytest.mark.parametrize("position", [0, -1])
def test_a_chosen_position_that_is_not_positive_is_refused(session, position):
    """Cursors start at 0, so nobody would ever read it."""
    with pytest.raises(DRIVER_ERROR):
        execute(session, CHOSEN, position)

    assert stored() == []


def test_one_chosen_position_among_drawn_ones_is_refused(session):
    """The whole statement is refused, whichever of its rows is at fault."""
    execute(session, "BEGIN")
    gap = insert(session)
    execute(session, "ROLLBACK")
    with pytest.raises(DRIVER_ERROR, match="position"):
        execute(
            session,
            "INSERT INTO outbox_message (position, channel, type, payload, headers)"
            " SELECT CASE number WHEN 2 THEN %s ELSE nextval('outbox_message_position_seq') END, 'orders', 'A', '{}', '{}'"
            " FROM generate_series(1, 3) AS number",
            gap,
        )

    assert stored() == []


# Floors by channel.


def announced(session, channel="orders", order_id=1, type="OrderPlaced"):
    """Publish as the product does: the function names the channel."""
    return value(
        session,
        "SELECT outbox_publish_v1(%s, %s, %s, json_build_object('order_id', %s::int), '{}')",
        channel,
        str(order_id),
        type,
        order_id,
    )


def test_an_open_publisher_of_another_channel_delays_nobody(connect, observer):
    """A transaction that published in one channel and stays open holds back the readers of that
    channel only."""
    importer = connect()
    execute(importer, "BEGIN")
    held = announced(importer, channel="imports")
    positions = [announced(observer) for _ in range(3)]
    drain("billing")
    handled_meanwhile = handled("billing")
    horizons = value(observer, "SELECT horizons FROM outbox_horizons_v1('{imports,orders}')")
    reached_by_all = horizon(observer)
    execute(importer, "COMMIT")

    assert handled_meanwhile == positions
    assert horizons == [held - 1, positions[-1]]
    assert reached_by_all == held - 1


def test_a_worker_of_two_channels_is_delayed_in_one_of_them_only(connect, observer):
    """A worker of groups of both channels goes on in the one that no open transaction holds back, is
    not done in the other, and handles both when the transaction ends."""
    both = worker("billing", "packers")
    importer = connect()
    execute(importer, "BEGIN")
    held = announced(importer, "packing", type="PackingRequested")
    free = [announced(observer) for _ in range(3)]
    behind = announced(observer, "packing", type="PackingRequested")
    exhaust(both)
    meanwhile = handled("billing"), handled("packers"), both.claims.state.is_held
    execute(importer, "COMMIT")
    exhaust(both)

    assert meanwhile == (free, [], True)
    assert handled("packers") == [held, behind]
    assert not both.claims.state.is_held


@pytest.mark.parametrize("way", ["raw", "many channels"])
def test_an_insert_that_names_no_channel_holds_back_all(connect, observer, way):
    """Raw SQL, and a transaction over more than four channels, hold the floor of every channel."""
    publisher = connect()
    execute(publisher, "BEGIN")
    if way == "raw":
        insert(publisher, channel="imports")
    else:
        for number in range(5):
            announced(publisher, channel=f"imports-{number}")
    reached = value(observer, "SELECT last_value FROM outbox_message_position_seq") - 1
    after = announced(observer)
    drain("billing")
    handled_meanwhile = handled("billing")
    own = len(floors(observer, backend(publisher)))
    execute(publisher, "COMMIT")
    drain("billing")

    assert handled_meanwhile == []
    assert own == (1 if way == "raw" else 5)
    assert handled("billing") == [after]
    assert reached < after


def test_a_savepoint_gives_back_the_floor_of_its_channel_alone(connect, observer):
    """Rolled back to a savepoint, a transaction keeps the floors from before it."""
    publisher = connect()
    execute(publisher, "BEGIN")
    first = announced(publisher, channel="imports")
    execute(publisher, "SAVEPOINT inner_block")
    second = announced(publisher)
    held_by_both = value(observer, "SELECT horizons FROM outbox_horizons_v1('{imports,orders}')")
    execute(publisher, "ROLLBACK TO SAVEPOINT inner_block")
    held_by_one = value(observer, "SELECT horizons FROM outbox_horizons_v1('{imports,orders}')")
    third = announced(publisher)
    held_again = value(observer, "SELECT horizons FROM outbox_horizons_v1('{imports,orders}')")
    execute(publisher, "ROLLBACK")

    assert held_by_both == [first - 1, second - 1]
    assert held_by_one == [first - 1, second]
    assert held_again == [first - 1, third - 1]


def test_a_message_of_a_channel_that_was_not_named_is_refused(session):
    """No floor of its channel is held, so a reader could pass it."""
    execute(session, "BEGIN")
    execute(session, "SELECT set_config('outbox.channels', '{imports}', true)")
    with pytest.raises(DRIVER_ERROR, match="channel"):
        insert(session)
    execute(session, "ROLLBACK")

    assert stored() == []


BREAKS = {
    "late": (
        "outbox_take_floor()",
        "outbox_floor_key(channel, floor)",
        "outbox_floor_key(channel, floor + 2)",
    ),
    "channel": ("outbox_check_positions_and_notify()", "IF floor IS NULL THEN", "IF false THEN"),
    "general": (
        "outbox_horizons_v1(text[],integer)",
        "LEAST(last_position, of_every_channel, lowest.floor)",
        "LEAST(last_position, lowest.floor)",
    ),
}
"""The function, what it says, and what it says when the protocol is broken: a floor as it would be
read after nextval, a trigger that does not look at the channel, a reader that ignores the floor of
every channel."""


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("name", BREAKS)
def test_each_part_of_the_protocol_is_needed(connect, observer, name, is_broken):
    """With one part broken a message is lost; with all of them none is."""
    function, said, broken = BREAKS[name]
    original = value(observer, "SELECT pg_get_functiondef(%s::regprocedure)", function)
    assert said in original
    publisher = connect()
    try:
        if is_broken:
            execute(observer, original.replace(said, broken))
        execute(publisher, "BEGIN")
        if name == "channel":
            execute(publisher, "SELECT set_config('outbox.channels', '{imports}', true)")
        try:
            announced(publisher) if name == "late" else insert(publisher)
        except DRIVER_ERROR:
            execute(publisher, "ROLLBACK")
        announced(observer)
        drain("billing")
        execute(publisher, "COMMIT")
        drain("billing")
    finally:
        execute(observer, original)

    assert (set(stored()) != set(handled("billing"))) is is_broken
