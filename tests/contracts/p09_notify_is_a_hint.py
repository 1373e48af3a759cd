"""Promise 9: NOTIFY is a hint. A lost or disabled NOTIFY costs latency and nothing else.

And the wake-up protocol: a NOTIFY only when a worker sleeps, and no wake-up is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connection, connections, transaction

import outbox
from outbox.consuming.idle_ranges import IdleRanges
from outbox.consuming.notifications import Wakeups
from outbox.message_log import LogState
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.support.amounts import amount
from tests.support.harness import Background, execute, insert, value
from tests.support.processes import environment, wait_until
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGES = amount(1_200, 40_000)
PUBLISHERS = 4
LONG = 60.0
"""Seconds of the poll interval: a wake-up that is lost shows as a wait of that length."""
MANY = [f"tenant-{number}" for number in range(200)]


@pytest.fixture
def load(tmp_path):
    """Start a load process; what it prints goes to a file, so that no pipe can hold it up."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], Path]:
        printed = tmp_path / f"{len(started)}.txt"
        with printed.open("a") as output:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.wakeup_load", *arguments],
                    stdout=output,
                    env=environment(),
                    text=True,
                    start_new_session=True,
                )
            )
        return started[-1], printed

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def times(process: subprocess.Popen[str], printed: Path) -> dict[int, float]:
    """Wait for a load process and return what it printed: position -> time."""
    assert process.wait(timeout=400) == 0
    lines = printed.read_text().splitlines()
    return {int(position): float(at) for position, at in map(str.split, lines)}


