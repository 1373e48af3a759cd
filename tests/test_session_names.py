"""A worker's session is named after its groups, whatever handlers do to the connection; a new one is
told of before the worker sleeps in it."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

import outbox
from outbox.consuming.notifications import Wakeups
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.support.harness import Background, execute, terminate
from tests.support.processes import wait_until
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)


class Sleeper(Wakeups):
    """Sleeps until a NOTIFY comes, and tells when it does."""

    asleep = threading.Event()

    def _sleep(self, seconds: float) -> None:
        if seconds > 60:
            self.asleep.set()
        super()._sleep(seconds)
        self.asleep.clear()


def test_a_handler_that_closes_the_connection_does_not_hide_its_worker(connect):
    """The session that replaces a closed one gets the worker's name as well, and listens."""
    handled: list[int] = []
    with isolated_groups():
        group = outbox.ConsumerGroup("closing", channels=["closing"], delivery="at_least_once")

        @group.handler("Order")
        def close(payload: object, message: outbox.Message) -> None:
            connection.close()
            handled.append(message.position)

        wakeups = Sleeper([group], "default", poll_interval=600.0)
        worker = Worker([group], wakeups=wakeups)
        thread = Background(worker.run)
    observer = connect()
    name = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'outbox:closing %%'"
    seen: list[int] = []

    def is_alone() -> bool:
        """Whether one session has the name, which is none of those that were closed."""
        found = [pid for (pid,) in execute(observer, name)]
        return len(found) == 1 and found[0] not in seen

    try:
        for turn in range(1, 4):
            assert wakeups.asleep.wait(120)
            wait_until(is_alone)
            seen += execute(observer, name)[0]
            publish(None, channel="closing")
            wait_until(lambda n=turn: len(handled) == n)
        assert wakeups.asleep.wait(120)
        wait_until(is_alone)
    finally:
        worker.stop()
        thread.join(120)

    assert len(set(seen)) == 3


def test_a_worker_tells_that_the_database_is_back_before_it_waits(connect, caplog):
    """The time that the log tells is that of the outage, without the sleep that follows."""
    observer, told = connect(), []

    class Waits(Wakeups):
        def wait(self, *arguments: object) -> None:
            told.append("the database is back" in caplog.text)
            if len(told) == 1:
                terminate(observer, connection.connection.info.backend_pid)
            else:
                worker.stop()

    with isolated_groups():
        group = outbox.ConsumerGroup("told", channels=["told"])
        worker = Worker([group], wakeups=Waits([group], "default"))
        Background(worker.run).result()

    assert told == [False, True]
