"""Waiting for a group: it ends when the work is done, wakes by NOTIFY, and costs a busy worker no
NOTIFY when nobody waits."""

import shutil
import threading
import time

import pytest
from django.db import connection, transaction
from django.db.models import F

import outbox
from outbox.consuming import read_your_writes
from outbox.consuming.cursors import register
from outbox.exceptions import NotCaughtUp, UnknownGroup, WaitInTransaction
from outbox.models import Cursor
from outbox.operations import replay
from tests.shop import consumers
from tests.shop.models import Effect, Fault
from tests.support.harness import Background, Gate, drain, execute, insert, worker
from tests.support.processes import start_process, wait_until
from tests.support.publishing import publish_order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def running():
    """Run a worker of the shop in a thread until the test ends."""
    started = []

    def start(*names):
        a_worker = worker(*names)
        started.append((a_worker, Background(a_worker.run)))
        return a_worker

    yield start
    for a_worker, thread in started:
        a_worker.stop()
        thread.join(120)


def waiters(session):
    """The sessions that wait for some group."""
    return execute(
        session,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
        " AND classid::bigint >> 16 = 20298",
    )


def test_it_returns_at_once_when_the_work_is_done():
    """No lock and no LISTEN are needed for that."""
    position = publish_order()
    drain("billing")

    assert outbox.wait_for("billing", position, timeout=0) is True


def test_it_gives_up_at_the_timeout():
    """Nobody works: the answer is False, not an error."""
    position = publish_order()
    register([consumers.billing], "default")
    began = time.monotonic()

    assert outbox.wait_for("billing", position, timeout=0.2) is False
    assert time.monotonic() - began >= 0.2


def test_it_waits_for_a_group_that_has_no_cursor_yet():
    """A group whose worker has not begun has handled nothing."""
    position = publish_order()

    assert outbox.wait_for("billing", position, timeout=0) is False
    drain("billing")
    assert outbox.wait_for("billing", position, timeout=0) is True


def test_it_waits_for_every_channel_and_range_of_the_group(connect):
    """A group is there when all of its cursors are."""
    session = connect()
    insert(session)
    paid = insert(session, channel="payments")
    drain("audit")
    Cursor.objects.filter(group="audit", channel="payments").update(
        position=0, generation=F("generation") + 1
    )

    assert outbox.wait_for("audit", paid, timeout=0) is False


def test_it_wakes_up_by_notify(connect, monkeypatch):
    """With all looks of its own put off to after the timeout, the NOTIFY alone ends the wait."""
    monkeypatch.setattr(read_your_writes, "FIRST_WAIT", 600)
    session = connect()
    gate = Gate(connect(), "billing")
    position = publish_order(note="gate")
    waited = Background(outbox.wait_for, "billing", position, 50)
    wait_until(lambda: waiters(session))
    handling = Background(worker("billing").run_once)
    wait_until(gate.waiting)
    gate.open()
    handling.result()

    assert waited.result() is True


def test_a_batch_that_looked_before_the_waiter_came_is_not_missed(connect, monkeypatch):
    """The waiter takes its lock after the worker looked for it and before that commits: no NOTIFY
    comes, and it finds out by itself."""
    session = connect()
    position = publish_order()
    has_looked, go_on = threading.Event(), threading.Event()
    looks = []
    look = read_your_writes._has_handled
    monkeypatch.setattr(
        read_your_writes, "_has_handled", lambda *which: looks.append(1) or look(*which)
    )

    def handle_and_hold():
        with transaction.atomic():
            worker("billing").run_once()
            has_looked.set()
            assert go_on.wait(120)

    handling = Background(handle_and_hold)
    assert has_looked.wait(120)
    waited = Background(outbox.wait_for, "billing", position, 50)
    wait_until(lambda: waiters(session) and len(looks) > 4)
    go_on.set()
    handling.result()

    assert waited.result() is True


def test_a_worker_sends_no_notify_when_nobody_waits(connect):
    """A session that listens for the group hears nothing from 20 batches, and one from a batch
    during a wait."""
    listener, session = connect(), connect()
    register([consumers.billing], "default")
    with connection.cursor() as cursor:
        cursor.execute("SELECT outbox_waiter_signal('billing')")
        name = cursor.fetchone()[0]
    execute(listener, f'LISTEN "{name}"')
    for _ in range(20):
        publish_order()
        drain("billing")
    silent = heard(listener)
    position = publish_order()
    waited = Background(outbox.wait_for, "billing", position, 50)
    wait_until(lambda: waiters(session))
    drain("billing")
    waited.result()

    assert silent == 0
    assert heard(listener) == 1


def heard(session):
    execute(session, "SELECT 1")
    if hasattr(session, "pgconn"):
        return len(list(session.notifies(timeout=0)))
    count = len(session.notifies)
    session.notifies.clear()
    return count


def test_it_leaves_nothing_behind(connect):
    """After the wait the session neither listens nor holds the lock."""
    session = connect()
    position = publish_order()
    register([consumers.billing], "default")
    outbox.wait_for("billing", position, timeout=0.05)
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM pg_listening_channels()")
        listening = cursor.fetchall()

    assert listening == []
    assert waiters(session) == []


