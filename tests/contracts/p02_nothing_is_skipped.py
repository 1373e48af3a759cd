"""Promise 2: no reader ever moves a cursor past a position that may still appear.

The load is also run with the promise broken: the SQL function outbox_horizon then returns the
sequence's last value, which is "read everything after the cursor", and the load must find what is lost.
"""

import collections
import random
import threading

import pytest
from django.db import connection, transaction

import outbox
from tests.shop.events import OrderPlaced
from tests.support.harness import (
    cursor_of,
    drain,
    execute,
    exhaust,
    handled,
    horizon,
    insert,
    stored,
    value,
    worker,
)

pytestmark = pytest.mark.django_db(transaction=True)

PUBLISHERS = 8
WORKERS = 2
TRANSACTIONS = 100  # of each publisher
ROUNDS = 5  # loads after which a broken horizon counts as not found
KEYS = 12
GROUPS = ("ledger", "desks")  # one with a single range, one with four

READ_EVERYTHING = "RETURN (SELECT last_value FROM outbox_message_position_seq);"


def test_a_lower_position_that_appears_later_is_handled(connect):
    """Position 1 is drawn before and committed after position 2: nobody passes it, and both are
    handled in order."""
    early, late = connect(), connect()
    execute(early, "BEGIN")
    first = insert(early)
    second = insert(late)
    drain("billing")
    handled_meanwhile, cursor_meanwhile = handled("billing"), cursor_of("billing").position
    execute(early, "COMMIT")
    drain("billing")

    assert first < second
    assert handled_meanwhile == []
    assert cursor_meanwhile < first
    assert handled("billing") == [first, second]


def test_messages_below_an_open_publisher_are_handled(connect):
    """An open publisher holds back only what comes after its floor."""
    publisher = connect()
    before = [insert(publisher), insert(publisher)]
    open_publisher = connect()
    execute(open_publisher, "BEGIN")
    held = insert(open_publisher)
    after = insert(publisher)
    drain("billing")
    handled_meanwhile = handled("billing")
    execute(open_publisher, "COMMIT")
    drain("billing")

    assert handled_meanwhile == before
    assert handled("billing") == [*before, held, after]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_transaction_that_drew_its_positions_in_pieces_is_whole(connect, end):
    """Positions drawn before and after those of another transaction stay behind one floor until the
    end."""
    pieces, other = connect(), connect()
    execute(pieces, "BEGIN")
    first = insert(pieces)
    between = insert(other)
    third = insert(pieces)
    drain("billing")
    handled_meanwhile = handled("billing")
    execute(pieces, end)
    drain("billing")

    assert handled_meanwhile == []
    assert handled("billing") == ([first, between, third] if end == "COMMIT" else [between])


def test_a_rolled_back_position_is_passed(connect):
    """The gap of a transaction that rolled back holds up nothing once its floor is gone."""
    undone, publisher = connect(), connect()
    execute(undone, "BEGIN")
    gap = insert(undone)
    position = insert(publisher)
    execute(undone, "ROLLBACK")
    drain("billing")

    assert gap < position
    assert handled("billing") == [position]
    assert horizon(publisher) == position


def test_no_number_of_rounds_declares_a_gap_dead(connect):
    """However often a worker looks, an open transaction's position is never passed."""
    open_publisher, publisher = connect(), connect()
    execute(open_publisher, "BEGIN")
    held = insert(open_publisher)
    later = insert(publisher)
    impatient = worker("billing")
    rounds = [impatient.run_once() for _ in range(200)]
    reached = cursor_of("billing").position
    execute(open_publisher, "COMMIT")
    exhaust(impatient)

    assert set(rounds) == {None}
    assert reached < held
    assert handled("billing") == [held, later]


def test_an_empty_batch_moves_no_further_than_the_horizon(connect):
    """A range without messages for the group is passed up to the horizon, and not beyond."""
    open_publisher, publisher = connect(), connect()
    insert(publisher, channel="other")
    execute(open_publisher, "BEGIN")
    held = insert(open_publisher)
    insert(publisher, channel="other")
    drain("billing")
    reached = cursor_of("billing").position
    execute(open_publisher, "COMMIT")
    drain("billing")

    assert reached < held
    assert handled("billing") == [held]


def test_a_worker_with_a_remembered_horizon_skips_nothing(connect):
    """Messages that appear between two batches, below and above what the worker knew, are all
    handled in order."""
    publisher, open_publisher = connect(), connect()
    eager = worker("billing", batch_size=1)
    positions = [insert(publisher), insert(publisher)]
    eager.run_once()
    execute(open_publisher, "BEGIN")
    positions.append(insert(open_publisher))
    positions.append(insert(publisher))
    exhaust(eager)
    execute(open_publisher, "COMMIT")
    positions.append(insert(publisher))
    exhaust(eager)

    assert handled("billing") == positions


