"""Promise 3: publishers never wait for each other or for consumers, and are not serialised at
commit.

The sessions that must not wait have a `lock_timeout`: whoever they would wait for never lets go
while they run, so a wait is an error and not a matter of speed.
"""

import pytest
from django.db import connection, transaction

import outbox
from tests.shop.events import OrderPlaced
from tests.support.harness import (
    backend,
    drain,
    execute,
    exhaust,
    handled,
    insert,
    stored,
    waiting_for_locks,
    worker,
)
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

PUBLISHERS = 8


@pytest.fixture
def open_publishers(connect):
    """Sessions whose transactions have published to one key and to many, and stay open."""
    sessions = [connect() for _ in range(PUBLISHERS)]
    for number, session in enumerate(sessions):
        execute(session, "BEGIN")
        execute(session, "SET LOCAL lock_timeout = '3s'")
        insert(session, order_id=1)
        insert(session, order_id=number)
    return sessions


@pytest.fixture
def impatient(connect):
    """A session that would rather fail than wait for a lock."""
    session = connect()
    execute(session, "SET lock_timeout = '3s'")
    return session


def test_open_publishers_hold_up_no_other_publisher(open_publishers, impatient, observer):
    """Beside eight open publishing transactions another one publishes and commits; nobody waits for
    a lock."""
    position = insert(impatient, order_id=1)

    assert stored() == [position]
    assert waiting_for_locks(observer) == []


def test_open_publishers_hold_up_no_publisher_of_the_orm(open_publishers, observer):
    """The same through `publish_many` in a transaction of Django."""
    with transaction.atomic():
        execute(connection, "SET LOCAL lock_timeout = '3s'")
        positions = outbox.publish_many([OrderPlaced(order_id=number) for number in range(3)])
        waiting = waiting_for_locks(observer)

    assert waiting == []
    assert stored() == list(positions)


def test_open_publishers_commit_in_any_order(open_publishers, observer):
    """The last to publish commits first, the first to publish last, and each commit returns while
    others are open."""
    for session in reversed(open_publishers):
        execute(session, "COMMIT")

    assert len(stored()) == 2 * PUBLISHERS
    assert waiting_for_locks(observer) == []
    assert drain("billing") == 2 * PUBLISHERS


def test_every_lock_of_a_publisher_is_shared(connect, observer):
    """A publishing transaction holds no lock that another publisher's locks conflict with."""
    publisher = connect()
    execute(publisher, "BEGIN")
    insert(publisher)
    held = execute(
        observer,
        "SELECT locktype, mode FROM pg_locks WHERE pid = %s AND locktype NOT IN ('virtualxid', 'transactionid')",
        backend(publisher),
    )

    assert {mode for locktype, mode in held if locktype == "advisory"} == {"ShareLock"}
    assert {mode for locktype, mode in held if locktype != "advisory"} <= {
        "AccessShareLock",
        "RowExclusiveLock",
    }


def test_an_open_claim_holds_up_no_publisher(background, close_gate, impatient, observer):
    """While a consumer's transaction is open, publishers publish and commit to the same channel and
    key."""
    gate = close_gate("billing")
    first = insert(impatient, order_id=1, note="gate")
    claim = background(worker("billing").run_once)
    wait_until(gate.waiting)
    second = insert(impatient, order_id=1)
    with transaction.atomic():
        execute(connection, "SET LOCAL lock_timeout = '3s'")
        third = outbox.publish(OrderPlaced(order_id=1))
    stored_meanwhile, waiting = stored(), waiting_for_locks(observer)
    consumer = gate.waiting()
    gate.open()
    claim.result()
    drain("billing")

    assert stored_meanwhile == [first, second, third]
    assert waiting == consumer
    assert handled("billing") == [first, second, third]


def test_open_publishers_hold_up_no_consumer(connect, impatient, observer):
    """A consumer handles what lies below the floors of open publishers, and does not wait for
    them."""
    before = insert(impatient)
    open_publisher = connect()
    execute(open_publisher, "BEGIN")
    insert(open_publisher)
    execute(connection, "SET lock_timeout = '3s'")
    try:
        exhaust(worker("billing"))
    finally:
        execute(connection, "RESET lock_timeout")

    assert handled("billing") == [before]
    assert waiting_for_locks(observer) == []


def test_all_publishers_are_in_their_commit_at_once(
    connect, background, unconfirmed_commits, observer
):
    """Commits are not serialised: eight publishers are inside COMMIT, past every lock, at the same
    time."""
    sessions = [connect() for _ in range(PUBLISHERS)]
    pids = [backend(session) for session in sessions]
    for session in sessions:
        unconfirmed_commits.choose(session)
        execute(session, "BEGIN")
        insert(session)
    commits = [background(execute, session, "COMMIT") for session in sessions]
    wait_until(lambda: set(pids) <= set(unconfirmed_commits.waiting()))
    waiting = waiting_for_locks(observer)
    unconfirmed_commits.end()
    for commit in commits:
        commit.result()

    assert waiting == []
    assert drain("billing") == PUBLISHERS