def test_it_polls_where_listening_is_off(connect, running, settings):
    """Behind a transaction pooler no LISTEN and no session lock is tried."""
    settings.OUTBOX = {"LISTEN": False, "POLL_INTERVAL": 0.05}
    session = connect()
    position = publish_order()
    seen = []
    waited = Background(outbox.wait_for, "billing", position, 50)
    running("billing")
    wait_until(lambda: seen.extend(waiters(session)) or not waited.is_alive())

    assert waited.result() is True
    assert seen == []


@pytest.mark.skipif(not shutil.which("pgbouncer"), reason="pgbouncer is not installed")
def test_it_polls_behind_a_pooler(pooled, connect):
    """The lock would stay behind on the pooler's session, so it is not taken."""
    session = connect()
    position = publish_order()
    register([consumers.billing], "default")
    waited = start_process(
        "-c",
        "import django; django.setup(); import outbox;"
        f" print(outbox.wait_for('billing', {position}, 100))",
        **pooled,
    )
    looks = [wait_until(lambda: looked(session))[0]]
    while len(looks) < 5:
        looks += [at for at in looked(session) if at != looks[-1]]
    seen = waiters(session)
    drain("billing")
    output, narration = waited.communicate(timeout=120)

    assert output == "True\n", narration
    assert seen == []


def looked(session):
    """When other sessions last looked whether a group is done."""
    return execute(
        session,
        "SELECT query_start FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND query LIKE '%bool_and%'",
    )


def test_a_position_that_may_still_appear_is_waited_for(connect):
    """A message that is not committed yet is not handled, although nothing is pending."""
    publisher = connect()
    execute(publisher, "BEGIN")
    position = insert(publisher)
    drain("billing")
    before = outbox.wait_for("billing", position, timeout=0)
    execute(publisher, "COMMIT")
    drain("billing")

    assert before is False
    assert outbox.wait_for("billing", position, timeout=0) is True
    assert outbox.wait_for("billing", position + 1, timeout=0) is False


def test_caught_up_does_not_wait_for_what_others_are_publishing(connect):
    """A transaction that began to publish after the block's own does not hold it up."""
    publisher = connect()
    publish_order()
    with outbox.caught_up("billing", timeout=60):
        publish_order()
        execute(publisher, "BEGIN")
        insert(publisher)
        drain("billing")


def test_caught_up_waits_for_what_the_block_published(running):
    """After the block its effects are there to be read."""
    running("billing", "crew")
    for _ in range(20):
        with outbox.caught_up("billing", "crew", timeout=60):
            position = publish_order()

        assert Effect.objects.filter(position=position).count() == 2


def test_caught_up_works_as_a_decorator(running):
    """A view that is decorated answers when the group has caught up."""
    running("billing")

    @outbox.caught_up("billing", timeout=60)
    def view():
        return publish_order()

    position = view()

    assert Effect.objects.filter(position=position).exists()


def test_caught_up_names_the_group_that_is_late():
    """The error is a TimeoutError and says where to look."""
    register([consumers.billing], "default")
    late = outbox.caught_up("billing", timeout=0.05)
    with pytest.raises(NotCaughtUp, match="outbox describe billing") as error, late:
        position = publish_order()

    assert isinstance(error.value, TimeoutError)
    assert error.value.position == position


def test_caught_up_does_not_wait_after_an_error():
    """The error of the block passes at once."""
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), outbox.caught_up("billing", timeout=60):
        publish_order()
        raise ZeroDivisionError

    assert time.monotonic() - began < 50


def test_waiting_inside_a_transaction_is_refused():
    """It could never end: nobody sees what the transaction published before it commits."""
    with transaction.atomic():
        with pytest.raises(WaitInTransaction, match="inside atomic"):
            outbox.wait_for("billing", 1)
        with pytest.raises(WaitInTransaction), outbox.caught_up("billing"):
            pass


def test_a_parked_message_counts_as_handled():
    """The group has moved past it; `parked` tells about it."""
    Fault.objects.create(group="billing")
    position = publish_order(note="fragile")
    for _ in range(consumers.billing.retry.max_attempts):
        Cursor.objects.update(retry_at=None)
        worker("billing").run_once()

    assert outbox.wait_for("billing", position, timeout=0) is True


def test_a_skip_ends_the_wait(connect, monkeypatch):
    """An operator's skip wakes who waits, as a worker's commit does."""
    monkeypatch.setattr(read_your_writes, "FIRST_WAIT", 600)
    session = connect()
    position = publish_order()
    waited = Background(outbox.wait_for, "billing", position, 50)
    wait_until(lambda: waiters(session))
    replay.skip("billing", position, reason="test")

    assert waited.result() is True


def test_an_unknown_group_is_refused():
    """Waiting for a group that nobody knows would only end at the timeout."""
    with pytest.raises(UnknownGroup, match="Did you mean 'billing'"):
        outbox.wait_for("biling", 1)


def test_many_can_wait_at_once(connect, running):
    """Waiters share the lock: none keeps the others from waiting."""
    session = connect()
    position = publish_order()
    register([consumers.billing], "default")
    waited = [Background(outbox.wait_for, "billing", position, 50) for _ in range(5)]
    wait_until(lambda: len(waiters(session)) == 5)
    running("billing")

    assert [each.result() for each in waited] == [True] * 5