def pause(session, dice):
    """Keep the transaction open for up to 8 ms, so that commits overlap and overtake each other."""
    execute(session, "SELECT pg_sleep(%s)", dice.random() * 0.008)


def publish_by_sql(session, seed, committed):
    """Random transactions in plain SQL: savepoints kept and undone, publishing again after an
    undone one, rollbacks."""
    dice = random.Random(seed)
    for _ in range(TRANSACTIONS):
        execute(session, "BEGIN")
        kept = []
        for _ in range(dice.randint(1, 4)):
            if dice.random() < 0.4:
                execute(session, "SAVEPOINT inner_block")
                position = insert(session, dice.randint(1, KEYS))
                pause(session, dice)
                if dice.random() < 0.5:
                    execute(session, "ROLLBACK TO SAVEPOINT inner_block")
                else:
                    kept.append(position)
            else:
                kept.append(insert(session, dice.randint(1, KEYS)))
            pause(session, dice)
        if dice.random() < 0.8:
            execute(session, "COMMIT")
            committed.extend(kept)
        else:
            execute(session, "ROLLBACK")


class Undo(Exception):
    """Rolls the enclosing block back."""


def publish_by_orm(seed, committed):
    """The same through `outbox.publish` and `atomic()`."""
    dice = random.Random(seed)
    for _ in range(TRANSACTIONS):
        try:
            with transaction.atomic():
                kept = []
                for _ in range(dice.randint(1, 4)):
                    undo = dice.random() < 0.2
                    try:
                        with transaction.atomic():
                            position = outbox.publish(OrderPlaced(order_id=dice.randint(1, KEYS)))
                            pause(connection, dice)
                            if undo:
                                raise Undo
                        kept.append(position)
                    except Undo:
                        pass
                    pause(connection, dice)
                if dice.random() < 0.2:
                    raise Undo
            committed.extend(kept)
        except Undo:
            pass


def work_until(finished):
    """One competing worker; it returns how many messages it advanced over."""
    competitor, advanced = worker(*GROUPS), 0
    while not finished.is_set():
        count = competitor.run_once()
        advanced += count or 0
        if count is None:
            finished.wait(0.001)
    return advanced


@pytest.fixture
def many_locks(connect):
    """Two thousand foreign locks make each look at pg_locks slow, which widens every race around
    it."""
    session = connect()
    value(
        session,
        "SELECT count(pg_advisory_lock_shared(7002, number)) FROM generate_series(1, 2000) AS number",
    )


def run_load(connect, background):
    """Let publishers overlap while workers compete; return the positions that were committed, and
    how many messages each worker advanced over."""
    committed, finished = [], threading.Event()
    publishers = [
        background(publish_by_sql, connect(), seed, committed) for seed in range(PUBLISHERS // 2)
    ]
    publishers += [
        background(publish_by_orm, seed, committed) for seed in range(PUBLISHERS // 2, PUBLISHERS)
    ]
    workers = [background(work_until, finished) for _ in range(WORKERS)]
    try:
        for publisher in publishers:
            publisher.result(240)
    finally:
        finished.set()
    advanced = [competitor.result() for competitor in workers]
    for group in GROUPS:
        drain(group)
    return sorted(committed), advanced


def faults(published, group):
    """How many messages a group lost, handled again, and handled without their commit."""
    counts = collections.Counter(handled(group))
    return {
        "lost": len(set(published) - set(counts)),
        "doubled": sum(count - 1 for count in counts.values()),
        "invented": len(set(counts) - set(published)),
    }


@pytest.mark.timeout(300)
def test_concurrent_publishers_lose_nothing_to_competing_workers(
    connect, background, many_locks, record_property
):
    """Every committed message of overlapping publishers is handled exactly once by each group, and
    nothing else is."""
    published, advanced = run_load(connect, background)
    found = {group: faults(published, group) for group in GROUPS}
    record_property("numbers", {"published": len(published), **found})

    assert stored() == published
    assert found == {key: {"lost": 0, "doubled": 0, "invented": 0} for key in GROUPS}
    assert handled("ledger") == published
    for key in range(1, KEYS + 1):
        in_turn = handled("desks", key=str(key))
        assert in_turn == sorted(in_turn)
    assert all(advanced)


@pytest.mark.timeout(300)
def test_a_broken_horizon_is_found_by_the_load(connect, background, many_locks, replace_horizon):
    """Workers that read everything after their cursor lose messages of overlapping publishers, so
    the load above can fail."""
    replace_horizon(READ_EVERYTHING)
    for _ in range(ROUNDS):
        published, _ = run_load(connect, background)
        if lost := faults(published, "ledger")["lost"]:
            break

    assert lost > 0