def sleeping(channels: list[str]) -> int:
    """How many sessions hold the idle locks of channels, over all of them."""
    return value(
        connection,
        """
        SELECT count(*) FROM pg_locks, outbox_idle_places(%s) AS place
        WHERE locktype = 'advisory' AND objsubid = 1
          AND (classid::bigint << 32) + objid::bigint = place.key
        """,
        channels,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_no_message_waits_for_the_poll(load, workers):
    """Single messages from four publishers with pauses, roll-backs and savepoints all wake a worker,
    although it polls only once a minute; also where two workers compete for the same range."""
    share = MESSAGES // PUBLISHERS // workers
    lanes = [f"lane-{n}" for n in range(PUBLISHERS)]
    consumers = load("consume", *lanes * workers)
    wait_until(lambda: sleeping(lanes) == PUBLISHERS * workers)
    committed = times(*load("publish", str(share), *lanes))
    wait_until(lambda: sleeping(lanes) == PUBLISHERS * workers, 2 * LONG)
    consumers[0].terminate()
    handled = times(*consumers)

    assert len(committed) == share * PUBLISHERS
    assert handled.keys() == committed.keys()
    waits = {position: handled[position] - committed[position] for position in committed}
    late = {position: seconds for position, seconds in waits.items() if seconds > LONG / 2}
    assert not late, f"{len(late)} of {len(committed)} waited up to {max(late.values()):.1f} s"


class Sleeper:
    """A worker in a thread that seldom polls, and what it handled."""

    def __init__(self, name: str, *channels: str, poll: float = LONG, **options: object) -> None:
        self.group = outbox.ConsumerGroup(name, channels=channels)
        self.handled: dict[int, int] = {}
        """Position -> how often the worker had slept longer than a moment before."""
        self.group.handler("Order")(self._tick)
        self.wakeups = Wakeups([self.group], "default", poll_interval=poll, **options)  # type: ignore[arg-type]
        self.worker = Worker([self.group], wakeups=self.wakeups)
        self.sleeps = 0
        self._sleep, self.wakeups._sleep = self.wakeups._sleep, self._count_sleep  # type: ignore[method-assign]
        self.asleep = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _tick(self, payload: object, message: outbox.Message) -> None:
        self.handled[message.position] = self.sleeps

    def _count_sleep(self, seconds: float) -> None:
        if seconds > 0.1:
            self.sleeps += 1
            self.asleep.set()
        self._sleep(seconds)
        self.asleep.clear()

    def _run(self) -> None:
        try:
            self.worker.run()
        finally:
            connections.close_all()

    def stop(self) -> None:
        self.worker.stop()
        self.thread.join(120)


@pytest.fixture
def sleeper():
    """Start workers that are stopped at the end."""
    started: list[Sleeper] = []

    def start(name: str, *channels: str, **options: object) -> Sleeper:
        started.append(Sleeper(name, *channels, **options))
        return started[-1]

    with isolated_groups():
        yield start
    for each in started:
        each.stop()


class WithoutSecondLook(Wakeups):
    """Breaks the protocol: sleeps as soon as it has the idle locks."""

    def wait(self, state: LogState, idle: IdleRanges) -> None:
        self._become_idle()
        self._sleep(self._until_due(state, idle))


class WithoutFlightWait(Wakeups):
    """Breaks the protocol: looks once more, and then sleeps beside an open publisher."""

    def wait(self, state: LogState, idle: IdleRanges) -> None:
        if self._is_idle:
            self._sleep(self._until_due(state, idle))
        else:
            self._become_idle()


def has_slept(kind: type[Wakeups], before: Callable[[], object], between: Callable[[], object]):
    """Tell whether a worker with such wake-ups goes to sleep though a message has appeared.

    `before` happens before the worker looks for the first time, `between` after that look.
    """
    group = outbox.ConsumerGroup("looking", channels=["looking"])
    wakeups = kind([group], "default", poll_interval=LONG, linger=0.0)
    slept: list[float] = []
    wakeups._sleep = slept.append  # type: ignore[method-assign]
    worker = Worker([group], wakeups=wakeups)
    before()
    worker.run_once()
    between()
    for _ in range(10):
        wakeups.wait(worker.claims.state, worker.claims.idle)
        if worker.run_once() is not None:
            break
    wakeups.unlisten()
    return max(slept, default=0) > 1


@pytest.mark.parametrize(("kind", "is_missed"), [(Wakeups, False), (WithoutSecondLook, True)])
def test_the_second_look_finds_what_came_before_the_lock(kind, is_missed):
    """A message that commits between the look and the idle lock sends no NOTIFY: the worker looks again
    before it sleeps. Without that look it would sleep until the next poll."""
    with isolated_groups():
        slept = has_slept(kind, lambda: None, lambda: publish(None, channel="looking"))

    assert slept is is_missed


@pytest.mark.parametrize(("kind", "is_missed"), [(Wakeups, False), (WithoutFlightWait, True)])
def test_a_worker_does_not_sleep_beside_an_open_publisher(kind, is_missed, connect):
    """A publisher whose trigger ran before the idle lock was taken sends no NOTIFY when it commits:
    the worker stays awake as long as one is open. Else it would sleep until the next poll."""
    publisher = connect()

    def begin():
        execute(publisher, "BEGIN")
        insert(publisher, channel="looking")

    with isolated_groups():
        slept = has_slept(kind, begin, lambda: None)
    execute(publisher, "ROLLBACK")

    assert slept is is_missed


@pytest.fixture
def no_notify(connect):
    """Let publishers find no worker that sleeps, so that no commit carries a NOTIFY."""
    session = connect()
    original = value(session, "SELECT pg_get_functiondef('outbox_is_held'::regproc)")
    execute(
        session,
        "CREATE OR REPLACE FUNCTION outbox_is_held(key bigint) RETURNS boolean LANGUAGE sql VOLATILE"
        " AS 'SELECT false'",
    )
    yield
    execute(session, original)


def test_without_any_notify_every_message_is_handled(sleeper, connect, no_notify):
    """A sleeping worker that no NOTIFY reaches finds each message at its next poll, in order."""
    worker = sleeper("unheard", "unheard", poll=0.2)
    positions = []
    for _ in range(5):
        assert worker.asleep.wait(120)
        heard = count_signals(
            connect(), "unheard", lambda: positions.extend(publish(None, channel="unheard"))
        )
        wait_until(lambda: positions[-1] in worker.handled)
        assert heard == 0

    assert list(worker.handled) == positions


def test_a_sleeping_worker_is_woken(sleeper):
    """A message that is published while the worker sleeps is handled long before the next poll."""
    worker = sleeper("woken", "woken")
    assert worker.asleep.wait(120)
    [position] = publish(None, channel="woken")

    wait_until(lambda: position in worker.handled, timeout=LONG / 2)


def test_a_rollback_in_front_delays_nobody(sleeper, connect):
    """A publisher that holds the horizon and rolls back lets the messages behind it go at once,
    without any NOTIFY of its own."""
    worker = sleeper("behind", "behind")
    assert worker.asleep.wait(120)
    blocker = connect()
    blocker.autocommit = False
    with blocker.cursor() as cursor:
        cursor.execute(
            "INSERT INTO outbox_message (channel, type, payload) VALUES ('other', 'Tick', '{}')"
        )
    [position] = publish(None, channel="behind")
    wait_until(lambda: worker.wakeups._short_waits > 4)
    assert position not in worker.handled
    sleeps = worker.sleeps
    blocker.rollback()
    wait_until(lambda: position in worker.handled, timeout=LONG / 2)

    assert worker.handled[position] == sleeps


def test_a_message_wakes_only_the_workers_of_its_channel(sleeper):
    """Twenty workers sleep on twenty channels; one message ends one sleep."""
    workers = [sleeper(f"sleeper-{n}", f"lane-{n}", poll=600.0) for n in range(20)]
    for worker in workers:
        assert worker.asleep.wait(120)
    before = [worker.sleeps for worker in workers]
    [position] = publish(None, channel="lane-7")
    wait_until(lambda: position in workers[7].handled)
    wait_until(lambda: workers[7].sleeps > before[7])

    changed = [n for n, worker in enumerate(workers) if worker.sleeps != before[n]]
    assert changed == [7]


def test_a_stuck_horizon_costs_publishers_no_notify(sleeper, connect):
    """A worker that was asleep when a transaction stayed open drops its idle locks while it waits for
    the horizon: the publishers beside it send no NOTIFY."""
    worker = sleeper("stuck", "stuck")
    assert worker.asleep.wait(120)
    blocker, observer = connect(), connect()
    execute(blocker, "BEGIN")
    insert(blocker, channel="stuck")
    publish(None, channel="stuck")
    idle = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
    idle += " AND classid::bigint >> 16 = 20297"
    wait_until(lambda: value(observer, idle) == 0, timeout=LONG / 2)
    heard = count_signals(connect(), "stuck", lambda: publish(None, channel="stuck"))
    execute(blocker, "ROLLBACK")

    assert heard == 0
    wait_until(lambda: len(worker.handled) == 2, timeout=LONG / 2)


def test_notifications_for_others_do_not_pile_up(sleeper, connect):
    """A worker that is busy forgets the notifications that other sleeping workers need."""
    worker = sleeper("busy", "busy")
    assert worker.asleep.wait(120)
    session = connect()
    name = value(session, "SELECT outbox_signal_name('busy')")
    for number in range(20):
        execute(session, f"SELECT pg_notify('{name}', 'a{number}')")
        publish(None, channel="busy")

    wait_until(lambda: len(worker.handled) == 20 and not worker.wakeups.listener._heard)


def test_notifications_do_not_pile_up_while_a_worker_has_work(connect):
    """A worker that listens and never gets to wait reads them between two batches: what its session
    holds does not grow with their number."""
    session, turns, held = connect(), 40, []
    group = outbox.ConsumerGroup("at work", channels=["busy"])
    wakeups = Wakeups([group], "default", poll_interval=LONG)
    worker = Worker([group], wakeups=wakeups)
    name = value(session, "SELECT outbox_signal_name('busy')")

    @group.handler("Order")
    def go_on(payload: object, message: outbox.Message) -> None:
        execute(session, f"SELECT pg_notify('{name}', '{len(held)}')")
        held.append(len(wakeups.listener._heard))
        if len(held) < turns:
            outbox.publish_raw("busy", "Order", {})
        else:
            worker.stop()

    thread = Background(worker.run)
    wait_until(lambda: sleeping(["busy"]) == 1)
    publish(None, channel="busy")
    thread.result()

    assert len(held) == turns
    assert max(held) < turns / 2


def test_a_range_that_a_dead_session_held_is_taken_over_within_moments(sleeper, connect):
    """No NOTIFY tells that a session that held a range is gone: while a range with messages is held,
    the other workers look again each second, and not only when they would poll."""
    holder = connect()
    worker = sleeper("heir", "heir")
    assert worker.asleep.wait(120)
    execute(holder, "BEGIN")
    execute(holder, "SELECT * FROM outbox_cursor WHERE \"group\" = 'heir' FOR UPDATE")
    [position] = publish(None, channel="heir")
    before = worker.sleeps
    wait_until(lambda: worker.sleeps > before + 1, timeout=LONG / 2)
    assert position not in worker.handled
    holder.close()

    wait_until(lambda: position in worker.handled, timeout=LONG / 2)


def test_a_worker_of_many_channels_is_woken_through_a_bucket(sleeper):
    """A group of 200 channels sleeps in 32 buckets, and a message in any channel wakes it."""
    worker = sleeper("many", *MANY)
    assert worker.asleep.wait(120)
    for channel in (MANY[0], MANY[71], MANY[199]):
        [position] = publish(None, channel=channel)
        wait_until(lambda p=position: p in worker.handled, timeout=LONG / 2)


def test_a_transaction_over_many_channels_wakes_their_workers(sleeper):
    """One statement that inserts into several channels wakes a worker of one and one of many."""
    one, many = sleeper("one", MANY[3]), sleeper("many", *MANY)
    assert one.asleep.wait(120)
    assert many.asleep.wait(120)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL outbox.notify = on")
        cursor.execute(
            "INSERT INTO outbox_message (channel, type, payload)"
            " SELECT unnest(%s::text[]), 'Order', '{}' RETURNING position, channel",
            [MANY],
        )
        positions = {channel: position for position, channel in cursor.fetchall()}
    wait_until(lambda: positions[MANY[3]] in one.handled, timeout=LONG / 2)
    wait_until(lambda: set(positions.values()) <= many.handled.keys(), timeout=LONG / 2)


def test_sleeping_in_3000_channels_costs_32_locks(connect):
    """However many channels its groups have, a sleeper leaves the lock table to the others."""
    session = connect()
    with session.cursor() as cursor:
        for count, locks in ((1, 1), (32, 32), (33, 32), (3000, 32)):
            channels = [f"tenant-{number}" for number in range(count)]
            cursor.execute("SELECT key, signal FROM outbox_idle_places(%s)", [channels])
            places = cursor.fetchall()

            assert len({key for key, _ in places}) <= locks
            assert len({signal for _, signal in places}) == len({key for key, _ in places})


def test_a_busy_system_sends_no_notify(connect):
    """While nobody sleeps, a commit carries no NOTIFY."""
    ears = connect()
    heard = count_signals(ears, "busy", lambda: publish(None, channel="busy"))

    assert heard == 0


def test_a_sleeper_is_notified_once_per_commit(sleeper, connect):
    """The idle lock of a sleeping worker makes the publisher's commit carry one NOTIFY."""
    lock = connect()
    with lock.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock_shared(outbox_idle_key('watched'))")
    heard = count_signals(connect(), "watched", lambda: publish(None, channel="watched"))

    assert heard == 1


def count_signals(session, channel, act) -> int:
    """Return how many notifications of a channel reach a session while `act` runs."""
    with session.cursor() as cursor:
        cursor.execute("SELECT outbox_signal_name(%s)", [channel])
        (name,) = cursor.fetchone()
        cursor.execute(f'LISTEN "{name}"')
        act()
        cursor.execute("SELECT 1")
    if hasattr(session, "notifies") and not callable(session.notifies):
        session.poll()
        return len(session.notifies)
    return len(list(session.notifies(timeout=0)))


def test_a_cancelled_publisher_leaves_no_idle_lock_behind():
    """After a publisher looked for sleepers, its session holds nothing but its floor."""
    with transaction.atomic(), connection.cursor() as cursor:
        outbox.publish_raw("tidy", "Tick", {})
        cursor.execute(
            "SELECT classid::bigint >> 16 FROM pg_locks"
            " WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )

        assert cursor.fetchall() == [(20290,)]


def test_a_worker_that_ends_leaves_no_trace_in_its_session():
    """With a pool the session lives on: it listens to nothing, and no publisher finds a sleeper."""
    group = outbox.ConsumerGroup("leaving", channels=["leaving"])
    wakeups = Wakeups([group], "default", poll_interval=0.001, linger=0.0)
    worker = Worker([group], wakeups=wakeups)
    worker.run_once()
    with connection.cursor() as cursor:
        wakeups.wait(worker.claims.state, worker.claims.idle)
        assert traces(cursor) == (1, 1)
        wakeups.unlisten()
        assert traces(cursor) == (0, 0)


def traces(cursor):
    """How many channels this session listens to, and how many session locks it holds."""
    cursor.execute("SELECT count(*) FROM pg_listening_channels()")
    (heard,) = cursor.fetchone()
    cursor.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    )
    return heard, cursor.fetchone()[0]


def test_poll_only_needs_no_listen(sleeper, connect):
    """With listen=False a worker takes no idle lock, listens to nothing, and finds the message."""
    worker = sleeper("polling", "polling", listen=False)
    [position] = publish(None, channel="polling")
    wait_until(lambda: position in worker.handled)

    assert worker.wakeups.listener.raw is None
